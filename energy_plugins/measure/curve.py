"""Samples, work and counter readings of one stretch of time become a piece of the energy curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.attribution import EnergyCurve, Times, Values
from energy_plugins.measure.response import LevelFit, Levels, Response, Segments, occupancy

GAP_NS = 120_000_000
"""Samples further apart than this leave unmeasured time between them (six sample periods of an H200)."""
_EXTEND_NS = 250_000_000
"""How far the last sample may stand in for what came after it: the longest delivery delay seen (0.2 s) and some."""
_PLAUSIBLE = (0.7, 1.4)
"""Counter over samples' integral; aliasing explains a few per cent, nothing explains more than this."""
_SHORT_NS = 500_000_000
"""Blocks shorter than this hold too few samples for their integral to say anything about the counter."""


@dataclass(frozen=True)
class ErrorModel:
    """Constants of the error bound, calibrated against simulator truth by ``benchmarks/simulator_accuracy.py`` (docs/measuring.md)."""

    noise: float = 0.003
    """Relative noise of one sample."""
    spread: float = 0.5
    """Variance of one sample period's energy, in units of (local variability x period)^2."""
    cut: float = 0.15
    """Variance of cutting inside a period, in the same units."""
    timing_s: float = 0.0015
    """Standard error of a sample's place in time."""
    unanchored: float = 0.02
    """Relative error of a sum that no counter confirms."""


@dataclass(frozen=True)
class Sum:
    """What the counter says of a block: ``energy_j`` between ``start_ns`` and the block's end; errors are of the two instants (ns)."""

    energy_j: float
    start_ns: int
    start_error_ns: float
    end_error_ns: float


