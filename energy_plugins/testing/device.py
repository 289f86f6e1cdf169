"""One simulated GPU, as tests hold it."""

from __future__ import annotations

import math
from ctypes import byref, c_double, c_int64, create_string_buffer

from energy_plugins.measure.drivers import Clock
from energy_plugins.testing import library
from energy_plugins.testing.faults import (
    CounterJump,
    CounterReset,
    DriverMismatch,
    Fault,
    ForeignLimit,
    GpuLost,
    Hang,
    HiddenProcesses,
    Ignored,
    MissingSymbol,
    NoCounter,
    NoPermission,
    NoSampleBuffer,
    NotSupported,
    WallClockStep,
)
from energy_plugins.testing.loads import Load

_FOREVER_NS = 2**63 - 1
_FOREVER_S = 1e9
_KINDS: dict[type[Fault], library.FaultKind] = {
    NoPermission: library.FaultKind.NO_PERMISSION,
    GpuLost: library.FaultKind.GPU_LOST,
    Hang: library.FaultKind.HANG,
    MissingSymbol: library.FaultKind.MISSING_SYMBOL,
    NoSampleBuffer: library.FaultKind.NO_SAMPLE_BUFFER,
    NoCounter: library.FaultKind.NO_COUNTER,
    NotSupported: library.FaultKind.NOT_SUPPORTED,
    HiddenProcesses: library.FaultKind.NO_PROCESSES,
    CounterReset: library.FaultKind.COUNTER_RESET,
    CounterJump: library.FaultKind.COUNTER_JUMP,
    DriverMismatch: library.FaultKind.DRIVER_MISMATCH,
    ForeignLimit: library.FaultKind.FOREIGN_LIMIT,
    Ignored: library.FaultKind.IGNORED,
}
"""All but `WallClockStep`, which belongs to no GPU."""


class SimulatedDevice:
    """One simulated GPU."""

    def __init__(self, index: int, clock: Clock) -> None:
        self.index = index
        self.uuid = _uuid(index)
        self._clock = clock

    def true_energy_j(self, start_ns: int, end_ns: int) -> float:
        """Joules drawn between two times: the analytic integral of the power.

        Raises:
            ValueError: more than a million changes of launched work ago, which the simulation no longer knows.
        """
        energy_j = float(library.nvml().ep_sim_energy_j(self.index, start_ns, end_ns))
        if math.isnan(energy_j):
            raise ValueError(f"the simulation no longer knows what GPU {self.index} drew at {start_ns} ns")
        return energy_j

    def launch(self, ops: float = 0, bytes: float = 0, *, wait: bool = False) -> None:  # noqa: A002
        """Queue a kernel of ``ops`` operations and ``bytes`` of memory traffic.

        Returns at once while fewer than 1024 kernels are queued, as a device does; else it waits for room. Work runs at
        the power limit and clocks in force when it is queued. All streams share the device's one queue. ``wait`` waits
        until the kernel has run.
        """
        while (wait_ns := int(library.nvml().ep_sim_launch(self.index, ops, bytes))) > 0:
            self._clock.sleep(wait_ns * 1e-9)
        library.check(-wait_ns, "launch work")
        if wait:
            self.synchronize()

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        while (left_ns := int(library.nvml().ep_sim_idle_at_ns(self.index)) - self._clock.now_ns()) > 0:
            self._clock.sleep(left_ns * 1e-9)

    def play(self, load: Load) -> None:
        """Make ``load`` what the device draws, from now on, while no launched work runs."""
        self.play_from(load, self._clock.now_ns())

    def play_from(self, load: Load, from_ns: int) -> None:
        """As `play`, from a given time on."""
        script = load.script()
        count = len(script.pieces)
        durations_ns = (c_int64 * count)(*(max(round(duration_s * 1e9), 1) for duration_s, _ in script.pieces))
        powers_w = (c_double * count)(*(power_w for _, power_w in script.pieces))
        error = library.nvml().ep_sim_play(self.index, durations_ns, powers_w, count, script.repeat, from_ns)
        library.check(error, f"play {type(load).__name__}")

    def inject(self, fault: Fault) -> None:
        """Let ``fault`` happen, in every process that sees the device."""
        if isinstance(fault, WallClockStep):
            library.check(library.nvml().ep_sim_step_wall_clock(round(fault.seconds * 1e9)), "step the wall clock")
            return
        if isinstance(fault, Hang) and math.isinf(fault.seconds) and not self._clock.threaded:
            raise ValueError("virtual time has no for ever: nobody would be left to let go of the call")
        described = _describe(fault, self._clock.now_ns())
        library.check(library.nvml().ep_sim_inject(self.index, byref(described)), f"take on {fault}")

    def heal(self) -> None:
        """End all faults of the device, but for what its counter has done."""
        library.check(library.nvml().ep_sim_heal(self.index), "heal")


def _uuid(index: int) -> str:
    text = create_string_buffer(48)
    library.check(library.nvml().ep_sim_uuid(index, text, len(text)), f"name GPU {index}")
    return text.value.decode()


def _describe(fault: Fault, now_ns: int) -> library.CFault:
    call, at_s, back_s, amount = "", 0.0, None, 0.0
    match fault:
        case NoPermission() | Hang() | NotSupported() | Ignored():
            call = fault.call
        case MissingSymbol():
            call = fault.name
        case CounterReset() | CounterJump():
            at_s = fault.at_s
    match fault:
        case Hang():
            amount = min(fault.seconds, _FOREVER_S)
        case CounterJump():
            amount = fault.energy_j
        case ForeignLimit():
            amount = fault.power_w
    if isinstance(fault, NoPermission | GpuLost | Hang | NoSampleBuffer | NoCounter | ForeignLimit | Ignored):
        at_s, back_s = fault.at_s, fault.back_s
    from_ns = now_ns + round(at_s * 1e9)
    until_ns = _FOREVER_NS if back_s is None else now_ns + round(back_s * 1e9)
    kind = _KINDS[type(fault)]
    if isinstance(fault, HiddenProcesses) and fault.foreign_pids:
        kind = library.FaultKind.FOREIGN_PIDS
    return library.CFault(kind, call.encode(), from_ns, until_ns, amount)
