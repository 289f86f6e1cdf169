"""What a report does not know of itself: where the run was, in what building, on hardware made at what cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from energy_plugins.errors import ConfigError
from energy_plugins.report.carbon.grid import LocationBased, Marginal

_YEAR_S: Final = 365.25 * 86400


@dataclass(frozen=True, kw_only=True)
class Embodied:
    """Emissions of making the hardware that the run had for itself."""

    kg: float
    """Of all of it together, in kilograms of CO2 equivalent."""
    lifetime_years: float = 4.0
    """Over how long they are spread, an assumption that is shown."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kg) and self.kg >= 0):
            raise ConfigError(f"embodied emissions are {self.kg:g} kg; expected a number, 0 or more")
        if not (math.isfinite(self.lifetime_years) and self.lifetime_years > 0):
            raise ConfigError(f"the lifetime of hardware is {self.lifetime_years:g} years; expected a positive number")

    def grams(self, duration_s: float) -> float:
        """Return the share of a run: M of ISO/IEC 21031, with all of the hardware reserved for that time."""
        return 1e3 * self.kg * duration_s / (self.lifetime_years * _YEAR_S)


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a report does not know of itself."""

    location: LocationBased | None = None
    marginal: Marginal | None = None
    pue: float = 1.0
    """Power usage effectiveness: what the building draws for each joule that its computers do."""
    price_per_kwh: float | None = None
    """In any currency."""
    embodied: Embodied | None = None
    epochs: float | None = None
    """How many the run trained, for a score per epoch."""

    def __post_init__(self) -> None:
        _refuse_mixed(self.location, self.marginal)
        if not (math.isfinite(self.pue) and self.pue >= 1):
            raise ConfigError(f"the PUE is {self.pue:g}; expected a number, 1 or more")
        if self.price_per_kwh is not None and not (math.isfinite(self.price_per_kwh) and self.price_per_kwh >= 0):
            raise ConfigError(f"the price is {self.price_per_kwh:g} per kWh; expected a number, 0 or more")
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ConfigError(f"the number of epochs is {self.epochs:g}; expected a positive number")


def _refuse_mixed(location: object, marginal: object) -> None:
    """Raise TypeError if one stands in the other's place, which type checkers find, too."""
    if not isinstance(location, LocationBased | None) or not isinstance(marginal, Marginal | None):
        raise TypeError("a marginal intensity is no location-based one: they are not to be mixed")