class CurveBuilder:
    """Settles the energy curve of one GPU block by block; keeps the samples that the next block still needs."""

    def __init__(self, response: Response, model: ErrorModel | None = None) -> None:
        self._response = response
        self._model = model or ErrorModel()
        self._fit = LevelFit()
        self._levels: Levels | None = None
        self._t_ns = np.empty(0, np.int64)
        self._power_w = np.empty(0)
        self.scale = 1.0
        """Counter over samples' integral in the last anchored block."""

    @property
    def horizon_ns(self) -> int:
        """Time up to which samples tell the power, 0 before the first."""
        return int(self._t_ns[-1]) - self._response.delay_ns if len(self._t_ns) else 0

    @property
    def last_w(self) -> float:
        """The newest sample, NaN before the first."""
        return float(self._power_w[-1]) if len(self._t_ns) else float("nan")

    def add(self, t_ns: Times, power_w: Values) -> None:
        """Take newer samples."""
        self._t_ns = np.concatenate([self._t_ns, t_ns])
        self._power_w = np.concatenate([self._power_w, power_w])

    def forget(self, before_ns: int) -> None:
        """Drop samples that no block after ``before_ns`` needs; the last few always stay."""
        keep = int(np.searchsorted(self._t_ns, before_ns - GAP_NS))
        keep = min(keep, max(0, len(self._t_ns) - 10))
        self._t_ns, self._power_w = self._t_ns[keep:], self._power_w[keep:]

    def settle(self, start_ns: int, end_ns: int, segments: Segments, total: Sum | None) -> EnergyCurve:
        """Return the curve from ``start_ns`` to ``end_ns`` and learn from it."""
        return self._build(start_ns, end_ns, segments, total, learn=True)

    def preview(self, start_ns: int, end_ns: int, segments: Segments) -> EnergyCurve:
        """Return what the curve will about be, from what is known now."""
        return self._build(start_ns, end_ns, segments, None, learn=False)

    def _build(self, start_ns: int, end_ns: int, segments: Segments, total: Sum | None, *, learn: bool) -> EnergyCurve:
        delay_ns = self._response.delay_ns
        first = np.searchsorted(self._t_ns, start_ns + delay_ns - GAP_NS)
        last = np.searchsorted(self._t_ns, end_ns + delay_ns + GAP_NS)
        t_ns, power_w = self._t_ns[first:last], self._power_w[first:last]
        if not len(t_ns):
            return _unmeasured(start_ns, end_ns, total)
        kinds, column = np.unique(_labels(segments), return_inverse=True)
        shares = occupancy(self._response, t_ns, Segments(segments.edges_ns, column), len(kinds))
        levels = self._learn(shares, kinds, t_ns, power_w, start_ns, end_ns) if learn else self._known(kinds, power_w)
        expected_w = np.maximum(shares @ levels.power_w, 1e-3)
        cells = _Cells.of(t_ns - delay_ns, power_w, power_w / expected_w, expected_w, self._model)
        return self._curve(start_ns, end_ns, segments, column, levels, cells, total)

    def _learn(
        self, shares: Values, kinds: NDArray[np.int64], t_ns: Times, power_w: Values, start_ns: int, end_ns: int
    ) -> Levels:
        seen_ns = t_ns - self._response.delay_ns
        inside = (seen_ns >= start_ns) & (seen_ns < end_ns)
        if not inside.any():
            return self._known(kinds, power_w)
        self._levels = self._fit.update(shares[inside], kinds, power_w[inside])
        return self._levels

    def _known(self, kinds: NDArray[np.int64], power_w: Values) -> Levels:
        mean_w, spread_w = float(power_w.mean()), float(np.ptp(power_w)) + 1.0
        level, error = np.full(len(kinds), mean_w), np.full(len(kinds), spread_w)
        if self._levels is not None:
            known, here, there = np.intersect1d(kinds, self._levels.kinds, return_indices=True)
            if len(known):
                level[:] = self._levels.power_w.mean()
                level[here], error[here] = self._levels.power_w[there], self._levels.error_w[there]
        return Levels(kinds, level, error)

    def _curve(
        self,
        start_ns: int,
        end_ns: int,
        segments: Segments,
        column: NDArray[np.int64],
        levels: Levels,
        cells: _Cells,
        total: Sum | None,
    ) -> EnergyCurve:
        cuts = np.concatenate([cells.edges_ns, segments.edges_ns, np.array([total.start_ns] if total else [], np.int64)])
        knots = np.unique(np.concatenate([[start_ns, end_ns], cuts[(cuts > start_ns) & (cuts < end_ns)]]))
        middle = knots[:-1] + np.diff(knots) // 2
        cell = np.clip(np.searchsorted(cells.edges_ns, middle, side="right") - 1, 0, len(cells.ratio) - 1)
        segment = np.clip(np.searchsorted(segments.edges_ns, middle, side="right") - 1, 0, len(column) - 1)
        length_s = np.diff(knots) * 1e-9
        measured = (
            cells.measured[cell]
            & (middle >= cells.edges_ns[0] - _EXTEND_NS)
            & (middle <= cells.edges_ns[-1] + _EXTEND_NS)
        )
        power_w = levels.power_w[column[segment]] * cells.ratio[cell]
        variance = np.where(
            measured,
            self._model.spread * cells.variability_w2[cell] * cells.width_s[cell] * length_s,
            (0.5 * power_w * length_s) ** 2,
        )
        sum_ = self._weigh(power_w, knots, variance, total)
        power_w = np.where(measured | (sum_.trust > 0), power_w * sum_.scale, 0.0)
        jump_w = _local_range(power_w)
        blurred_s = np.minimum(self._response.lag_s, np.diff(segments.edges_ns)[segment] * 1e-9)
        level_j = blurred_s * levels.error_w[column[segment]]
        cut = (
            self._model.cut * cells.variability_w2[cell] * np.minimum(cells.width_s[cell], 0.1) ** 2
            + (self._model.timing_s * jump_w) ** 2
            + np.where(jump_w > 0, level_j, 0.0) ** 2
        )
        return EnergyCurve(
            t_ns=knots,
            energy_j=_cumulative(power_w * length_s),
            variance_j2=_cumulative(variance),
            covered_ns=_cumulative(np.where(measured, np.diff(knots), 0.0)),
            cut_j2=cut,
            trust=sum_.trust,
            bias=sum_.bias,
            start_error_j=sum_.start_error_j,
            end_error_j=sum_.end_error_j,
        )

    def _weigh(self, power_w: Values, knots: Times, variance_j2: Values, total: Sum | None) -> _Weighed:
        """Weigh the counter's sum against the samples' own, by their variances."""
        if total is None:
            return _Weighed(self.scale, 0.0, self._model.unanchored)
        inside = knots[:-1] >= total.start_ns
        shape_j = float((power_w * np.diff(knots) * 1e-9)[inside].sum())
        start_error_j = float(power_w[inside][0]) * total.start_error_ns * 1e-9
        end_error_j = float(power_w[-1]) * total.end_error_ns * 1e-9
        ratio = total.energy_j / shape_j if shape_j > 0 else 0.0
        long = knots[-1] - total.start_ns >= _SHORT_NS
        if not ratio > 0 or (long and not _PLAUSIBLE[0] <= ratio <= _PLAUSIBLE[1]):
            return _Weighed(self.scale, 0.0, self._model.unanchored)
        of_samples = float(variance_j2[inside].sum()) + (self._model.unanchored * shape_j) ** 2
        trust = of_samples / (of_samples + start_error_j**2 + end_error_j**2)
        scale = trust * ratio + (1.0 - trust) * self.scale
        if long:
            self.scale = scale
        bias = trust * min(abs(ratio - 1.0), 0.3) + (1.0 - trust) * self._model.unanchored
        return _Weighed(scale, trust, bias, start_error_j, end_error_j)


