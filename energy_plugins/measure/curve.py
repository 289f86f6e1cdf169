"""Samples, work and counter readings of one stretch of time become a piece of the energy curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.attribution import Z95, EnergyCurve, Times, Values
from energy_plugins.measure.blind import Blind
from energy_plugins.measure.cells import Cells
from energy_plugins.measure.power_sensors import PowerSensor
from energy_plugins.measure.response import LevelFit, Levels, Segments, occupancy

_PLAUSIBLE = 0.2
"""By how much of it the counter may always be off the samples' integral: about what aliasing can do to the sample
buffer (`ErrorModel.unanchored`). Further only within the 95 % of sensors that know less."""
UNKNOWN_MOST_W = 1000.0
"""What a GPU may draw that does not tell its highest power limit."""
_OVERSHOOT = 1.05
"""A reading further above the highest limit than that shows that the limit does not bind, and the most is not known."""
_SHORT_NS = 500_000_000
"""Blocks shorter than this hold too few samples for their integral to say anything about the counter."""


@dataclass(frozen=True)
class Sum:
    """What the counter says of a block: ``energy_j`` between ``start_ns`` and the block's end.

    Errors are of the two instants (ns); ``relative_error`` is what all sums of this counter are off by alike.
    """

    energy_j: float
    start_ns: int
    start_error_ns: float
    end_error_ns: float
    relative_error: float = 0.0


@dataclass(frozen=True)
class Stretch:
    """A block of time to settle: what training was doing in it, and what the counter says of it, if it does."""

    start_ns: int
    end_ns: int
    segments: Segments
    total: Sum | None = None


class CurveBuilder:
    """Settles the energy curve of one GPU block by block; keeps the samples that the next block still needs."""

    def __init__(self, sensor: PowerSensor, max_power_w: float | None = None) -> None:
        self._sensor = sensor
        self._highest_w = max_power_w or UNKNOWN_MOST_W
        self._response = sensor.response
        self._model = sensor.model
        self._fit = LevelFit(sensor.model.doubt, self._highest_w if sensor.model.blind else None)
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
        if len(power_w) and power_w.max() > _OVERSHOOT * self._highest_w:
            self._highest_w = max(UNKNOWN_MOST_W, float(power_w.max()))
            self._fit.highest_w = self._highest_w if self._model.blind else None
        self._t_ns = np.concatenate([self._t_ns, t_ns])
        self._power_w = np.concatenate([self._power_w, power_w])

    def forget(self, before_ns: int) -> None:
        """Drop samples that no block after ``before_ns`` needs; the last few always stay."""
        keep = int(np.searchsorted(self._t_ns, before_ns - self._sensor.around_ns))
        keep = min(keep, max(0, len(self._t_ns) - 10))
        self._t_ns, self._power_w = self._t_ns[keep:], self._power_w[keep:]

    def settle(self, stretch: Stretch) -> EnergyCurve:
        """Return the curve of ``stretch`` and learn from it."""
        return self._build(stretch, learn=True)

    def preview(self, stretch: Stretch) -> EnergyCurve:
        """Return what the curve of ``stretch`` will about be, from what is known now."""
        return self._build(stretch, learn=False)

    def _build(self, stretch: Stretch, *, learn: bool) -> EnergyCurve:
        delay_ns, gap_ns, segments = self._response.delay_ns, self._sensor.gap_ns, stretch.segments
        around_ns = self._sensor.around_ns
        first = np.searchsorted(self._t_ns, stretch.start_ns + delay_ns - around_ns)
        last = np.searchsorted(self._t_ns, stretch.end_ns + delay_ns + around_ns)
        t_ns, power_w = self._t_ns[first:last], self._power_w[first:last]
        if not len(t_ns):
            return unmeasured(stretch)
        kinds, column = np.unique(labels(segments, gap_ns), return_inverse=True)
        shares = occupancy(self._response, t_ns, Segments(segments.edges_ns, column), len(kinds))
        seen_ns = t_ns - delay_ns
        inside = (seen_ns >= stretch.start_ns) & (seen_ns < stretch.end_ns)
        if learn and inside.any():
            levels = self._levels = self._fit.update(shares[inside], kinds, power_w[inside], self._news(t_ns))
        else:
            levels = self._known(kinds, power_w)
        expected_w = np.maximum(shares @ levels.power_w, 1e-3)
        cells = Cells.of(seen_ns, power_w, expected_w, self._sensor)
        return self._curve(stretch, column, levels, cells)

    def _known(self, kinds: NDArray[np.int64], power_w: Values) -> Levels:
        mean_w, spread_w = float(power_w.mean()), float(np.ptp(power_w)) + 1.0
        level, error = np.full(len(kinds), mean_w), np.full(len(kinds), spread_w)
        if self._levels is not None:
            known, here, there = np.intersect1d(kinds, self._levels.kinds, return_indices=True)
            if len(known):
                level[:] = self._levels.power_w.mean()
                level[here], error[here] = self._levels.power_w[there], self._levels.error_w[there]
        return Levels(kinds, level, error)

    def _curve(self, stretch: Stretch, column: NDArray[np.int64], levels: Levels, cells: Cells) -> EnergyCurve:
        start_ns, end_ns, segments, total = stretch.start_ns, stretch.end_ns, stretch.segments, stretch.total
        cuts = np.concatenate(
            [cells.edges_ns, segments.edges_ns, np.array([total.start_ns] if total else [], np.int64)]
        )
        knots = np.unique(np.concatenate([[start_ns, end_ns], cuts[(cuts > start_ns) & (cuts < end_ns)]]))
        middle = knots[:-1] + np.diff(knots) // 2
        cell = np.clip(np.searchsorted(cells.edges_ns, middle, side="right") - 1, 0, len(cells.ratio) - 1)
        segment = segments.at(middle)
        length_s = np.diff(knots) * 1e-9
        measured = (
            cells.measured[cell]
            & (middle >= cells.edges_ns[0] - self._sensor.extend_ns)
            & (middle <= cells.edges_ns[-1] + self._sensor.extend_ns)
        )
        power_w = levels.power_w[column[segment]] * cells.ratio[cell]
        variance = np.where(
            measured,
            (self._model.spread * cells.variability_w2[cell] * cells.width_s[cell] + self._unseen_w2s(power_w))
            * length_s,
            (0.5 * power_w * length_s) ** 2,
        )
        sum_ = self._weigh(power_w, knots, variance, total)
        power_w = np.where(measured | (sum_.trust > 0), power_w * sum_.scale, 0.0)
        jump_w = _local_range(power_w)
        blurred_s = np.minimum(self._response.blur_s, np.diff(segments.edges_ns)[segment] * 1e-9)
        level_j = blurred_s * levels.error_w[column[segment]]
        blind = self._blind()
        shift_j = np.sqrt((self._model.timing_s * jump_w) ** 2 + np.where(jump_w > 0, level_j, 0.0) ** 2)
        return EnergyCurve(
            t_ns=knots,
            energy_j=cumulative(power_w * length_s),
            variance_j2=cumulative(variance),
            covered_ns=cumulative(np.where(measured, np.diff(knots), 0.0)),
            cut_j2=self._model.cut * cells.variability_w2[cell] * np.minimum(cells.width_s[cell], 0.1) ** 2,
            shift_j=shift_j,
            trust=sum_.trust,
            bias=sum_.bias,
            start_error_j=sum_.start_error_j,
            end_error_j=sum_.end_error_j,
            coherent_s=self._model.coherent_s,
            sum_error=sum_.sum_error,
            blind=blind,
            blind_share=blind.shares(column[segment], length_s, self._fit.unexplained),
        )

    def _news(self, t_ns: Times) -> float:
        if not self._model.blind or len(t_ns) < 2:
            return 1.0
        return min(float(np.median(np.diff(t_ns))) * 1e-9 / self._response.window_s, 1.0)

    def _blind(self) -> Blind:
        return Blind(self._response.window_s, self._highest_w) if self._model.blind else Blind()

    def _unseen_w2s(self, power_w: Values) -> Values:
        return np.asarray((self._model.unseen * power_w) ** 2 * self._model.coherent_s)

    def _weigh(self, power_w: Values, knots: Times, variance_j2: Values, total: Sum | None) -> _Weighed:
        """Weigh the counter's sum against the samples' own, by their variances."""
        length_s = (knots[-1] - knots[0]) * 1e-9
        unanchored = self._unanchored(cumulative(power_w * np.diff(knots) * 1e-9)[-1] / length_s, length_s)
        if total is None:
            return _Weighed(self.scale, 0.0, unanchored)
        inside = knots[:-1] >= total.start_ns
        shape_j = float((power_w * np.diff(knots) * 1e-9)[inside].sum())
        start_error_j = float(power_w[inside][0]) * total.start_error_ns * 1e-9
        end_error_j = float(power_w[-1]) * total.end_error_ns * 1e-9
        ratio = total.energy_j / shape_j if shape_j > 0 else 0.0
        long = knots[-1] - total.start_ns >= _SHORT_NS
        of_samples = float(variance_j2[inside].sum()) + (unanchored * shape_j) ** 2
        of_sum = start_error_j**2 + end_error_j**2 + (total.relative_error * total.energy_j) ** 2
        # What a sensor smears into the block or out of it explains a difference, too.
        smeared_j = self._response.blur_s / 2 * self._highest_w
        plausible_j = max(_PLAUSIBLE * shape_j, Z95 * math.sqrt(of_samples + of_sum)) + smeared_j
        if not ratio > 0 or (long and abs(total.energy_j - shape_j) > plausible_j):
            return _Weighed(self.scale, 0.0, unanchored)
        trust = of_samples / (of_samples + of_sum)
        scale = trust * ratio + (1.0 - trust) * self.scale
        if long:
            self.scale = scale
        bias = trust * min(abs(ratio - 1.0), 0.3) + (1.0 - trust) * unanchored
        return _Weighed(scale, trust, bias, start_error_j, end_error_j, trust * total.relative_error)

    def _unanchored(self, mean_w: float, length_s: float) -> float:
        """Return the relative standard error of a sum that no counter confirms."""
        known = float(np.hypot(self._model.unanchored, self._model.hidden_s / length_s))
        if self._model.unwatched == 0 or mean_w <= 0:
            return known
        highest_w = max(self._highest_w, mean_w)
        off_w = self._model.unwatched * max(mean_w, highest_w - mean_w)
        return float(max(off_w / mean_w / Z95, known))


@dataclass(frozen=True)
class _Weighed:
    """A block's sum: what to scale the samples by, and how good that is."""

    scale: float
    trust: float
    bias: float
    start_error_j: float = 0.0
    end_error_j: float = 0.0
    sum_error: float = 0.0


