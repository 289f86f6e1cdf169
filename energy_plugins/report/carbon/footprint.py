"""What a run means outside of the computer: electricity with the building's share, grams of CO2 equivalent, money.

Grams appear only where the place is known: a guessed country would be an invented number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from energy_plugins.report.carbon.circumstances import Circumstances, Embodied
from energy_plugins.report.carbon.grid import Intensity, LocationBased, Marginal
from energy_plugins.report.carbon.grid_series import Series
from energy_plugins.units import j_to_kwh

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report

_I = TypeVar("_I", bound=Intensity)
_I_co = TypeVar("_I_co", bound=Intensity, covariant=True)

UNKNOWN_PLACE: Final = "the place is not known: give a country or a carbon intensity"


@dataclass(frozen=True)
class Emissions(Generic[_I_co]):
    """Grams of CO2 equivalent, by one kind of intensity."""

    grams: float
    g_per_kwh: float
    """The mean over the run."""
    intensity: _I_co


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a run drew and caused; None where that is not known, and `reason` says why there are no grams."""

    simulated: bool
    whole: bool
    """Whether no joules are known to be missing."""
    gpu_j: float | None
    host_j: float | None
    """CPU packages and DRAM of its machines, where they were measured."""
    pue: float
    location: Emissions[LocationBased] | None = None
    marginal: Emissions[Marginal] | None = None
    embodied: Embodied | None = None
    embodied_g: float | None = None
    price_per_kwh: float | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    """Functional units of the score, and how many of each."""
    reason: str = ""

    @property
    def kwh(self) -> float | None:
        """Electricity of the run, the building's share included."""
        return None if self.gpu_j is None else j_to_kwh(self.gpu_j + (self.host_j or 0.0)) * self.pue

    @property
    def cost(self) -> float | None:
        """What it cost, in the currency of the price."""
        return None if self.kwh is None or self.price_per_kwh is None else self.kwh * self.price_per_kwh

    @property
    def scores(self) -> dict[str, float]:
        """Software carbon intensity in grams, by functional unit: (E x I + M) / R (ISO/IEC 21031), location-based."""
        if self.location is None:
            return {}
        grams = self.location.grams + (self.embodied_g or 0.0)
        return {unit: grams / count for unit, count in self.counts.items()}


def footprint(report: Report, circumstances: Circumstances, *, earlier_j: float = 0.0) -> Footprint:
    """Return what a run meant, all of its ranks together.

    Args:
        report: of the run.
        circumstances: where it was, and the like.
        earlier_j: what earlier runs of the same training drew on the same GPUs, if they are to be counted.

    Raises:
        ConfigError: a series of intensities does not cover the run.
    """
    whole = report if report.ranks is None else report.ranks
    gpu_j = None if whole.total_j is None else whole.total_j + earlier_j
    host = [joules for joules in (whole.cpu_j, whole.dram_j) if joules is not None]
    asked, missing = circumstances, whole.missing.get("total_j", "no reason was recorded")
    found = Footprint(
        simulated=report.simulated,
        whole=is_whole(report),
        gpu_j=gpu_j,
        host_j=math.fsum(host) if host else None,
        pue=asked.pue,
        embodied=asked.embodied,
        embodied_g=None if asked.embodied is None else asked.embodied.grams(whole.duration_s),
        price_per_kwh=asked.price_per_kwh,
        counts=_counts(report, asked.epochs),
    )
    if found.kwh is None:
        return replace(found, reason=f"the energy was not measured: {missing}")
    if asked.location is None and asked.marginal is None:
        return replace(found, reason=UNKNOWN_PLACE)
    return replace(
        found,
        location=None if asked.location is None else _emissions(found.kwh, asked.location, report),
        marginal=None if asked.marginal is None else _emissions(found.kwh, asked.marginal, report),
    )


def is_whole(report: Report) -> bool:
    """Tell whether no joules are known to be missing from the total, of all ranks where there are several."""
    if report.ranks is not None and not report.ranks.whole:
        return False
    return report.complete and "avg_power_w" not in report.missing and None not in report.gpu_j.values()


def _emissions(kwh: float, intensity: _I, report: Report) -> Emissions[_I]:
    known = intensity.g_per_kwh
    g_per_kwh = known.mean_g_per_kwh(report) if isinstance(known, Series) else known
    return Emissions(kwh * g_per_kwh, g_per_kwh, intensity)


def _counts(report: Report, epochs: float | None) -> dict[str, float]:
    work = report.work if report.ranks is None else report.ranks
    counted = {"sample": work.samples, "token": work.tokens, "epoch": epochs, "run": 1.0}
    return {unit: float(count) for unit, count in counted.items() if count}
