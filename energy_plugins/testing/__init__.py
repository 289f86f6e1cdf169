"""Simulated GPUs for tests and demos: real drivers' symbols, scripted power, known truth, and every label SIMULATED.

The names below are loaded on first use, for pytest imports this package wherever it runs (see `fixtures`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.lazy import lazy_names

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
        MigMode,
        MissingSymbol,
        NoCounter,
        NoPermission,
        NoSampleBuffer,
        NotSupported,
        ThroughMps,
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
    "MigMode",
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
    "ThroughMps",
    "WallClockStep",
    "random_load",
    "simulated_gpus",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
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
                "MigMode",
                "MissingSymbol",
                "NoCounter",
                "NoPermission",
                "NoSampleBuffer",
                "NotSupported",
                "ThroughMps",
                "WallClockStep",
            ),
            "library": ("SimulatorError",),
            "loads": ("Constant", "Load", "Script", "Square", "Step", "random_load"),
            "profiles": ("A100", "H200", "Profile", "RTX_4090", "V100"),
            "simulation": ("Simulation", "simulated_gpus"),
        },
    )
