"""Points nvidia-ml-py at the simulated driver for a while."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from energy_plugins.measure.python_nvml import library_in_use, use_library


@contextmanager
def python_nvml(library: ctypes.CDLL) -> Iterator[None]:
    """Let nvidia-ml-py use ``library`` inside the block, and whatever it used before afterwards.

    Nested simulations share one loaded library, so for the inner one nothing changes.
    """
    before = library_in_use()
    use_library(library)
    try:
        yield
    finally:
        use_library(before)
