"""Joules of spans: a cumulative energy curve with its uncertainty, and differences of its points."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.blind import Blind, most_off_j

Times = NDArray[np.int64]
Values = NDArray[np.float64]

Z95 = 1.96
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class EnergyCurve:
    """Energy of one GPU over one block of time, between knots linear.

    Where the counter gives a block's sum, its sampling variance vanishes at both ends (a bridge), in so far as the sum
    is trusted. All cumulative columns start at zero at the block's start.
    """

    t_ns: Times
    energy_j: Values
    """Cumulative joules at each knot."""
    variance_j2: Values
    """Cumulative sampling variance at each knot."""
    covered_ns: Values
    """Cumulative measured time at each knot."""
    cut_j2: Values
    """Variance of cutting the curve between knots ``j`` and ``j + 1``."""
    shift_j: Values
    """Standard error there from what is wrong in the same way at every cut of this kind: the sensor's delay, the
    kinds' levels."""
    trust: float
    """How far the block's sum is the counter's (1) or the samples' own (0): their precisions weighed."""
    bias: float
    """Relative error that samples may share over a stretch of the block; from their disagreement with the counter."""
    start_error_j: float
    end_error_j: float
    """Standard error of the energy at the block's ends, from the age of the counter readings."""
    coherent_s: float = 0.0
    """Stretches shorter than this share one error of the sampling instead of gathering many."""
    sum_error: float = 0.0
    """Relative standard error of the block's sum that all blocks share."""
    blind: Blind = field(default_factory=Blind)
    blind_share: Values = field(default_factory=lambda: np.zeros(1))
    """The part of what the sensor hides that marks leave open, between knots ``j`` and ``j + 1``; or one 0."""
    level_j: Values = field(default_factory=lambda: np.zeros(1))
    """Standard error of what begins at knot ``j`` that all of its kind share, where only sums are known; or one 0."""


