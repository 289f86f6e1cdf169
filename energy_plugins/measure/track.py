"""One GPU's readings on their way to settled joules."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.anchors import Anchors
from energy_plugins.measure.attribution import EnergyCurve, Points, RunCurve
from energy_plugins.measure.counter import REFRESH_NS, Anchor
from energy_plugins.measure.curve import CurveBuilder, Stretch, Sum
from energy_plugins.measure.mean_sums import MeanSums
from energy_plugins.measure.power_sensors import COUNTER, PowerSensor
from energy_plugins.measure.response import Segments
from energy_plugins.measure.silence import LONG_NS, Ledger, Silence, unknown
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
    first one after it closes. Silences of the samples are blocks of their own: their joules are what the counter says
    less what its neighbours drew. Without a counter, means over a second may stand in for it (`MeanSums`).
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
        self.builder = SumBuilder(sensor, max_power_w) if sensor is COUNTER else CurveBuilder(sensor, max_power_w)
        self.faults: dict[str, int] = {}
        self.anchors = Anchors(start_ns, self.faults)
        self.ledger = Ledger()
        self._start_ns = start_ns
        self._heard_ns = start_ns
        self._silences: list[Silence] = []
        self._means = MeanSums(start_ns, mean.response.dead_time_s) if mean else None
        self._is_mean = mean is sensor

    def take(self, power: NDArray[np.void], counter: NDArray[np.void]) -> None:
        """Take what the sampler's rings held (the columns of ``_native.Sampler.power`` and ``counter``)."""
        if len(power):
            self._listen(power["t_ns"] - self.sensor.response.delay_ns)
            self.builder.add(power["t_ns"].copy(), power["power_w"].copy())
            if self._is_mean:
                self.take_means(power)
        self.anchors.take(counter)
        if not self.curve.started:
            early = [one for one in self.anchors.dated if one.t_ns <= self._start_ns and one.error_ns < _SHARP_NS]
            if early:
                self.curve = RunCurve(early[-1].t_ns)
                self.ledger.close(early[-1])

    def take_means(self, means: NDArray[np.void]) -> None:
        """Take samples of the mean power over a second (``_native.Sampler.mean``), which stand in for a counter."""
        if self._means is not None:
            self.anchors.dated += self._means.take(means)

    def wants_edge(self, now_ns: int) -> bool:
        """Return whether the refresh of the counter should be looked at again."""
        return self.anchors.wants_edge(now_ns)

    def settle(self, upto_ns: int, segments: Segments) -> None:
        """Settle every block that ends by ``upto_ns`` and whose samples have arrived."""
        reach_ns = min(upto_ns, self._known_ns())
        if upto_ns - max(reach_ns, self.curve.settled_ns) > _SILENCE_NS:
            self._give_up(upto_ns, segments)
            return
        self._settle_anchored(reach_ns, segments)
        dated = self.anchors.dated
        if not dated or dated[-1].t_ns + 4 * _FREE_BLOCK_NS < reach_ns:
            while self.curve.settled_ns + _FREE_BLOCK_NS <= reach_ns:
                self._block(self.curve.settled_ns + _FREE_BLOCK_NS, segments, None)

    def _known_ns(self) -> int:
        """Return up to when there is all that a block needs, but for the counter."""
        if isinstance(self.builder, SumBuilder):
            return self.anchors.dated[-1].t_ns if self.anchors.dated else 0
        return self.builder.horizon_ns - self.sensor.settle_ns

    def finish(self, end_ns: int, segments: Segments) -> None:
        """Settle the rest of a window that closed at ``end_ns``."""
        self.anchors.date_all()
        self.settle(end_ns, segments)
        dated = self.anchors.dated
        before = [anchor for anchor in dated if self.curve.settled_ns + REFRESH_NS // 2 < anchor.t_ns <= end_ns]
        for last in {anchor.count: anchor for anchor in before}.values():
            self._block(last.t_ns, segments, last)
        after = [anchor for anchor in dated if max(end_ns, self.curve.settled_ns) < anchor.t_ns]
        if after:
            self._block(after[0].t_ns, segments, after[0])
        elif self.curve.settled_ns < end_ns:
            # Within a second a mean over a second shows no shape by which to divide it.
            closing = self._means.close(end_ns, self.curve) if self._means and not self._is_mean else None
            self.anchors.dated += [closing] if closing else []
            self._block(end_ns, segments, closing)
        self.ledger.clip(end_ns)

    def interrupt(self, since_ns: int) -> None:
        """Take note that the machine slept some time after ``since_ns``, while the counter may have gone on."""
        self.anchors.interrupt(since_ns)

    def forget(self, before_ns: int) -> None:
        """Drop what no span that starts at or after ``before_ns`` needs."""
        self.curve.forget(before_ns)
        self.builder.forget(min(before_ns, self.curve.settled_ns))
        self.anchors.forget(self.curve.settled_ns)
        self._silences = [silence for silence in self._silences if silence[1] > self.curve.settled_ns]

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

    def _listen(self, seen_ns: NDArray[np.int64]) -> None:
        times = np.concatenate([[self._heard_ns], seen_ns])
        for after in np.flatnonzero(np.diff(times) > LONG_NS).tolist():
            self._silences.append((int(times[after]), int(times[after + 1])))
            self.anchors.unsure(int(times[after + 1]))
        self._heard_ns = max(self._heard_ns, int(seen_ns[-1]))

    def _settle_anchored(self, reach_ns: int, segments: Segments) -> bool:
        before_ns = self.curve.settled_ns
        for anchor in self.anchors.dated.copy():
            opening = not self.curve.started and anchor.t_ns > self._start_ns and anchor.error_ns < _SHARP_NS
            if anchor.t_ns <= reach_ns and (opening or self.curve.settled_ns + _MIN_BLOCK_NS <= anchor.t_ns):
                self._block(anchor.t_ns, segments, anchor)
        return self.curve.settled_ns > before_ns

    def _give_up(self, upto_ns: int, segments: Segments) -> None:
        """Settle a silence so that it holds up nobody: with the counter as long as it speaks, else without joules."""
        self._fault("the GPU gave no power samples for a while")
        if self._settle_anchored(upto_ns, segments):
            return
        dated, quiet_ns = self.anchors.dated, upto_ns - self.curve.settled_ns
        speaks = bool(dated) and dated[-1].t_ns > self._heard_ns
        if quiet_ns > (2 * _SILENCE_NS if speaks else _SILENCE_NS):
            self._block(upto_ns - _SILENCE_NS // 2, segments, None)

    def _block(self, end_ns: int, segments: Segments, anchor: Anchor | None) -> None:
        start_ns = self.curve.settled_ns
        total = self._sum(start_ns, anchor) if anchor else None
        silences = self._silent(start_ns, end_ns, total)
        if anchor is not None and silences and (begin := self._beginning(start_ns, silences[0][0], anchor)):
            self._block(begin.t_ns, segments, begin)
            self._block(end_ns, segments, anchor)
            return
        if silences or self.ledger.given:
            self._around(silences, Stretch(start_ns, end_ns, segments), anchor)
        else:
            block = self.builder.settle(Stretch(start_ns, end_ns, segments, total))
            if total is not None and block.trust == 0.0 and end_ns - total.start_ns >= _MIN_BLOCK_NS:
                self._fault("the energy counter contradicts the power samples; that stretch rests on them alone")
            self._append(block)
        if anchor is not None:
            self.ledger.close(anchor)

    def _silent(self, start_ns: int, end_ns: int, total: Sum | None) -> list[Silence]:
        """Return the silences in a stretch, the one that may still last among them."""
        if isinstance(self.builder, SumBuilder):  # there are no samples to miss, only the sum
            return [] if total is not None and not self.ledger.given else [(start_ns, end_ns)]
        clipped = [
            (max(since_ns, start_ns), min(until_ns, end_ns))
            for since_ns, until_ns in [*self._silences, (self._heard_ns, end_ns)]
        ]
        return [(since_ns, until_ns) for since_ns, until_ns in clipped if until_ns - since_ns > LONG_NS]

    def _beginning(self, start_ns: int, until_ns: int, anchor: Anchor) -> Anchor | None:
        """Return the anchor from which the joules up to ``anchor`` can be told, if the ledger has none yet."""
        if self.ledger.owed(anchor) is not None:
            return None
        inside = (one for one in self.anchors.dated if start_ns < one.t_ns <= until_ns and one.count == anchor.count)
        return next(inside, None)

    def _around(self, silences: list[Silence], stretch: Stretch, anchor: Anchor | None) -> None:
        """Settle a stretch with silences in it, or after silences whose joules were not known until now."""
        bounds = [stretch.start_ns, *(t_ns for silence in silences for t_ns in silence), stretch.end_ns]
        heard = [piece for piece in list(pairwise(bounds))[::2] if piece[0] < piece[1]]
        blocks = [self.builder.settle(Stretch(*piece, stretch.segments)) for piece in heard]
        for block in blocks:
            self.ledger.add(block)
        try:
            told = self.ledger.tell(silences, anchor)
        except ValueError as error:
            self._fault(str(error))
            told = [unknown(silence) for silence in silences]
        for block in sorted([*blocks, *told], key=lambda block: int(block.t_ns[0])):
            self.curve.append(block)

    def _append(self, block: EnergyCurve) -> None:
        self.curve.append(block)
        self.ledger.add(block)

    def _sum(self, start_ns: int, end: Anchor) -> Sum | None:
        for begin in self.anchors.dated:
            if begin.t_ns >= end.t_ns:
                break
            if begin.t_ns >= start_ns - 1 and begin.count == end.count:
                counted_j = end.energy_j - begin.energy_j
                return Sum(counted_j, max(begin.t_ns, start_ns), begin.error_ns, end.error_ns, end.relative_error)
        return None

    def _fault(self, text: str) -> None:
        self.faults[text] = self.faults.get(text, 0) + 1
