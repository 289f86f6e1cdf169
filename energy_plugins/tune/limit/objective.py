"""What a search makes small: energy, energy times delay, or the cost of Zeus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from energy_plugins.errors import ConfigError
from energy_plugins.tune.limit.measurement import Measurement


class Objective(Protocol):
    """A cost of a step that falls with its energy and its time."""

    def cost(self, time_s: float, energy_j: float) -> float:
        """Return the cost, above 0; only ratios of it matter."""

    def error(self, measured: Measurement) -> float:
        """Return the standard error of the cost as a share of it."""


@dataclass(frozen=True)
class Energy:
    """Joules of a step."""

    def cost(self, time_s: float, energy_j: float) -> float:
        """Return the energy."""
        del time_s
        return energy_j

    def error(self, measured: Measurement) -> float:
        """Return that of the energy."""
        return measured.energy_error


@dataclass(frozen=True)
class EnergyDelay:
    """Joules times seconds of a step."""

    def cost(self, time_s: float, energy_j: float) -> float:
        """Return the product."""
        return energy_j * time_s

    def error(self, measured: Measurement) -> float:
        """Return the sum of both: time and energy of a window err together, it is not known how much."""
        return measured.energy_error + measured.time_error


@dataclass(frozen=True)
class ZeusCost:
    """``eta * energy + (1 - eta) * max_power_w * time`` (Zeus, NSDI'23).

    Energy is that of all ranks, so the power must be, too: ``of_all`` takes it from the ranks' limits.

    Raises:
        ConfigError: if ``eta`` is not from 0 to 1, or ``max_power_w`` not a finite number above 0.
    """

    eta: float
    max_power_w: float
    """The sum of the largest power limits of all GPUs that work on the step."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta is {self.eta!r}, but must be from 0 (time alone counts) to 1 (energy alone)")
        if not 0 < self.max_power_w < math.inf:
            raise ConfigError(
                f"max_power_w is {self.max_power_w!r}, but must be above 0: the sum of all GPUs' highest limits (W)"
            )

    @classmethod
    def of_all(cls, eta: float, *max_power_w: float) -> ZeusCost:
        """Return the cost for ranks whose GPUs have these largest limits, one each."""
        return cls(eta, math.fsum(max_power_w))

    def cost(self, time_s: float, energy_j: float) -> float:
        """Return the cost in joules."""
        return self.eta * energy_j + (1 - self.eta) * self.max_power_w * time_s

    def error(self, measured: Measurement) -> float:
        """Return the errors of both, weighted by their shares of the cost."""
        share = self.eta * measured.step_energy_j / self.cost(measured.step_time_s, measured.step_energy_j)
        return share * measured.energy_error + (1 - share) * measured.time_error


ObjectiveName = Literal["energy", "energy_delay"]
OBJECTIVES: dict[str, Objective] = {"energy": Energy(), "energy_delay": EnergyDelay()}


def objective_of(given: ObjectiveName | Objective) -> Objective:
    """Return the objective of that name, or the one given.

    Raises:
        ConfigError: if there is none of that name.
    """
    if not isinstance(given, str):
        return given
    if given not in OBJECTIVES:
        names = ", ".join(map(repr, OBJECTIVES))
        raise ConfigError(f"objective is {given!r}, but must be one of {names}, or ZeusCost(eta, max_power_w)")
    return OBJECTIVES[given]
