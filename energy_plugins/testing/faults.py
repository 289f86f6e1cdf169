"""What can go wrong with a simulated GPU.

Times (``at_s``, ``back_s``) count from the moment a fault is injected; ``back_s=None`` is for good.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoPermission:
    """``call`` is refused with "Insufficient Permissions"; without a name, every call that changes the GPU."""

    call: str = ""
    at_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True)
class GpuLost:
    """Every call on the GPU answers "GPU is lost" from ``at_s`` until ``back_s``."""

    at_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True)
class Hang:
    """``call`` takes ``seconds`` longer, each time; in real time it may be ``math.inf``.

    In real time healing, and the end of the simulation, let go of it.
    """

    call: str
    seconds: float
    at_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True)
class MissingSymbol:
    """``name`` answers "Function Not Found", as a driver too old to know it does through its stub.

    `Simulation.lacking` gives a library in which the symbol is really not there.
    """

    name: str


@dataclass(frozen=True)
class NotSupported:
    """``call`` answers "Not Supported": a function, or a field of ``nvmlDeviceGetFieldValues`` by its NVML name."""

    call: str


@dataclass(frozen=True)
class NoSampleBuffer:
    """The driver keeps no power samples: "Not Supported"."""

    at_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True)
class NoCounter:
    """The GPU has no energy counter: "Not Supported"."""

    at_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True)
class CounterReset:
    """The energy counter begins again at zero at ``at_s``. Healing does not undo it."""

    at_s: float = 0.0


@dataclass(frozen=True)
class HiddenProcesses:
    """As in a container, the driver does not tell who computes: it lists nobody, or another namespace's numbers."""

    foreign_pids: bool = False


@dataclass(frozen=True)
class CounterJump:
    """The energy counter leaps ahead by ``energy_j`` at ``at_s``. Healing does not undo it."""

    energy_j: float
    at_s: float = 0.0


@dataclass(frozen=True)
class DriverMismatch:
    """NVML is of another version than the driver in the kernel, as after an update without a reboot."""


@dataclass(frozen=True)
class ForeignLimit:
    """Another limiter, such as the board's controller, holds the GPU at ``power_w``, whatever limit is asked for."""

    power_w: float
    at_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True)
class Ignored:
    """``call`` succeeds and changes nothing; without a name, every call that changes the GPU."""

    call: str = ""
    at_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True)
class WallClockStep:
    """The wall clock jumps by ``seconds``, at once and for all processes. Healing does not undo it."""

    seconds: float


Fault = (
    NoPermission
    | GpuLost
    | Hang
    | MissingSymbol
    | NotSupported
    | NoSampleBuffer
    | NoCounter
    | CounterReset
    | CounterJump
    | DriverMismatch
    | ForeignLimit
    | Ignored
    | HiddenProcesses
    | WallClockStep
)
