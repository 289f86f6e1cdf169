"""The control interface of the simulated libraries (csrc/sim/control.hpp), through ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import c_char, c_char_p, c_double, c_int, c_int32, c_int64, c_uint32, c_uint64
from dataclasses import fields
from enum import IntEnum
from pathlib import Path

from energy_plugins.testing.profiles import Profile

FOLDER = Path(__file__).resolve().parent / "lib"
NVML_PATH = FOLDER / "libnvidia-ml.so.1"
CUDA_PATH = FOLDER / "libcuda.so.1"


class SimulatorError(RuntimeError):
    """The simulated libraries are missing, or refuse what is asked of them."""


class CProfile(ctypes.Structure):
    """EpSimProfile."""

    _fields_ = (
        ("name", c_char * 64),
        *((field.name, c_double) for field in fields(Profile) if field.name != "name"),
    )


class CConfig(ctypes.Structure):
    """EpSimConfig."""

    _fields_ = (
        ("profile", CProfile),
        ("seed", c_uint64),
        ("elapsed_ns", c_int64),
        ("device_count", c_uint32),
        ("virtual_time", c_int32),
        ("contexts", c_int32),
    )


class FaultKind(IntEnum):
    """EpSimFaultKind."""

    NO_PERMISSION = 0
    GPU_LOST = 1
    HANG = 2
    MISSING_SYMBOL = 3
    NO_SAMPLE_BUFFER = 4
    NO_COUNTER = 5
    COUNTER_RESET = 6
    NOT_SUPPORTED = 7
    NO_PROCESSES = 8
    FOREIGN_PIDS = 9
    COUNTER_JUMP = 10
    DRIVER_MISMATCH = 11
    FOREIGN_LIMIT = 12
    IGNORED = 13


class CFault(ctypes.Structure):
    """EpSimFault."""

    _fields_ = (
        ("kind", c_int32),
        ("call", c_char * 60),
        ("from_ns", c_int64),
        ("until_ns", c_int64),
        ("amount", c_double),
    )


_INT64_P = ctypes.POINTER(c_int64)
_DOUBLE_P = ctypes.POINTER(c_double)

_SIGNATURES: dict[str, tuple[type, tuple[type, ...]]] = {
    "ep_sim_create": (c_int, (c_char_p, ctypes.POINTER(CConfig))),
    "ep_sim_attach": (c_int, (c_char_p,)),
    "ep_sim_monotonic_ns": (c_int64, ()),
    "ep_sim_wall_ns": (c_int64, ()),
    "ep_sim_origin_ns": (c_int64, ()),
    "ep_sim_advance": (type(None), (c_int64,)),
    "ep_sim_step_wall_clock": (c_int, (c_int64,)),
    "ep_sim_suspend": (c_int, (c_int64,)),
    "ep_sim_suspended_ns": (c_int64, ()),
    "ep_sim_uuid": (c_int, (c_uint32, c_char_p, c_uint32)),
    "ep_sim_play": (c_int, (c_uint32, _INT64_P, _DOUBLE_P, c_uint32, c_int, c_int64)),
    "ep_sim_launch": (c_int64, (c_uint32, c_double, c_double)),
    "ep_sim_idle_at_ns": (c_int64, (c_uint32,)),
    "ep_sim_energy_j": (c_double, (c_uint32, c_int64, c_int64)),
    "ep_sim_inject": (c_int, (c_uint32, ctypes.POINTER(CFault))),
    "ep_sim_heal": (c_int, (c_uint32,)),
}


@functools.cache
def nvml() -> ctypes.CDLL:
    """Return the simulated NVML of this process, with its controls declared.

    Raises:
        SimulatorError: it has not been built.
    """
    library = _load(NVML_PATH)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = None if result is type(None) else result
        function.argtypes = arguments
    return library


@functools.cache
def cuda() -> ctypes.CDLL:
    """Return the simulated CUDA driver of this process.

    Raises:
        SimulatorError: it has not been built.
    """
    library = _load(CUDA_PATH)
    library.ep_sim_attach.argtypes = (c_char_p,)
    return library


def attach(state: Path | None) -> None:
    """Make ``state`` what the simulated drivers of this process show; ``None``: no driver is loaded.

    Raises:
        SimulatorError: the libraries are missing or cannot map the file.
    """
    path = None if state is None else os.fsencode(state)
    for library in (nvml(), cuda()):
        check(library.ep_sim_attach(path), f"attach to {state}")


def check(error: int, doing: str) -> None:
    """Raise SimulatorError if ``error`` is an errno."""
    if error != 0:
        raise SimulatorError(f"the simulated GPU cannot {doing}: {os.strerror(error)}")


def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise SimulatorError(
            f"{path} is missing: build it with `make install` or `python setup.py build_ext --inplace`"
        )
    return ctypes.CDLL(str(path))
