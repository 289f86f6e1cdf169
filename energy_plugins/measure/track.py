"""One GPU's readings on their way to settled joules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.attribution import Points, RunCurve
from energy_plugins.measure.counter import REFRESH_NS, Anchor, RefreshPhase
from energy_plugins.measure.curve import CurveBuilder, Stretch, Sum
from energy_plugins.measure.mean_sums import MeanSums
from energy_plugins.measure.power_sensors import COUNTER, PowerSensor
from energy_plugins.measure.response import Segments
from energy_plugins.measure.sums import SumBuilder

_MIN_BLOCK_NS = 2_000_000_000
"""Shortest stretch between two counter readings worth a block of its own, but for the run's ends."""
_SHARP_NS = 5e6
"""Standard error below which an anchor is good enough for a block of one refresh period."""
_SILENCE_NS = 15_000_000_000
"""A GPU silent for this long no longer holds up the others."""
_FREE_BLOCK_NS = 10_000_000_000
"""Length of blocks where no counter closes them."""


class GpuTrack:
    """Collects samples and counter readings of one GPU and settles its energy curve block by block.

    The curve begins at the last refresh of the counter before the window opens, if that is known, and ends at the
    first one after it closes. Without a counter, means over a second may stand in for it (`MeanSums`).
    """

    def __init__(
        self,
        sensor: PowerSensor,
        start_ns: int,
        max_power_w: float | None = None,
        *,
        mean: PowerSensor | None = None,
    ) -> None:
        self.curve = RunCurve(start_ns)
        self.sensor = sensor
        self.builder = SumBuilder(sensor) if sensor is COUNTER else CurveBuilder(sensor, max_power_w)
        self.faults: dict[str, int] = {}
        self._start_ns = start_ns
        self._phase = RefreshPhase()
        self._undated: list[tuple[int, int, float, int]] = []
        self._anchors: list[Anchor] = []
        self._means = MeanSums(start_ns) if mean else None
        self._is_mean = mean is sensor

    def take(self, power: NDArray[np.void], counter: NDArray[np.void]) -> None:
        """Take what the sampler's rings held (the columns of ``_native.Sampler.power`` and ``counter``)."""
        if len(power):
            self.builder.add(power["t_ns"].copy(), power["power_w"].copy())
            if self._is_mean:
                self.take_means(power)
        self._undated += counter.tolist()
        for before_ns, after_ns, _, edge in self._undated:
            if edge:
                self._phase.edge(before_ns, after_ns)
        if self._undated and (self._phase.known or self._undated[-1][0] - self._start_ns > _MIN_BLOCK_NS):
            for reading in self._undated:
                self._date(*reading)
            self._undated = []

    def take_means(self, means: NDArray[np.void]) -> None:
        """Take samples of the mean power over a second (``_native.Sampler.mean``), which stand in for a counter."""
        if self._means is not None:
            self._anchors += self._means.take(means)

    def _date(self, before_ns: int, after_ns: int, energy_j: float, edge: int) -> None:
        dated = self._phase.seen(before_ns, after_ns) if edge else self._phase.reading(before_ns, after_ns)
        if dated is None:
            return
        t_ns, error_ns = dated
        if self._anchors and energy_j < self._anchors[-1].energy_j:
            self._fault("the energy counter went backwards; that stretch rests on power samples alone")
            self._anchors.clear()
        if self._anchors and t_ns <= self._anchors[-1].t_ns + REFRESH_NS // 2:
            return
        self._anchors.append(Anchor(t_ns, energy_j, error_ns))
        if not self.curve.started and t_ns <= self._start_ns and error_ns < _SHARP_NS:
            self.curve = RunCurve(t_ns)

    def wants_edge(self, now_ns: int) -> bool:
        """Return whether the refresh of the counter should be looked at again."""
        return self._phase.stale(now_ns)

    def settle(self, upto_ns: int, segments: Segments) -> None:
        """Settle every block that ends by ``upto_ns`` and whose samples have arrived."""
        reach_ns = min(upto_ns, self._known_ns())
        for anchor in self._anchors.copy():
            opening = not self.curve.started and anchor.t_ns > self._start_ns and anchor.error_ns < _SHARP_NS
            if anchor.t_ns <= reach_ns and (opening or self.curve.settled_ns + _MIN_BLOCK_NS <= anchor.t_ns):
                self._block(anchor.t_ns, segments, anchor)
        if not self._anchors or self._anchors[-1].t_ns + 4 * _FREE_BLOCK_NS < reach_ns:
            while self.curve.settled_ns + _FREE_BLOCK_NS <= reach_ns:
                self._block(self.curve.settled_ns + _FREE_BLOCK_NS, segments, None)
        if upto_ns - max(reach_ns, self.curve.settled_ns) > _SILENCE_NS:
            self._fault("the GPU gave no power samples for a while")
            self._block(upto_ns - _SILENCE_NS // 2, segments, None)

    def _known_ns(self) -> int:
        """Return up to when there is all that a block needs, but for the counter."""
        if isinstance(self.builder, SumBuilder):
            return self._anchors[-1].t_ns if self._anchors else 0
        return self.builder.horizon_ns - self.sensor.settle_ns

    def finish(self, end_ns: int, segments: Segments) -> None:
        """Settle the rest of a window that closed at ``end_ns``."""
        self.settle(end_ns, segments)
        before = [anchor for anchor in self._anchors if self.curve.settled_ns + REFRESH_NS // 2 < anchor.t_ns <= end_ns]
        after = [anchor for anchor in self._anchors if max(end_ns, self.curve.settled_ns) < anchor.t_ns]
        if before:
            self._block(before[-1].t_ns, segments, before[-1])
        if after:
            self._block(after[0].t_ns, segments, after[0])
        elif self.curve.settled_ns < end_ns:
            # Within a second a mean over a second shows no shape by which to divide it.
            closing = self._means.close(end_ns, self.curve) if self._means and not self._is_mean else None
            self._anchors += [closing] if closing else []
            self._block(end_ns, segments, closing)

    def forget(self, before_ns: int) -> None:
        """Drop what no span that starts at or after ``before_ns`` needs."""
        self.curve.forget(before_ns)
        self.builder.forget(min(before_ns, self.curve.settled_ns))
        while len(self._anchors) > 2 and self._anchors[1].t_ns < self.curve.settled_ns:
            del self._anchors[0]

    def preview(self, t_ns: NDArray[np.int64], segments: Segments) -> NDArray[np.float64]:
        """Return about the energy (J since the window opened) at times that may not be settled yet."""
        end_ns = self.builder.horizon_ns
        if end_ns <= self.curve.settled_ns:
            return np.full(len(t_ns), self.curve.energy_j)
        ahead = self.builder.preview(Stretch(self.curve.settled_ns, end_ns, segments))
        return self.curve.energy_j + np.interp(t_ns, ahead.t_ns, ahead.energy_j)

    @property
    def memory_ns(self) -> int:
        """How far before a block's start its first samples still respond to what training was doing."""
        return self.sensor.gap_ns + self.sensor.response.reach_ns

    def at(self, t_ns: NDArray[np.int64]) -> Points:
        """Return settled points of the curve."""
        return self.curve.at(t_ns)

    def _block(self, end_ns: int, segments: Segments, anchor: Anchor | None) -> None:
        start_ns = self.curve.settled_ns
        total = self._sum(start_ns, anchor) if anchor else None
        self.curve.append(self.builder.settle(Stretch(start_ns, end_ns, segments, total)))

    def _sum(self, start_ns: int, end: Anchor) -> Sum | None:
        for begin in self._anchors:
            if begin.t_ns >= end.t_ns:
                break
            if begin.t_ns >= start_ns - 1 and begin.count == end.count:
                counted_j = end.energy_j - begin.energy_j
                return Sum(counted_j, max(begin.t_ns, start_ns), begin.error_ns, end.error_ns, end.relative_error)
        return None

    def _fault(self, text: str) -> None:
        self.faults[text] = self.faults.get(text, 0) + 1
