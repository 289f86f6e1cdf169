"""The slow lanes, state and activity: their readings on the way to the disk, to sums and to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins import _native
from energy_plugins.measure.activity import ActivityPlan, ActivitySum
from energy_plugins.measure.report_parts import GpuState, KindActivity
from energy_plugins.measure.sensors import SensorPlan
from energy_plugins.measure.settlement import Interval
from energy_plugins.measure.spill import Spill
from energy_plugins.measure.state import StateSum
from energy_plugins.measure.track import GpuTrack
from energy_plugins.measure.underfilled import FillSum, Underfilled, add_up

_KEPT_NS = 2_000_000_000
"""How long readings stay beyond their settlement: the next stretch may begin between two of them."""


@dataclass(frozen=True)
class LaneReport:
    """What the report says of the slow lanes."""

    states: tuple[GpuState, ...]
    kinds: tuple[KindActivity, ...]
    underfilled: Underfilled
    missing: dict[str, str]


class Lanes:
    """Takes the readings of all GPUs and sums them up as the run settles; keeps seconds of them."""

    def __init__(self, plan: SensorPlan, activity: ActivityPlan) -> None:
        self._plan = plan
        self._activity_plan = activity
        self._start_ns = 0
        self._spill: Spill | None = None
        self._default_limit_w = {uuid: _default_limit_w(plan.nvml, uuid) for uuid in plan.sampled}
        self._states = [StateSum() for _ in plan.sampled]
        self._fills = [FillSum() for _ in plan.gpus]
        self._pending: list[NDArray[np.void] | None] = [None for _ in plan.gpus]
        self._kinds = ActivitySum()
        self._saw_steps = False

    @property
    def limits_w(self) -> tuple[float, ...]:
        """The power limit in force of each GPU, as of the last reading; NaN of one that has told none."""
        return tuple(state.last_limit_w for state in self._states[: len(self._plan.gpus)])

    def open(self, start_ns: int, spill: Spill | None) -> None:
        """Open the window: what was read before is left out."""
        self._start_ns, self._spill = start_ns, spill

    def take(self, row: int, sampler: _native.Sampler, power: NDArray[np.void], end_ns: int) -> None:
        """Take what the sampler's rings hold of GPU ``row``, and see its power samples; all of it up to ``end_ns``."""
        state = sampler.state(row)
        state = state[self._inside(state["t_ns"], end_ns)]
        self._states[row].add(state)
        if self._spill and len(state):
            self._spill.state(row, state)
        if row < len(self._fills):
            self._fills[row].see(power["power_w"][self._inside(power["t_ns"], end_ns)])
        if self._activity_plan.on:
            activity = sampler.activity(row)
            begun = activity["start_ns"] < end_ns
            self._take_activity(row, activity[begun & (activity["end_ns"] > self._start_ns)])

    def settle(
        self,
        tracks: Sequence[GpuTrack],
        cuts_ns: NDArray[np.int64],
        kinds: NDArray[np.int64],
        working: Sequence[Interval],
    ) -> None:
        """Sum up a settled stretch: ``kinds`` ran between its cuts, steps were ``working`` during those intervals."""
        self._saw_steps |= bool(working)
        for row, track in enumerate(tracks):
            pending = self._pending[row]
            readings = _NO_READINGS if pending is None else pending
            self._kinds.add(readings, cuts_ns, kinds)
            if working:
                drawn = track.curve.drawn(int(cuts_ns[0]), int(cuts_ns[-1]))
                self._fills[row].add(drawn, working, readings)
            if pending is not None:
                self._pending[row] = pending[pending["end_ns"] > cuts_ns[-1] - _KEPT_NS]

    def report(self, names: tuple[str, ...], idle_w: Mapping[str, float]) -> LaneReport:
        """Return what is known so far; ``names`` are the kinds' by code, ``idle_w`` measured idle powers by UUID."""
        uuids = self._plan.sampled
        states = tuple(
            one.summary(uuid, self._default_limit_w[uuid]) for uuid, one in zip(uuids, self._states, strict=True)
        )
        kinds = self._kinds.summary(names)
        missing = {name: why for state in states for name, why in self._unread(state).items()}
        missing |= self._activity_plan.why
        if self._activity_plan.on and not kinds:
            missing["activity"] = "no kind of work lasted long enough, or the readings failed, which is then a warning"
        underfilled = self._underfilled(idle_w)
        if underfilled.energy_j is None:
            missing["underfilled_j"] = underfilled.why
        return LaneReport(states, kinds, underfilled, missing)

    def _take_activity(self, row: int, rows: NDArray[np.void]) -> None:
        if not len(rows):
            return
        if self._spill:
            self._spill.activity(row, rows)
        if row < len(self._pending):
            pending = self._pending[row]
            self._pending[row] = rows if pending is None else np.concatenate([pending, rows])

    def _inside(self, t_ns: NDArray[np.int64], end_ns: int) -> NDArray[np.bool_]:
        return np.asarray((t_ns >= self._start_ns) & (t_ns <= end_ns))

    def _underfilled(self, idle_w: Mapping[str, float]) -> Underfilled:
        if not self._saw_steps:
            return Underfilled(None, why="no steps were marked")
        return add_up(
            [
                fill.estimate(idle_w.get(gpu.uuid), state.limit_w)
                for gpu, fill, state in zip(self._plan.gpus, self._fills, self._states, strict=False)
            ]
        )

    def _unread(self, state: GpuState) -> dict[str, str]:
        """Return which fields of a state are None, and why."""
        reasons = self._plan.reasons.get(state.uuid, {})
        if not state.readings:
            return {f"state {state.uuid}": reasons.get("all", "no reading of it arrived")}
        return {
            f"{field} {state.uuid}": reasons.get(source, "the driver did not say")
            for field, source in _SOURCES.items()
            if getattr(state, field) is None
        }


_SOURCES = {
    "sm_clock_mhz": "sm_clock_mhz",
    "max_temperature_c": "temperature_c",
    "utilisation": "utilisation",
    "min_limit_w": "enforced_limit_w",
    "max_limit_w": "enforced_limit_w",
    "requested_limit_w": "requested_limit_w",
    "default_limit_w": "default_limit_w",
    "throttled": "clock_reasons",
}
"""Fields of `GpuState` -> what `_native.Capabilities.reasons` calls the reading they come from."""

_NO_READINGS = np.empty(0, [("start_ns", "i8"), ("end_ns", "i8"), ("sm", "f8")])


def _default_limit_w(nvml: _native.Nvml | None, uuid: str) -> float | None:
    if nvml is None:
        return None
    try:
        return nvml.default_limit_w(uuid)
    except _native.NvmlError:
        return None
