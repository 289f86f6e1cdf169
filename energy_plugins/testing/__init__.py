"""Simulated GPUs for tests and demos: real drivers' symbols, scripted power, known truth, and every label SIMULATED."""

from energy_plugins.testing.device import SimulatedDevice
from energy_plugins.testing.faults import (
    CounterJump,
    CounterReset,
    DriverMismatch,
    Fault,
    GpuLost,
    Hang,
    HiddenProcesses,
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
    "GpuLost",
    "Hang",
    "HiddenProcesses",
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
