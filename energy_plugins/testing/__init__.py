"""Simulated GPUs for tests and demos: real drivers' symbols, scripted power, known truth, and every label SIMULATED.

The names below are loaded on first use, for pytest imports this package wherever it runs (see `fixtures`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energy_plugins.testing.device import SimulatedDevice
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
    from energy_plugins.testing.library import SimulatorError
    from energy_plugins.testing.loads import Constant, Load, Script, Square, Step, random_load
    from energy_plugins.testing.profiles import A100, H200, RTX_4090, V100, Profile
    from energy_plugins.testing.simulation import Simulation, simulated_gpus

__all__ = [
    "A100",
    "H200",
    "RTX_4090",
    "V100",
    "Constant",
    "CounterJump",
    "CounterReset",
    "DriverMismatch",
    "Fault",
    "ForeignLimit",
    "GpuLost",
    "Hang",
    "HiddenProcesses",
    "Ignored",
    "Load",
    "MissingSymbol",
    "NoCounter",
    "NoPermission",
    "NoSampleBuffer",
    "NotSupported",
    "Profile",
    "Script",
    "SimulatedDevice",
    "Simulation",
    "SimulatorError",
    "Square",
    "Step",
    "WallClockStep",
    "random_load",
    "simulated_gpus",
]

_HOMES = {
    "device": ("SimulatedDevice",),
    "faults": (
        "CounterJump",
        "CounterReset",
        "DriverMismatch",
        "Fault",
        "ForeignLimit",
        "GpuLost",
        "Hang",
        "HiddenProcesses",
        "Ignored",
        "MissingSymbol",
        "NoCounter",
        "NoPermission",
        "NoSampleBuffer",
        "NotSupported",
        "WallClockStep",
    ),
    "library": ("SimulatorError",),
    "loads": ("Constant", "Load", "Script", "Square", "Step", "random_load"),
    "profiles": ("A100", "H200", "Profile", "RTX_4090", "V100"),
    "simulation": ("Simulation", "simulated_gpus"),
}
"""Which module holds which public names."""
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

# Hidden from type checkers: to them it would make every misspelt name a valid one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the module that holds a public name when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
