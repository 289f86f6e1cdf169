"""The simulation's time as `energy_plugins.measure.drivers.Clock`: passing by itself, or moved by hand."""

from __future__ import annotations

import time

from energy_plugins import _native
from energy_plugins.measure.drivers import PassingTime, Tick
from energy_plugins.testing import library


class SimulatedClock(PassingTime):
    """The machine's monotonic time, with the simulation's wall clock beside it."""

    def __init__(self, nvml_path: str) -> None:
        self.native = _native.Clock.simulated(nvml_path)

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds."""
        return int(library.nvml().ep_sim_monotonic_ns())

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return int(library.nvml().ep_sim_wall_ns())

    def suspended_ns(self) -> int:
        """How long the simulated machine has slept, in nanoseconds."""
        return int(library.nvml().ep_sim_suspended_ns())

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        time.sleep(max(seconds, 0.0))


class VirtualClock(SimulatedClock):
    """Time that only sleeping and driver calls move; sleeping calls the attached ticks at their deadlines."""

    threaded = False

    def __init__(self, nvml_path: str) -> None:
        super().__init__(nvml_path)
        self._deadlines_ns: dict[Tick, int] = {}
        self._ticking = False

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` of virtual time pass, from deadline to deadline; inside a tick just let it pass."""
        end_ns = self.now_ns() + max(round(seconds * 1e9), 0)
        if not self._ticking:
            self._ticking = True
            try:
                self._tick_until(end_ns)
            finally:
                self._ticking = False
        self._move_to(end_ns)

    def attach(self, tick: Tick) -> None:
        """Call ``tick`` at the next sleep, and then at the deadlines it returns."""
        self._deadlines_ns[tick] = self.now_ns()

    def detach(self, tick: Tick) -> None:
        """Stop calling ``tick``."""
        self._deadlines_ns.pop(tick, None)

    def _tick_until(self, end_ns: int) -> None:
        while self._deadlines_ns:
            tick, deadline_ns = min(self._deadlines_ns.items(), key=lambda item: item[1])
            if deadline_ns > end_ns:
                return
            self._move_to(deadline_ns)
            next_ns = tick(self.now_ns())
            if tick in self._deadlines_ns:
                # A tick that asks for a time already past must not hold the clock for ever.
                self._deadlines_ns[tick] = max(next_ns, deadline_ns + 1)

    def _move_to(self, t_ns: int) -> None:
        library.nvml().ep_sim_advance(t_ns - self.now_ns())
