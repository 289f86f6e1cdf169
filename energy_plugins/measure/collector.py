"""Drains the rings batch by batch and settles joules.

Runs on a thread of its own or in virtual time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from energy_plugins import _native
from energy_plugins.measure.heartbeat import SoFar
from energy_plugins.measure.lanes import Lanes
from energy_plugins.measure.live import Live, LiveFigures
from energy_plugins.measure.response import Segments
from energy_plugins.measure.sensors import SensorPlan
from energy_plugins.measure.settlement import Interval, Settlement
from energy_plugins.measure.spans import KindCodes, Step, Timeline
from energy_plugins.measure.spill import Spill
from energy_plugins.measure.totals import StepRows, Totals
from energy_plugins.measure.track import GpuTrack

_EDGE_PERIOD_NS = 60_000_000_000
"""Shortest time between two searches for the counter's refresh."""
_BATCH = 4096
"""Steps settled at a time: each takes a kilobyte meanwhile, and 50,000 and more may have waited."""
_MANY_WAITING = 50_000
"""Steps that wait for the counter, at 0.7 kB each: so many are worth a reading of it that is not due yet."""
_HURRY_PERIOD_NS = 5_000_000_000
"""Shortest time between two such readings: each burns 3 ms and more of CPU in the driver."""


class Collector:
    """Turns what the sampler and the log of marks hold into settled joules."""

    def __init__(  # noqa: PLR0913 - what the sensors give, and where it goes
        self,
        sampler: _native.Sampler | None,
        marks: _native.MarkLog,
        plan: SensorPlan,
        start_ns: int,
        spill: Spill | None,
        *,
        lanes: Lanes,
    ) -> None:
        self.timeline = Timeline()
        self.totals = Totals()
        self.tracks = [
            GpuTrack(plan.power[uuid], start_ns, plan.max_power_w.get(uuid), mean=plan.mean.get(uuid))
            for uuid in plan.sampled
        ]
        self.settlement = Settlement(self.tracks[: len(plan.gpus)], start_ns)
        self.shared = Settlement(self.tracks[len(plan.gpus) :], start_ns)
        """GPUs of which this process has only a slice."""
        self.lanes = lanes
        self.figures = LiveFigures(self.settlement)
        self.live_wanted = False
        self.collect_s = 0.0
        self._sampler = sampler
        self._marks = marks
        self._start_ns = start_ns
        self._spill = spill
        self._drained_ns = start_ns
        self._edge_asked_ns = self._hurried_ns = start_ns
        self._announced_ns: int | None = None
        self._recovered = [0] * len(plan.gpus)
        self._slept = False
        self.expected_ns: int | None = None
        """A time from which on a mark may still come, made in hindsight; written by the training thread."""

    @property
    def live(self) -> Live:
        """The late figures, as of the last time that they were wanted."""
        return self.figures.live

    def so_far(self, uuids: Sequence[str]) -> SoFar:
        """Return what is known now, settled or not, for the ledger."""
        known_ns, gpu_j = self.figures.reach(self._segments(), self._drained_ns)
        told = {uuid: joules for uuid, joules in zip(uuids, gpu_j, strict=True) if not math.isnan(joules)}
        steps, closed = self.totals.steps, self.timeline.steps
        counts = {
            "samples": [step.samples for step in closed if step.samples >= 0],
            "tokens": [step.tokens for step in closed if step.tokens >= 0],
        }
        return SoFar(
            duration_s=max(known_ns - self._start_ns, 0) * 1e-9,
            energy_j=sum(told.values()) if told else None,
            gpu_j=told,
            steps=steps.steps + len(closed),
            samples=steps.samples + sum(counts["samples"]) if steps.saw_samples or counts["samples"] else None,
            tokens=steps.tokens + sum(counts["tokens"]) if steps.saw_tokens or counts["tokens"] else None,
            missing="" if told else "no GPU has told what it draws yet",
        )

    def slept(self) -> None:
        """Take note that the machine slept since the last call of `collect`."""
        self._slept = True

    def collect(self, now_ns: int) -> None:
        """Take what has arrived and settle what can be; ``now_ns`` is the present time."""
        began = time.thread_time()
        # Every mark made before the previous call has been through the log by now, and later ones lie after it.
        complete_ns, self._drained_ns = self._drained_ns, now_ns
        before_ns = complete_ns
        # Marks announced until lately may be in the log but not resolved.
        announced, self._announced_ns = (self.expected_ns, self._announced_ns), self.expected_ns
        complete_ns = min([complete_ns, *(t_ns for t_ns in announced if t_ns is not None)])
        self._take(now_ns, before_ns)
        segments = self._segments()
        for track in self.tracks:
            track.settle(complete_ns, segments)
        settled_ns = min((track.curve.settled_ns for track in self.settlement.tracks), default=complete_ns)
        if settled_ns > self.settlement.settled_ns:
            self._settle(settled_ns)
        if self.live_wanted:
            self.figures.publish(self._segments(), self._drained_ns)
        else:
            self.figures.fresh.clear()
        self.collect_s += time.thread_time() - began

    def finish(self, end_ns: int, names: tuple[str, ...], *, cut_short: bool = False) -> None:
        """Settle everything up to ``end_ns``, the end of the window; ``cut_short``: some marks will never be known."""
        began = time.thread_time()
        self._take(end_ns, self._drained_ns)
        self.timeline.close(end_ns, names, cut_short=cut_short)
        self.timeline.clip(end_ns)
        segments = self._segments()
        for track in self.tracks:
            track.finish(end_ns, segments)
        self._settle(end_ns)
        self.figures.publish(self._segments(), self._drained_ns)
        self.collect_s += time.thread_time() - began

    def _take(self, now_ns: int, before_ns: int) -> None:
        if self._sampler is not None:
            # What was drawn by all GPUs before any of it is written: a disk may be slow.
            taken = [self._listen(self._sampler, row, now_ns, before_ns) for row in range(len(self.tracks))]
            for row, power in enumerate(taken):
                if self._spill and len(power):
                    inside = power[power["t_ns"] >= self._start_ns]
                    self._spill.power(row, inside["t_ns"], inside["power_w"])
                self.lanes.take(row, self._sampler, power, now_ns)
        self._slept = False
        known = len(self.timeline.steps)
        self.timeline.feed(self._marks.drain())
        self.figures.fresh += self.timeline.steps[known:]
        if self._sampler is not None and len(self.timeline.steps) >= _MANY_WAITING:
            self._hurry(self._sampler, now_ns)

    def _hurry(self, sampler: _native.Sampler, now_ns: int) -> None:
        if now_ns - self._hurried_ns >= _HURRY_PERIOD_NS:
            self._hurried_ns = now_ns
            sampler.read_counter()

    def _listen(self, sampler: _native.Sampler, row: int, now_ns: int, before_ns: int) -> NDArray[np.void]:
        """Take what a GPU's rings hold, and return its power samples."""
        track, power = self.tracks[row], sampler.power(row)
        track.take(power, sampler.counter(row))
        track.take_means(sampler.mean(row))
        if self._slept:
            track.interrupt(before_ns)
        if track.wants_edge(now_ns) and now_ns - self._edge_asked_ns > _EDGE_PERIOD_NS:
            self._edge_asked_ns = now_ns
            sampler.find_edge()
        return power

    def _segments(self) -> Segments:
        if not self.timeline.edges:
            return Segments(np.array([self._start_ns, np.iinfo(np.int64).max]), np.array([KindCodes.UNATTRIBUTED]))
        edges = np.array([*self.timeline.edges, np.iinfo(np.int64).max], np.int64)
        return Segments(edges, np.array(self.timeline.kinds, np.int64))

    def _settle(self, settled_ns: int) -> None:
        working = self.timeline.working(self.settlement.settled_ns, settled_ns)
        steps = [step for step in self.timeline.steps if step.end_ns <= settled_ns]
        spans = [span for span in self.timeline.spans if span.end_ns <= settled_ns]
        self.timeline.steps = self.timeline.steps[len(steps) :]
        self.timeline.spans = self.timeline.spans[len(spans) :]
        for row in range(0, len(steps), _BATCH):
            rows = self._rows(steps[row : row + _BATCH])
            if self._spill:
                self._spill.steps(self.totals.steps.steps, rows)
            self.totals.add_steps(rows)
        if spans:
            energy = self.settlement.energy([(span.start_ns, span.end_ns) for span in spans])
            self.totals.add_spans(spans, energy)
            if self._spill:
                self._spill.spans(spans, energy)
        self._settle_segments(settled_ns, working)
        self.settlement.advance(settled_ns, self._needed())
        shared_ns = min((track.curve.settled_ns for track in self.shared.tracks), default=settled_ns)
        if shared_ns > self._start_ns:
            self.shared.advance(min(shared_ns, settled_ns), [self._start_ns])
        # The next block's first samples still respond to what came before.
        self.timeline.forget(settled_ns - max((track.memory_ns for track in self.tracks), default=0))

    def _settle_segments(self, settled_ns: int, working: Sequence[Interval]) -> None:
        segments = self._segments()
        start_ns = self.settlement.settled_ns
        cuts = np.concatenate([[start_ns], segments.edges_between(start_ns, settled_ns), [settled_ns]])
        kinds = segments.kinds[segments.at(cuts[:-1])]
        begun = np.isin(cuts[:-1], segments.edges_ns)
        for first in range(0, len(kinds), _BATCH):
            part = cuts[first : first + _BATCH + 1]
            energy = self.settlement.energy(np.stack([part[:-1], part[1:]], axis=1).tolist())
            # What a gap in the samples drew belongs to the run's total, so it must be in the sum of its kinds.
            drawn_j = sum(
                (np.diff(self.settlement.points(row, part).energy_j) for row in range(len(self.settlement.tracks))),
                np.zeros(len(part) - 1),
            )
            self.totals.add_segments(
                kinds[first : first + _BATCH],
                np.diff(part),
                replace(energy, joules=drawn_j),
                begun=begun[first : first + _BATCH],
            )
        self.lanes.settle(self.settlement.tracks, cuts, kinds, working)
        for row, track in enumerate(self.settlement.tracks):
            for one in track.ledger.recovered[self._recovered[row] :]:
                if one.until_ns <= settled_ns:
                    self.totals.add_recovered(KindCodes.UNATTRIBUTED, one)
                    self._recovered[row] += 1

    def _rows(self, steps: Sequence[Step]) -> StepRows:
        stalls = [step.stall for step in steps if step.stall is not None]
        waits = [wait for step in steps for wait in step.waits]
        energy = self.settlement.energy([*((step.start_ns, step.end_ns) for step in steps), *stalls, *waits])
        joules = energy.joules
        stall_j = np.full(len(steps), np.nan)
        stall_j[[step.stall is not None for step in steps]] = joules[len(steps) : len(steps) + len(stalls)]
        owner = np.repeat(np.arange(len(steps)), [len(step.waits) for step in steps])
        wait_j = np.bincount(owner, joules[len(steps) + len(stalls) :], len(steps)).astype(np.float64)
        wait_j[np.bincount(owner, minlength=len(steps)) == 0] = np.nan
        return StepRows(steps, energy.take(slice(0, len(steps))), wait_j, stall_j)

    def _needed(self) -> list[int]:
        needed = [self._start_ns, *self.timeline.open_starts()]
        for step in [*self.timeline.steps, *self.figures.fresh]:
            needed += [step.start_ns, *(step.stall or ()), *(t_ns for wait in step.waits for t_ns in wait)]
        return needed + [span.start_ns for span in self.timeline.spans]