@dataclass(frozen=True)
class Points:
    """A run's energy curve at given times; columns of equal length."""

    energy_j: Values
    covered_ns: Values
    t_ns: Times
    block: NDArray[np.int64]
    head_j2: Values
    """Sampling variance between the block's start and the point, before any bridge."""
    block_j2: Values
    """Sampling variance of the whole block."""
    block_j: Values
    """Energy of the whole block."""
    into_j: Values
    """Energy between the block's start and the point."""
    cut_j2: Values
    shift_j: Values
    before_j2: Values
    """Sampling variance that no counter took away, of all blocks before this one."""
    before_bias_j: Values
    """Error of the samples' scale that no counter took away, of all blocks before this one; they share it."""
    trust: Values
    bias: Values
    start_error_j: Values
    end_error_j: Values
    coherent_s: Values
    sum_error: Values
    hidden_j: Values
    """The most by which a cut here can be off for what the sensor hides."""
    blind_w: Values
    """Highest power that it may hide."""
    blind_share: Values
    level_j: Values

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Points:
        """Return the points of ``rows``."""
        return Points(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, parts: list[Points]) -> Points:
        """Return the points of ``parts``, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class SpanEnergy:
    """Energy of spans: joules (NaN where nothing was measured).

    95 % error bound, and the measured share of each span's time.
    """

    joules: Values
    error_bound_j: Values
    coverage: Values
    shift_j: Values
    """The part of the standard error that all spans of a kind share, so that it adds up instead of averaging out: what
    the sensor does at every cut, and the scale of samples that no counter confirms."""

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> SpanEnergy:
        """Return the spans of ``rows``."""
        return SpanEnergy(self.joules[rows], self.error_bound_j[rows], self.coverage[rows], self.shift_j[rows])


@dataclass(frozen=True)
class Drawn:
    """What one GPU drew between neighbouring times, of which there is one more than of the other columns."""

    t_ns: Times
    energy_j: Values
    measured: NDArray[np.bool_]


class RunCurve:
    """The blocks of one GPU's curve that are still needed, and what went before them."""

    def __init__(self, start_ns: int) -> None:
        self.settled_ns = start_ns
        self.energy_j = 0.0
        self._covered_ns = 0.0
        self._before_j2 = 0.0
        self._before_bias_j = 0.0
        self._last: EnergyCurve | None = None
        self._count = 0
        self._blocks: list[tuple[EnergyCurve, float, float, float, float, int]] = []

    @property
    def started(self) -> bool:
        """Whether there is any block."""
        return bool(self._blocks)

    def append(self, block: EnergyCurve) -> None:
        """Continue the curve with ``block``, which starts where the curve ended.

        The error of a counter reading cancels between the block that it ends and the one that it starts, in so far as
        both trust it.
        """
        if self._last is not None:
            aged_j = max(self._last.end_error_j, block.start_error_j)
            self._before_j2 += ((self._last.trust - block.trust) * aged_j) ** 2
        self._blocks.append((block, self.energy_j, self._covered_ns, self._before_j2, self._before_bias_j, self._count))
        self.energy_j += float(block.energy_j[-1])
        self._covered_ns += float(block.covered_ns[-1])
        self._before_j2 += (1.0 - block.trust) * float(block.variance_j2[-1])
        self._before_bias_j += (1.0 - block.trust) * block.bias * float(block.energy_j[-1])
        self._last = block
        self._count += 1
        self.settled_ns = int(block.t_ns[-1])

    def forget(self, before_ns: int) -> None:
        """Drop blocks that end before ``before_ns``; the last one stays."""
        while len(self._blocks) > 1 and self._blocks[0][0].t_ns[-1] < before_ns:
            del self._blocks[0]

    def at(self, t_ns: Times) -> Points:
        """Return the curve at ``t_ns``: NaN at times that were forgotten, the end of the curve at times beyond it."""
        starts = np.array([entry[0].t_ns[0] for entry in self._blocks], np.int64)
        where = np.clip(np.searchsorted(starts, t_ns, side="right") - 1, 0, len(self._blocks) - 1)
        order = np.argsort(where, kind="stable")
        parts = [self._in_block(int(row), t_ns[where == row]) for row in np.unique(where)]
        joined = Points.join(parts)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        points = joined.take(back)
        return replace(points, energy_j=np.where(t_ns < starts[0], np.nan, points.energy_j))

    def drawn(self, start_ns: int, end_ns: int) -> Drawn:
        """Return what was drawn between two settled times that are not forgotten, as finely as it is known."""
        t_ns = np.concatenate([block.t_ns for block, *_ in self._blocks])
        energy_j = np.concatenate([block.energy_j + before_j for block, before_j, *_ in self._blocks])
        covered_ns = np.concatenate([block.covered_ns + before_ns for block, _, before_ns, *_ in self._blocks])
        times = np.unique(np.concatenate([[start_ns, end_ns], t_ns[(t_ns > start_ns) & (t_ns < end_ns)]]))
        measured = np.diff(np.interp(times, t_ns, covered_ns)) > 0
        return Drawn(times, np.diff(np.interp(times, t_ns, energy_j)), measured)

    def _in_block(self, row: int, t_ns: Times) -> Points:
        block, energy_j, covered_ns, before_j2, before_bias_j, number = self._blocks[row]
        t_ns = np.clip(t_ns, block.t_ns[0], block.t_ns[-1])
        cell = np.clip(np.searchsorted(block.t_ns, t_ns, side="right") - 1, 0, len(block.t_ns) - 2)
        share = (t_ns - block.t_ns[cell]) / np.maximum(np.diff(block.t_ns)[cell], 1)
        inside = {
            name: column[cell] + share * (column[cell + 1] - column[cell])
            for name, column in (("e", block.energy_j), ("v", block.variance_j2), ("c", block.covered_ns))
        }
        ends = (cell == 0) & (share == 0) | (cell == len(block.t_ns) - 2) & (share == 1)
        full = np.ones(len(t_ns))
        # Where the block's sum is known, a cut inside it is not off by more than lies on its smaller side.
        most_j = np.minimum(inside["e"], block.energy_j[-1] - inside["e"]) / max(block.trust, 1e-3)
        known_j = _from_ends_j(block, t_ns, inside["e"])
        return Points(
            energy_j=energy_j + inside["e"],
            covered_ns=covered_ns + inside["c"],
            t_ns=t_ns,
            block=np.full(len(t_ns), number),
            head_j2=inside["v"],
            block_j2=full * block.variance_j2[-1],
            block_j=full * block.energy_j[-1],
            into_j=inside["e"],
            cut_j2=np.where(ends, 0.0, np.minimum(block.cut_j2[cell], most_j**2)),
            shift_j=np.where(ends, 0.0, np.minimum(block.shift_j[cell], known_j / Z95)),
            before_j2=full * before_j2,
            before_bias_j=full * before_bias_j,
            trust=full * block.trust,
            bias=full * block.bias,
            start_error_j=full * block.start_error_j,
            end_error_j=full * block.end_error_j,
            coherent_s=full * block.coherent_s,
            sum_error=full * block.sum_error,
            hidden_j=_hidden_j(block, cell, known_j),
            blind_w=full * block.blind.highest_w,
            blind_share=block.blind_share[np.minimum(cell, len(block.blind_share) - 1)],
            level_j=block.level_j[np.minimum(cell, len(block.level_j) - 1)],
        )


