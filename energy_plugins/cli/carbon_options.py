"""Options about carbon and money, and what they and the configuration ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from energy_plugins.errors import ConfigError

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report
    from energy_plugins.report.carbon.footprint import Footprint

_TRAINING_TYPES = ("pre-training", "fine-tuning")
_OPTIONS = (
    click.option("--country", metavar="NAME", help="Where it ran: a country's name or code, for the grid's intensity."),
    click.option("--intensity", metavar="G|CSV", help="Your own intensity in g/kWh: a number, or a CSV time series."),
    click.option("--marginal", metavar="G|CSV", help="A marginal intensity, shown apart."),
    click.option(
        "--pue", type=float, metavar="NUMBER", help="What the building draws for each joule of computers [1]."
    ),
    click.option("--price", type=float, metavar="NUMBER", help="Price of a kilowatt-hour, in your currency."),
    click.option("--embodied-kg", type=float, metavar="KG", help="CO2e of making the hardware, all of it together."),
    click.option("--lifetime-years", type=float, metavar="YEARS", help="Over which --embodied-kg is spread [4]."),
    click.option("--epochs", type=float, metavar="N", help="How many the run trained, for a score per epoch."),
    click.option(
        "--model-card", type=click.Path(path_type=Path), metavar="FILE", help="Write the grams into that card."
    ),
    click.option("--training-type", type=click.Choice(_TRAINING_TYPES), help="What --model-card calls the training."),
)


@dataclass(frozen=True, kw_only=True)
class CarbonWishes:
    """What was asked for on the command line; None where it was not."""

    country: str | None = None
    intensity: str | None = None
    marginal: str | None = None
    pue: float | None = None
    price: float | None = None
    embodied_kg: float | None = None
    lifetime_years: float | None = None
    epochs: float | None = None
    model_card: Path | None = None
    training_type: str | None = None

    @property
    def any_given(self) -> bool:
        """Whether one of the options was given."""
        return any(getattr(self, one.name) is not None for one in fields(self))

    def footprint(self, report: Report) -> Footprint | None:
        """Return the footprint of a run; None if neither an option nor the configuration asks for it.

        Raises:
            click.UsageError: a value is not allowed, or a time series does not cover the run.
        """
        try:
            return self._footprint(report)
        except ConfigError as error:
            raise click.UsageError(str(error)) from error

    def _footprint(self, report: Report) -> Footprint | None:
        from energy_plugins.report.carbon.circumstances import Circumstances, Embodied  # noqa: PLC0415
        from energy_plugins.report.carbon.footprint import footprint  # noqa: PLC0415 - a report alone needs none of it
        from energy_plugins.report.carbon.grid import Marginal, own, placed  # noqa: PLC0415
        from energy_plugins.report.carbon.run_place import settings_of  # noqa: PLC0415

        configured = settings_of(report)
        # A country that is named here is meant, whatever intensity is configured for all runs.
        usual = None if self.country is not None else configured.carbon_intensity_g_per_kwh
        country = configured.country if self.country is None else self.country
        intensity = placed(country, self.intensity if self.intensity is not None else usual)
        if not self.any_given and intensity is None:
            return None
        if self.lifetime_years is not None and self.embodied_kg is None:
            raise ConfigError("--lifetime-years is about --embodied-kg: give that as well")
        life = {} if self.lifetime_years is None else {"lifetime_years": self.lifetime_years}
        asked = Circumstances(
            location=intensity,
            marginal=None if self.marginal is None else own(Marginal, self.marginal),
            pue=configured.pue if self.pue is None else self.pue,
            price_per_kwh=self.price,
            embodied=None if self.embodied_kg is None else Embodied(kg=self.embodied_kg, **life),
            epochs=self.epochs,
        )
        return footprint(report, asked)

    def write_card(self, report: Report, found: Footprint) -> None:
        """Write the block of the model card, if that is asked for. Raises ReportError."""
        from energy_plugins.report.carbon.model_card import block, write_into  # noqa: PLC0415

        if self.model_card is not None:
            write_into(self.model_card, block(report, found, training_type=self.training_type or ""))
            click.echo(f"{self.model_card} has co2_eq_emissions", err=True)


def carbon_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a verb, which gets them as one `CarbonWishes`, ``carbon``."""

    @wraps(function)
    def wrapped(**given: Any) -> None:  # noqa: ANN401 - click's values
        wishes = {one.name: given.pop(one.name) for one in fields(CarbonWishes)}
        function(**given, carbon=CarbonWishes(**wishes))

    with_options: Callable[..., None] = wrapped
    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
