"""GPUs that exist only in memory, and the context manager that puts them in place of the real ones."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ctypes import byref
from dataclasses import asdict
from pathlib import Path

from energy_plugins.control.journal import JOURNAL_VARIABLE
from energy_plugins.measure.drivers import (
    CUDA_VARIABLE,
    EVENT_SOURCES_VARIABLE,
    NVML_VARIABLE,
    POWERCAP_VARIABLE,
    Clock,
    Drivers,
    use_drivers,
)
from energy_plugins.testing import library
from energy_plugins.testing.clocks import SimulatedClock, VirtualClock
from energy_plugins.testing.device import SimulatedDevice
from energy_plugins.testing.faults import CounterJump, Fault, WallClockStep
from energy_plugins.testing.loads import Constant, Load
from energy_plugins.testing.old_driver import without_symbols
from energy_plugins.testing.profiles import H200, Profile
from energy_plugins.testing.python_nvml import python_nvml

STATE_VARIABLE = "ENERGY_SIM_STATE"

_MIN_FREE_BYTES = 1 << 30
_DEFAULT_LOAD = Constant(120.0)


class Simulation:
    """Simulated GPUs and their time, as `simulated_gpus` hands them out."""

    def __init__(self, state: Path, count: int, *, virtual: bool) -> None:
        self.state = state
        self.virtual = virtual
        self.nvml_path = str(library.NVML_PATH)
        self.cuda_path = str(library.CUDA_PATH)
        self.library_folder = library.FOLDER
        self.powercap = state.with_name("powercap")
        """Where its CPU's counters would be; there are none unless a test makes this folder."""
        self.event_sources = state.with_name("event_sources")
        self.journal = state.with_name("journal")
        """Where what is changed of these GPUs is written down."""
        self.clock: Clock = VirtualClock(self.nvml_path) if virtual else SimulatedClock(self.nvml_path)
        self.gpus = tuple(SimulatedDevice(index, self.clock) for index in range(count))

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of virtual time pass, calling every attached tick at its deadlines.

        Raises:
            RuntimeError: the simulation runs in real time.
        """
        if not self.virtual:
            raise RuntimeError("real time advances by itself; ask for simulated_gpus(virtual=True)")
        self.clock.sleep(seconds)

    def suspend(self, seconds: float, power_w: float = 0.0) -> None:
        """Let the machine sleep for ``seconds``, while each GPU's counter counts ``power_w``.

        The monotonic clock stands still meanwhile, and so do the loads that the GPUs play; the wall clock goes on.
        """
        library.check(library.nvml().ep_sim_suspend(round(seconds * 1e9)), "suspend")
        for gpu in self.gpus:
            gpu.inject(CounterJump(seconds * power_w))

    @contextmanager
    def lacking(self, *symbols: str) -> Iterator[Path]:
        """Let this process open an NVML library without ``symbols``, on the same GPUs; give its path.

        Raises:
            ValueError: the simulated library does not have one of them anyway.
        """
        name = library.NVML_PATH.name
        with ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="energy-sim-")))
            path = without_symbols(library.NVML_PATH, symbols, folder / name)
            undo.enter_context(python_nvml(ctypes.CDLL(str(path))))
            undo.enter_context(use_drivers(Drivers(nvml=str(path), cuda=self.cuda_path, clock=self.clock)))
            yield path

    def capturing(self, status: int) -> int:
        """Set the capture status of this process's streams (0 none, 1 active) and return the one before (2: broken)."""
        return int(library.cuda().ep_sim_capture(status))

    def variables(self) -> dict[str, str]:
        """Return the environment variables that point a process at this simulation."""
        return {
            STATE_VARIABLE: str(self.state),
            NVML_VARIABLE: self.nvml_path,
            CUDA_VARIABLE: self.cuda_path,
            POWERCAP_VARIABLE: str(self.powercap),
            EVENT_SOURCES_VARIABLE: str(self.event_sources),
            JOURNAL_VARIABLE: str(self.journal),
        }

    def environment(self) -> dict[str, str]:
        """Return a whole environment for a subprocess; any program in it finds these GPUs by the drivers' own names."""
        folders = [str(self.library_folder), os.environ.get("LD_LIBRARY_PATH", "")]
        return {**os.environ, **self.variables(), "LD_LIBRARY_PATH": ":".join(filter(None, folders))}