def attribute(start: Points, end: Points) -> SpanEnergy:
    """Return the energy between pairs of points of one GPU's curve.

    The variance of a window inside an anchored block is that of a bridge: it shrinks as the window grows to the whole
    block. Windows over several blocks leave only the two partial ones; full anchored blocks between them are as exact
    as the counter.
    """
    same = start.block == end.block
    variance = np.where(same, _inside_j2(start, end), _across_j2(start, end))
    coherent = _coherent(start, end)
    variance = coherent * variance + coherent**2 * (start.cut_j2 + end.cut_j2) + (_hiding_j(start, end) / Z95) ** 2
    # A shifted sensor takes from a span at one end what it gives at the other: the worse of the two ends stands for
    # both.
    shift_j = np.maximum(start.shift_j, end.shift_j)
    shift_j = np.hypot(shift_j, start.level_j)
    shift_j = np.hypot(shift_j, np.maximum(start.sum_error, end.sum_error) * (end.energy_j - start.energy_j))
    shift_j = np.hypot(shift_j, _unconfirmed_between_j(start, end))
    duration_ns = (end.t_ns - start.t_ns).astype(np.float64)
    covered_ns = end.covered_ns - start.covered_ns
    coverage = np.where(duration_ns > 0, np.minimum(covered_ns / np.maximum(duration_ns, 1.0), 1.0), 1.0)
    known = np.isfinite(end.energy_j - start.energy_j)
    coverage = np.where(known, coverage, 0.0)
    measured = known & ((coverage > 0) | (duration_ns == 0))
    return SpanEnergy(
        joules=np.where(measured, end.energy_j - start.energy_j, np.nan),
        error_bound_j=np.where(measured, Z95 * np.sqrt(np.maximum(variance, 0.0) + shift_j**2), np.nan),
        coverage=coverage,
        shift_j=shift_j,
    )


def _from_ends_j(block: EnergyCurve, t_ns: Times, into_j: Values) -> Values:
    """Return the most by which the curve can be off, where the block's sum is known and so is the highest power.

    The curve is known at both ends then, and further in not more is unknown than lies between.
    """
    if not block.blind.highest_w:
        return np.full(len(t_ns), np.inf)
    before_s, after_s = (t_ns - block.t_ns[0]) * 1e-9, (block.t_ns[-1] - t_ns) * 1e-9
    most_j = np.minimum(
        most_off_j(into_j, before_s, block.blind.highest_w),
        most_off_j(block.energy_j[-1] - into_j, after_s, block.blind.highest_w),
    )
    return most_j / max(block.trust, 1e-3)


