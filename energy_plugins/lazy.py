"""Public names of a package that are loaded on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Type checkers must not see them, for to them every misspelt name would be a valid one; they see the imports under
    ``TYPE_CHECKING``.

    Args:
        package: its ``__name__``.
        homes: the names that each of its modules holds, by the modules' names in it.
    """
    modules = {name: module for module, names in homes.items() for name in names}
    names = vars(sys.modules[package])

    def load(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = names[name] = getattr(import_module(f"{package}.{modules[name]}"), name)
        return value

    return load, lambda: sorted({*names, *modules})
