"""How much of the steps' energy went into GPUs that had too little to do: a labelled estimate.

Steps are taken less their stalls, which are a waste of another kind. Two rules, the first where it can be used:

* with the activity lane, a moment is underfilled where the SM activity of its reading is below `activity.FILLED_SM`;
* without it, where the power is below idle + 25 % of what lies between idle and the power limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.activity import FILLED_SM
from energy_plugins.measure.attribution import Drawn
from energy_plugins.measure.quantity import percent
from energy_plugins.measure.settlement import Interval

_NEARBY_NS = 1_500_000_000
"""How far from a moment the reading may be that stands for it; readings come every 1.2 s."""
_FILLED_POWER = 0.25
"""Of the way from idle to the limit."""
_IDLE_LIMIT = 0.35
"""Of the limit: a run whose lowest sample lies above that has never shown its idle power. An H200 idles at 18 %."""
_SEEN = 0.9
"""Share of the steps' energy that readings must cover before their rule is used."""
_BIN_W = 4.0
_BINS = 512
"""Powers are told apart up to 2 kW."""


@dataclass(frozen=True)
class Underfilled:
    """The estimate, by which rule, and where there is none, why."""

    energy_j: float | None
    how: str = ""
    why: str = ""


class FillSum:
    """Sums up one GPU's energy inside steps by what the GPU was doing.

    What idle power is may be known only at the end, so the energy is kept by power instead of being compared at once.
    """

    def __init__(self) -> None:
        self.lowest_w = np.inf
        self._by_power_j = np.zeros(_BINS)
        self._seen_j = 0.0
        self._low_j = 0.0

    def see(self, power_w: NDArray[np.float64]) -> None:
        """Take power samples, for the lowest of them."""
        self.lowest_w = float(np.fmin.reduce(power_w, initial=self.lowest_w))

    def add(self, drawn: Drawn, working: Sequence[Interval], readings: NDArray[np.void]) -> None:
        """Add a settled stretch: what it drew, when steps were ``working`` in it, and activity readings around it."""
        step_j = drawn.energy_j * _share(drawn.t_ns, working) * drawn.measured
        length_s = np.diff(drawn.t_ns) * 1e-9
        power_w = np.divide(drawn.energy_j, length_s, out=np.zeros(len(length_s)), where=length_s > 0)
        row = np.clip(power_w / _BIN_W, 0, _BINS - 1).astype(np.int64)
        self._by_power_j += np.bincount(row, step_j, _BINS)
        sm = _nearest_sm(drawn.t_ns[:-1] + np.diff(drawn.t_ns) // 2, readings)
        self._seen_j += float(step_j[np.isfinite(sm)].sum())
        self._low_j += float(step_j[sm < FILLED_SM].sum())

    def estimate(self, idle_w: float | None, limit_w: float | None) -> Underfilled:
        """Return the estimate; ``idle_w`` and ``limit_w`` where they are known."""
        if self._seen_j > 0 and self._seen_j >= _SEEN * self._by_power_j.sum():
            return Underfilled(self._low_j, f"SM activity below {percent(FILLED_SM, 0)}")
        if limit_w is None:
            return Underfilled(None, why="neither the SM activity nor the power limit is known")
        if idle_w is not None:
            source = "measured idle power"
        elif self.lowest_w < _IDLE_LIMIT * limit_w:
            idle_w, source = self.lowest_w, "lowest power of the run as idle power"
        else:
            return Underfilled(None, why="needs the idle power: no baseline was measured, and the GPU was never idle")
        threshold_w = idle_w + _FILLED_POWER * max(limit_w - idle_w, 0.0)
        up_to_j = np.concatenate([[0.0], self._by_power_j.cumsum()])
        below_j = float(np.interp(threshold_w / _BIN_W, np.arange(_BINS + 1), up_to_j))
        return Underfilled(below_j, f"power below idle + {percent(_FILLED_POWER, 0)} of the way to the limit; {source}")


def add_up(estimates: Sequence[Underfilled]) -> Underfilled:
    """Return the sum over GPUs; of an incomplete one, only the reason."""
    if not estimates:
        return Underfilled(None, why="no GPU is measured")
    joules = [one.energy_j for one in estimates if one.energy_j is not None]
    if len(joules) < len(estimates):
        return Underfilled(None, why=next(one.why for one in estimates if one.energy_j is None))
    return Underfilled(sum(joules), " / ".join(dict.fromkeys(one.how for one in estimates)))


def _share(t_ns: NDArray[np.int64], working: Sequence[Interval]) -> NDArray[np.float64]:
    """Return the share of each stretch between times that intervals cover; they may overlap each other."""
    if not working:
        return np.zeros(len(t_ns) - 1)
    starts, ends = np.array(sorted(working), np.int64).T
    reach = np.maximum.accumulate(ends)
    starts = np.maximum(starts, np.concatenate([starts[:1], reach[:-1]]))
    lengths = np.maximum(reach - starts, 0)
    edges = np.stack([starts, starts + lengths], axis=1).ravel()
    covered = np.repeat(np.concatenate([[0], np.cumsum(lengths)]), 2)[1:-1]
    width = np.diff(t_ns)
    return np.asarray(np.diff(np.interp(t_ns, edges, covered)) / np.maximum(width, 1))


def _nearest_sm(t_ns: NDArray[np.int64], readings: NDArray[np.void]) -> NDArray[np.float64]:
    """Return the SM activity at each time: of the reading over it, or the next one nearby; NaN without one."""
    if not len(readings):
        return np.full(len(t_ns), np.nan)
    row = np.minimum(np.searchsorted(readings["end_ns"], t_ns), len(readings) - 1)
    away_ns = np.maximum(readings["start_ns"][row] - t_ns, t_ns - readings["end_ns"][row])
    return np.asarray(np.where(away_ns <= _NEARBY_NS, readings["sm"][row], np.nan))