def _hidden_j(block: EnergyCurve, cell: NDArray[np.int64], known_j: Values) -> Values:
    if not block.blind.window_s:
        return np.zeros(len(cell))
    share = block.blind_share[np.minimum(cell, len(block.blind_share) - 1)]
    power_w = (np.diff(block.energy_j) / np.maximum(np.diff(block.t_ns), 1) * 1e9)[cell]
    return share * np.minimum(block.blind.cut_j(power_w), known_j)


def _hiding_j(start: Points, end: Points) -> Values:
    """Return the most by which a window can be off for what the sensor hides: both cuts at worst, or all of it."""
    length_s = np.asarray((end.t_ns - start.t_ns) * 1e-9)
    most_j = most_off_j(end.energy_j - start.energy_j, length_s, np.maximum(start.blind_w, end.blind_w))
    return np.minimum(np.maximum(start.blind_share, end.blind_share) * most_j, start.hidden_j + end.hidden_j)


def _coherent(start: Points, end: Points) -> Values:
    """Return by how much of it a window falls short of what its error takes to gather, 1 if by nothing."""
    duration_s = (end.t_ns - start.t_ns) * 1e-9
    return np.minimum(duration_s / np.maximum(end.coherent_s, 1e-12), 1.0)


def _inside_j2(start: Points, end: Points) -> Values:
    drawn_j = end.into_j - start.into_j
    share = np.clip(drawn_j / np.maximum(end.block_j, 1e-9), 0.0, 1.0)
    aged = (end.trust * share) ** 2 * (end.start_error_j**2 + end.end_error_j**2)
    drift_j2 = _drift(drawn_j, share, end) - _unconfirmed_j(drawn_j, end) ** 2
    return _bridge(end.head_j2 - start.head_j2, end) + drift_j2 + aged


def _across_j2(start: Points, end: Points) -> Values:
    between = end.before_j2 - start.before_j2 - (1.0 - start.trust) * start.block_j2
    return _part_j2(start, tail=True) + _part_j2(end, tail=False) + between


def _part_j2(point: Points, *, tail: bool) -> Values:
    """Variance between a point and the end (``tail``) or start of its block."""
    drawn_j = point.block_j - point.into_j if tail else point.into_j
    share = np.clip(drawn_j / np.maximum(point.block_j, 1e-9), 0.0, 1.0)
    start_share, end_share = (share, 1.0 - share) if tail else (1.0 - share, share)
    aged = (start_share * point.start_error_j) ** 2 + (end_share * point.end_error_j) ** 2
    return (
        _bridge(point.block_j2 - point.head_j2 if tail else point.head_j2, point)
        + _drift(drawn_j, share, point)
        - _unconfirmed_j(drawn_j, point) ** 2
        + point.trust**2 * aged
    )


def _bridge(part_j2: Values, block: Points) -> Values:
    return np.asarray(part_j2 * (1.0 - block.trust * part_j2 / np.maximum(block.block_j2, 1e-30)))


def _drift(drawn_j: Values, share: Values, block: Points) -> Values:
    return np.asarray((block.bias * drawn_j) ** 2 * (1.0 - block.trust * share))


def _unconfirmed_between_j(start: Points, end: Points) -> Values:
    """Return the error of the samples' scale that no counter took away.

    It is the same wherever one looks: it adds up, over blocks and over spans, and never averages out.
    """
    into_j = end.before_bias_j + _unconfirmed_j(end.into_j, end)
    return np.asarray(np.abs(into_j - start.before_bias_j - _unconfirmed_j(start.into_j, start)))


def _unconfirmed_j(drawn_j: Values, block: Points) -> Values:
    return np.asarray((1.0 - block.trust) * block.bias * drawn_j)