def unmeasured(stretch: Stretch) -> EnergyCurve:
    """Return the curve of a block without samples: the counter's sum if there is one, and nothing is covered."""
    energy_j = stretch.total.energy_j if stretch.total else 0.0
    return EnergyCurve(
        t_ns=np.array([stretch.start_ns, stretch.end_ns], np.int64),
        energy_j=np.array([0.0, energy_j]),
        variance_j2=np.array([0.0, energy_j**2]),
        covered_ns=np.zeros(2),
        cut_j2=np.zeros(1),
        shift_j=np.zeros(1),
        trust=0.0,
        bias=1.0,
        start_error_j=0.0,
        end_error_j=0.0,
    )


def labels(segments: Segments, gap_ns: int) -> NDArray[np.int64]:
    """Return what should share a level.

    Segments of one kind, the slivers among them apart from those that samples resolve by themselves.
    """
    return np.asarray(2 * segments.kinds + (np.diff(segments.edges_ns) > gap_ns))


def cumulative(values: Values) -> Values:
    """Return the running sum of ``values``, from 0 on: one more than there are."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _local_range(values: Values) -> Values:
    padded = np.pad(values, 1, mode="edge")
    around = np.stack([padded[:-2], padded[1:-1], padded[2:]])
    return np.asarray(around.max(0) - around.min(0))
