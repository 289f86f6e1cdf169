"""Points nvidia-ml-py at the simulated driver for a while."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

# Its cache of looked-up functions has no public name, and would go on calling the driver used before.
_functions: dict[str, object] = pynvml._nvmlGetFunctionPointer_cache  # noqa: SLF001


@contextmanager
def python_nvml(library: ctypes.CDLL) -> Iterator[None]:
    """Let nvidia-ml-py use ``library`` inside the block, and whatever it used before afterwards.

    Nested simulations share one loaded library, so for the inner one there is nothing to do.
    """
    before, functions_before = pynvml.nvmlLib, dict(_functions)
    if before is library:
        yield
        return
    _install(library, {})
    try:
        yield
    finally:
        _install(before, functions_before)


def _install(library: ctypes.CDLL | None, functions: dict[str, object]) -> None:
    pynvml.nvmlLib = library
    _functions.clear()
    _functions.update(functions)
