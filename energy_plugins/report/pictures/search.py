"""A search as a curve: what steps drew and took at each setting that was tried, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energy_plugins.report.pictures.picture import Picture
from energy_plugins.report.pictures.trace import Array


@dataclass(frozen=True)
class Tried:
    """A window of training under one setting."""

    setting: float
    seconds: float
    step_energy_j: float
    step_time_s: float


@dataclass(frozen=True)
class Compared:
    """The same against the setting found, as shares: -0.1 is 10 % less."""

    setting: float
    energy: float
    time: float


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchPicture(Picture):
    """All windows of a search, and their mean at each setting."""

    setting: str
    """What is turned, and its unit."""
    windows: tuple[Compared, ...]
    means: tuple[Compared, ...]
    """By setting, in order."""
    found: float
    """What the others are compared with."""
    chosen: float | None
    logarithmic: bool = False
    """Whether settings are drawn by their ratios."""


def compared(tried: Sequence[Tried], found: float) -> tuple[Compared, ...]:
    """Return each window against the windows at the setting ``found`` before and after it, which cancels drift.

    Between two of those a straight line is taken. Windows that cannot be (a time or an energy that is not above 0) are
    left out, and without one at ``found`` nothing is compared.
    """
    tried = [one for one in tried if _sound(one)]
    middle_s = np.cumsum([one.seconds for one in tried]) - 0.5 * np.array([one.seconds for one in tried])
    reference = [place for place, one in enumerate(tried) if one.setting == found]
    if not reference:
        return ()
    energy, time = (
        values / np.interp(middle_s, middle_s[reference], values[reference]) - 1.0
        for values in (np.array([one.step_energy_j for one in tried]), np.array([one.step_time_s for one in tried]))
    )
    return tuple(map(Compared, (one.setting for one in tried), energy.tolist(), time.tolist()))


def means(windows: Sequence[Compared]) -> tuple[Compared, ...]:
    """Return the geometric mean of each setting's windows, by setting."""
    settings = np.array([one.setting for one in windows])
    return tuple(
        Compared(
            float(setting),
            _mean(np.array([one.energy for one in windows])[settings == setting]),
            _mean(np.array([one.time for one in windows])[settings == setting]),
        )
        for setting in np.unique(settings)
    )


def _sound(one: Tried) -> bool:
    values = (one.setting, one.seconds, one.step_energy_j, one.step_time_s)
    return all(0.0 < value < 1e12 for value in values)


def _mean(shares: Array) -> float:
    return float(np.expm1(np.log1p(shares).mean()))