@dataclass(frozen=True)
class _Weighed:
    """A block's sum: what to scale the samples by, and how good that is."""

    scale: float
    trust: float
    bias: float
    start_error_j: float = 0.0
    end_error_j: float = 0.0


@dataclass(frozen=True)
class _Cells:
    """The stretch of time that each sample speaks for."""

    edges_ns: Times
    ratio: Values
    """Measured over expected power."""
    measured: NDArray[np.bool_]
    variability_w2: Values
    """Half the mean square of neighbouring samples' differences, relative to what was expected."""
    width_s: Values

    @classmethod
    def of(cls, seen_ns: Times, power_w: Values, ratio: Values, expected_w: Values, model: ErrorModel) -> _Cells:
        """Return cells that meet half way between samples; a gap gets a cell of its own."""
        apart = np.diff(seen_ns)
        half = int(np.median(apart)) // 2 if len(apart) else 10_000_000
        difference = np.diff(ratio) * (expected_w[1:] + expected_w[:-1]) / 2
        local = _smooth(difference**2 / 2, len(ratio)) + (model.noise * power_w) ** 2
        gap = np.flatnonzero(apart > GAP_NS)
        edges = np.concatenate([[seen_ns[0] - half], seen_ns[:-1] + apart // 2, [seen_ns[-1] + half]])
        if not len(gap):
            return cls(edges, ratio, np.ones(len(ratio), bool), local, np.diff(edges) * 1e-9)
        edges = np.concatenate([np.delete(edges, gap + 1), seen_ns[gap] + half, seen_ns[gap + 1] - half])
        edges.sort()
        at = gap + 1
        inserted = np.insert(np.ones(len(ratio), bool), at, False)
        between = (ratio[gap] * expected_w[gap] + ratio[gap + 1] * expected_w[gap + 1]) / (
            expected_w[gap] + expected_w[gap + 1]
        )
        return cls(edges, np.insert(ratio, at, between), inserted, np.insert(local, at, 0.0), np.diff(edges) * 1e-9)


def _unmeasured(start_ns: int, end_ns: int, total: Sum | None) -> EnergyCurve:
    """Return the curve of a block without samples: the counter's sum if there is one, spread evenly; nothing is covered."""
    energy_j = total.energy_j if total else 0.0
    return EnergyCurve(
        t_ns=np.array([start_ns, end_ns], np.int64),
        energy_j=np.array([0.0, energy_j]),
        variance_j2=np.array([0.0, energy_j**2]),
        covered_ns=np.zeros(2),
        cut_j2=np.zeros(1),
        trust=0.0,
        bias=1.0,
        start_error_j=0.0,
        end_error_j=0.0,
    )


def _labels(segments: Segments) -> NDArray[np.int64]:
    """Return what should share a level: segments of one kind, the slivers among them apart from those that samples resolve by themselves."""
    return np.asarray(2 * segments.kinds + (np.diff(segments.edges_ns) > GAP_NS))


def _cumulative(values: Values) -> Values:
    return np.concatenate([[0.0], np.cumsum(values)])


def _local_range(values: Values) -> Values:
    padded = np.pad(values, 1, mode="edge")
    around = np.stack([padded[:-2], padded[1:-1], padded[2:]])
    return np.asarray(around.max(0) - around.min(0))


def _smooth(values: Values, length: int) -> Values:
    """Return the mean of the differences within two samples of each of ``length`` samples."""
    if not len(values):
        return np.zeros(length)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.clip(np.arange(length) - 3, 0, len(values) - 1), np.clip(np.arange(length) + 3, 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))