@contextmanager
def simulated_gpus(  # noqa: PLR0913 - each is a separate fact about the machine to pretend
    load: Load | Sequence[Load] = _DEFAULT_LOAD,
    *,
    count: int | None = None,
    virtual: bool = False,
    start_s: float = 0.0,
    profile: Profile = H200,
    faults: Sequence[Fault] = (),
    seed: int = 0,
    cuda: bool = True,
) -> Iterator[Simulation]:
    """Pretend that this machine, and every process started inside the block, has simulated GPUs.

    Args:
        load: what the GPUs draw while no work is launched: one for all of them, or one for each.
        count: how many GPUs; by default one, or as many as there are loads.
        virtual: time stands still except for `Simulation.advance`, sleeps of its clock, and the cost of driver calls.
        start_s: how much of the load has already been played; the virtual clock begins there.
        profile: what kind of GPU.
        faults: what is wrong, on each of them, from the beginning.
        seed: decides sensor noise, stamps, refresh phases, call costs and UUIDs.
        cuda: whether CUDA looks initialised, with a context on every thread.

    Frameworks that are compiled for CUDA count GPUs through the driver and may choose these: ask them for the CPU.

    Raises:
        SimulatorError: the simulated libraries have not been built, or loads and count disagree.
    """
    loads = list(load) if isinstance(load, Sequence) else [load] * (1 if count is None else count)
    count = len(loads) if count is None else count
    if len(loads) != count:
        raise library.SimulatorError(f"{len(loads)} loads for {count} GPUs")
    with ExitStack() as undo:
        described = library.CProfile(**{**asdict(profile), "name": profile.name.encode()})
        config = library.CConfig(described, seed, round(start_s * 1e9), count, virtual, cuda)
        state = undo.enter_context(_state_file(config))
        undo.enter_context(_attached(state))
        undo.enter_context(python_nvml(library.nvml()))
        simulation = Simulation(state, count, virtual=virtual)
        origin_ns = int(library.nvml().ep_sim_origin_ns())
        for gpu, own_load in zip(simulation.gpus, loads, strict=True):
            gpu.play_from(own_load, origin_ns)
        for fault in faults:
            for gpu in simulation.gpus[: 1 if isinstance(fault, WallClockStep) else None]:
                gpu.inject(fault)
        undo.enter_context(_environment(simulation.variables()))
        drivers = Drivers(
            nvml=simulation.nvml_path,
            cuda=simulation.cuda_path,
            clock=simulation.clock,
            powercap=str(simulation.powercap),
            event_sources=str(simulation.event_sources),
        )
        undo.enter_context(use_drivers(drivers))
        undo.callback(_heal, simulation)
        yield simulation


def _heal(simulation: Simulation) -> None:
    """Let go of threads that hang in a call: nobody else would."""
    for gpu in simulation.gpus:
        gpu.heal()


_attachments: list[Path] = []


@contextmanager
def _attached(state: Path) -> Iterator[None]:
    library.attach(state)
    _attachments.append(state)
    try:
        yield
    finally:
        _attachments.remove(state)
        library.attach(_attachments[-1] if _attachments else None)


@contextmanager
def _state_file(config: library.CConfig) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="energy-sim-", dir=_roomy_folder()) as folder:
        state = Path(folder, "state")
        library.check(library.nvml().ep_sim_create(os.fsencode(state), byref(config)), f"create {state}")
        yield state


def _roomy_folder() -> str | None:
    """Memory if there is room for the state of long runs, else the temporary folder."""
    shm = Path("/dev/shm")  # noqa: S108 - TemporaryDirectory makes the private folder in it
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free >= _MIN_FREE_BYTES else None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
