"""Late figures of a running measurement: what is settled, and a preview of what is not yet."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.response import Segments
from energy_plugins.measure.settlement import Interval, Settlement
from energy_plugins.measure.spans import Step

_SILENT_NS = 5_000_000_000
"""A GPU this far behind the others is silent, and no longer holds up the figures."""


@dataclass(frozen=True)
class Live:
    """What is known of a running measurement, a second or so late; energies in joules since the window opened."""

    t_ns: int
    gpu_j: tuple[float, ...]
    """NaN of a GPU that has told nothing."""
    gpu_power_w: tuple[float, ...]
    steps: int = 0
    step_j: float = 0.0
    step_s: float = 0.0
    samples: int = 0
    tokens: int = 0
    data_wait_j: float = 0.0
    stall_j: float = 0.0
    stepped_ns: int = 0
    """The end of the last of these steps, 0 before there is one."""
    stepped_j: float = 0.0
    """Drawn until then, in steps and between them."""

    @property
    def known_j(self) -> float:
        """Joules of the GPUs that have told any; 0 if none has."""
        return sum(joules for joules in self.gpu_j if not math.isnan(joules))


@dataclass(frozen=True)
class StepBatch:
    """Steps whose figures became known together, one column each."""

    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    energy_j: NDArray[np.float64]
    """By GPU and step."""
    backward_s: NDArray[np.float64]
    """How long the backward phase took, in GPU time; NaN of a step whose phases were not marked."""


class LiveFigures:
    """Keeps `live` up to date as a run settles."""

    def __init__(self, settlement: Settlement) -> None:
        gpus = len(settlement.tracks)
        self.live = Live(settlement.start_ns, (0.0,) * gpus, (float("nan"),) * gpus)
        self.fresh: list[Step] = []
        """Closed steps that the figures do not hold yet."""
        self.heard: list[deque[StepBatch]] = []
        """Where steps go one by one: a queue for each who listens."""
        self.backward_code: Callable[[], int | None] = lambda: None
        """Tells by which code the backward phase is marked; None while it never was."""
        self._settlement = settlement

    def publish(self, segments: Segments, drained_ns: int) -> None:
        """Bring `live` up to date: settled energy, and a preview of what is not settled yet."""
        # A GPU that is lost is settled further than it has told, and of what is settled only its end is kept.
        horizon_ns = max(self._horizon_ns(drained_ns), self._settlement.settled_ns)
        ready = [step for step in self.fresh if step.end_ns <= horizon_ns]
        self.fresh = self.fresh[len(ready) :]
        waits = [wait for step in ready for wait in step.waits]
        stalls = [step.stall for step in ready if step.stall is not None]
        own: list[Interval] = [(step.start_ns, step.end_ns) for step in ready]
        bounds = np.array([(horizon_ns, horizon_ns), *own, *waits, *stalls], np.int64)
        energy = [self._about(row, bounds, segments) for row in range(len(self._settlement.tracks))]
        if self.heard and own:
            each = np.array([ends - starts for starts, ends in energy]).reshape(len(energy), len(bounds))
            steps = slice(1, len(own) + 1)
            told = StepBatch(bounds[steps, 0], bounds[steps, 1], each[:, steps], self._backward_s(ready))
            for queue in self.heard:
                queue.append(told)
        spent = sum((ends - starts for starts, ends in energy), np.zeros(len(bounds)))[1:]
        cut = np.cumsum([len(own), len(waits)])
        step_j, wait_j, stall_j = (float(part.sum()) for part in np.split(spent, cut))
        before = self.live
        stepped_j = sum(float(ends[len(own)]) - self._before_j(row) for row, (_, ends) in enumerate(energy))
        self.live = Live(
            t_ns=max(horizon_ns, before.t_ns),
            gpu_j=tuple(
                float(ends[0]) - self._before_j(row) if self._told(row) else math.nan
                for row, (_, ends) in enumerate(energy)
            ),
            gpu_power_w=tuple(track.builder.last_w for track in self._settlement.tracks),
            steps=before.steps + len(ready),
            step_j=before.step_j + step_j,
            step_s=before.step_s + sum(step.end_ns - step.start_ns for step in ready) * 1e-9,
            samples=before.samples + sum(max(step.samples, 0) for step in ready),
            tokens=before.tokens + sum(max(step.tokens, 0) for step in ready),
            data_wait_j=before.data_wait_j + wait_j,
            stall_j=before.stall_j + stall_j,
            stepped_ns=ready[-1].end_ns if ready else before.stepped_ns,
            stepped_j=stepped_j if ready else before.stepped_j,
        )

    def _backward_s(self, steps: Sequence[Step]) -> NDArray[np.float64]:
        code = self.backward_code()
        of_each = ([length_ns for kind, length_ns in step.phases if kind == code] for step in steps)
        return np.array([sum(lengths_ns) * 1e-9 if lengths_ns else math.nan for lengths_ns in of_each])

    def reach(self, segments: Segments, drained_ns: int) -> tuple[int, tuple[float, ...]]:
        """Return up to when is known what was drawn, and what each GPU drew until then; `live` stays as it is."""
        horizon_ns = max(self._horizon_ns(drained_ns), self._settlement.settled_ns)
        bounds = np.array([(horizon_ns, horizon_ns)], np.int64)
        return horizon_ns, tuple(
            float(self._about(row, bounds, segments)[1][0]) - self._before_j(row) if self._told(row) else math.nan
            for row in range(len(self._settlement.tracks))
        )

    def _told(self, row: int) -> bool:
        """Return whether a GPU has ever told what it draws."""
        track = self._settlement.tracks[row]
        return track.builder.horizon_ns > 0 or track.curve.energy_j > 0

    def _horizon_ns(self, drained_ns: int) -> int:
        """Return up to when every GPU that is not silent has told its power."""
        horizons = [track.builder.horizon_ns for track in self._settlement.tracks]
        latest_ns = max(horizons, default=drained_ns)
        return min((one for one in horizons if one > latest_ns - _SILENT_NS), default=latest_ns)

    def _before_j(self, row: int) -> float:
        """Return what a curve holds too much, from before the window opened, less what was recovered beside it.

        A curve begins at the counter's last refresh.
        """
        track = self._settlement.tracks[row]
        if not track.curve.started:
            return 0.0
        before_j = float(self._settlement.points(row, np.array([self._settlement.start_ns])).energy_j[0])
        return before_j - sum(one.energy_j for one in track.ledger.recovered)

    def _about(
        self, row: int, bounds: NDArray[np.int64], segments: Segments
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        track, times = self._settlement.tracks[row], bounds.ravel()
        energy = track.preview(times, segments)
        settled = times <= track.curve.settled_ns
        if settled.any() and track.curve.started:
            energy[settled] = self._settlement.points(row, times[settled]).energy_j
        starts, ends = energy.reshape(bounds.shape).T
        return starts, ends
