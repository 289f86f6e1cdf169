"""Simulated GPUs for tests and demos: real drivers' symbols, scripted power, known truth, and every label SIMULATED."""

from energy_plugins.testing.device import SimulatedDevice
from energy_plugins.testing.faults import (
    CounterJump,
    CounterReset,
    DriverMismatch,
    Fault,
    GpuLost,
    Hang,
    MissingSymbol,
    NoCounter,
    NoPermission,
    NoSampleBuffer,
    WallClockStep,
)
from energy_plugins.testing.library import SimulatorError
from energy_plugins.testing.loads import Constant, Load, Script, Square, Step, random_load
from energy_plugins.testing.profiles import H200, Profile
from energy_plugins.testing.simulation import Simulation, simulated_gpus

__all__ = [
    "H200",
    "Constant",
    "CounterJump",
    "CounterReset",
    "DriverMismatch",
    "Fault",
    "GpuLost",
    "Hang",
    "Load",
    "MissingSymbol",
    "NoCounter",
    "NoPermission",
    "NoSampleBuffer",
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
