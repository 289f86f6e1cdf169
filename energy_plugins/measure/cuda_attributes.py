"""What CUDA says of a GPU's multiprocessors and caches, without making a context.

Attributes can be asked for once `cuInit` was called, and no context is needed for that. But children that a process
forks after `cuInit` cannot use CUDA any more, so it is called only in a short-lived child: this file, run as a program,
which is why it imports nothing but the standard library. Where the process uses CUDA already it is asked itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

ATTRIBUTES = {
    "multiprocessors": 16,
    "memory_clock_khz": 36,
    "memory_bus_bits": 37,
    "l2_bytes": 38,
    "major": 75,
    "minor": 76,
    "shared_bytes": 81,
}
"""By their numbers in CUdevice_attribute (cuda.h); ``shared_bytes`` are those of one multiprocessor."""
_CHILD_ENDS_S = 20.0
"""A driver that nobody uses takes seconds to wake."""


def attributes_of(library: str, uuid: str) -> Mapping[str, int]:
    """Return the attributes of a GPU, or of a MIG slice, by their names in `ATTRIBUTES`.

    Args:
        library: libcuda's name or path, as ``dlopen`` takes it.
        uuid: of the GPU or the slice.

    Raises:
        OSError: the library cannot be loaded, or it does not tell; the message says why.
    """
    cuda = ctypes.CDLL(library)
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:  # not initialised in this process
        return _asked_by_a_child(library, uuid)
    digits = uuid.partition("-")[2].replace("-", "")
    for ordinal in range(count.value):
        own = (ctypes.c_ubyte * 16)()
        device = ctypes.c_int()
        known = cuda.cuDeviceGet(ctypes.byref(device), ordinal) == 0 and cuda.cuDeviceGetUuid_v2(own, device) == 0
        if known and bytes(own).hex() == digits:
            return _attributes(cuda, device)
    raise OSError(f"CUDA does not know {uuid} in this process")


def _attributes(cuda: ctypes.CDLL, device: ctypes.c_int) -> dict[str, int]:
    found: dict[str, int] = {}
    value = ctypes.c_int()
    for name, number in ATTRIBUTES.items():
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0:
            found[name] = value.value
    return found


def _asked_by_a_child(library: str, uuid: str) -> dict[str, int]:
    """Start this file as a program that sees only the one GPU."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__, library],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid},
            capture_output=True,
            text=True,
            check=True,
            timeout=_CHILD_ENDS_S,
        )
        return {str(name): int(value) for name, value in json.loads(done.stdout).items()}
    except subprocess.TimeoutExpired:
        raise OSError(f"{library} did not answer in {_CHILD_ENDS_S:.0f} s") from None
    except (subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise OSError(said.strip().splitlines()[-1]) from None


def _program(library: str) -> None:
    """Print the attributes of the first GPU as JSON."""
    cuda = ctypes.CDLL(library)
    device = ctypes.c_int()
    calls: list[tuple[str, Callable[[], int]]] = [
        ("cuInit", lambda: cuda.cuInit(0)),
        ("cuDeviceGet", lambda: cuda.cuDeviceGet(ctypes.byref(device), 0)),
    ]
    for name, call in calls:
        if (code := call()) != 0:
            sys.exit(f"{name} returned {code}")
    sys.stdout.write(json.dumps(_attributes(cuda, device)))


if __name__ == "__main__":
    _program(sys.argv[1])
