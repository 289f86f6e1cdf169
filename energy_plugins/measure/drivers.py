"""Which driver libraries, folders of sysfs and clock a meter uses: the machine's, the environment's, a simulator's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from energy_plugins import _native

Tick = Callable[[int], int]
"""Does what is due at a time (ns) and returns the next deadline (ns)."""

NVML_VARIABLE = "ENERGY_NVML_LIBRARY"
CUDA_VARIABLE = "ENERGY_CUDA_LIBRARY"
POWERCAP_VARIABLE = "ENERGY_POWERCAP_ROOT"
EVENT_SOURCES_VARIABLE = "ENERGY_EVENT_SOURCES_ROOT"


class Clock(Protocol):
    """The one clock of a measurement; ``native`` is the same clock for the C++ side."""

    native: _native.Clock
    threaded: bool
    """Whether time passes by itself, so that a thread must do the ticking."""

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""

    def suspended_ns(self) -> int:
        """How long the machine has slept since it was started (ns); CLOCK_MONOTONIC stood still meanwhile."""

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""

    def attach(self, tick: Tick) -> None:
        """Call ``tick`` at its deadlines, if time does not pass by itself."""

    def detach(self, tick: Tick) -> None:
        """Stop calling ``tick``."""


class PassingTime:
    """What clocks of time that passes by itself share: the native sampler's own thread ticks."""

    threaded = True

    def attach(self, tick: Tick) -> None:
        """Nothing to do: the sampler's thread ticks."""

    def detach(self, tick: Tick) -> None:
        """Nothing to do: the sampler's thread ticks."""


class RealClock(PassingTime):
    """CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.native = _native.Clock.monotonic()
        self.now_ns = time.monotonic_ns
        self.wall_ns = time.time_ns
        self.sleep = time.sleep

    @staticmethod
    def suspended_ns() -> int:
        """CLOCK_BOOTTIME, which goes on while the machine sleeps, less CLOCK_MONOTONIC; good to microseconds."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()


@dataclass(frozen=True)
class Drivers:
    """Library names or paths, as ``dlopen`` takes them, where the CPU's counters are, and the clock of them all."""

    nvml: str = "libnvidia-ml.so.1"
    cuda: str = "libcuda.so.1"
    clock: Clock = field(default_factory=RealClock)
    powercap: str = "/sys/class/powercap"
    event_sources: str = "/sys/bus/event_source/devices"
    proc: Path = Path("/proc")
    """Where the processes of this machine are listed."""


_installed: list[Drivers] = []


def current_drivers() -> Drivers:
    """Return the drivers in force: the innermost `use_drivers`, else the environment's, else the system's."""
    if _installed:
        return _installed[-1]
    return Drivers(
        nvml=os.environ.get(NVML_VARIABLE, Drivers.nvml),
        cuda=os.environ.get(CUDA_VARIABLE, Drivers.cuda),
        powercap=os.environ.get(POWERCAP_VARIABLE, Drivers.powercap),
        event_sources=os.environ.get(EVENT_SOURCES_VARIABLE, Drivers.event_sources),
    )


@contextmanager
def use_drivers(drivers: Drivers) -> Iterator[None]:
    """Make ``drivers`` the ones that meters started inside the block use."""
    _installed.append(drivers)
    try:
        yield
    finally:
        _installed.remove(drivers)
