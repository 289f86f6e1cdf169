"""Which library nvidia-ml-py calls: left alone it opens one by name, and it has no public way to be given another."""

from __future__ import annotations

import ctypes

import pynvml

# Its cache of looked-up functions would go on calling the library used before.
_functions: dict[str, object] = pynvml._nvmlGetFunctionPointer_cache  # noqa: SLF001 - it has no public name


def library_in_use() -> ctypes.CDLL | None:
    """Return the library that nvidia-ml-py calls, None if it has opened none yet."""
    library: ctypes.CDLL | None = pynvml.nvmlLib
    return library


def use_library(library: ctypes.CDLL | None) -> None:
    """Let nvidia-ml-py call ``library`` from now on; None: the one that it will open by name."""
    if library is not pynvml.nvmlLib:
        _functions.clear()
        pynvml.nvmlLib = library


def open_library(path: str) -> None:
    """Let nvidia-ml-py call the library at ``path``.

    Raises:
        OSError: there is none.
    """
    before = library_in_use()
    if before is None or before._name != path:  # noqa: SLF001 - ctypes has no public name for it either
        use_library(ctypes.CDLL(path))
