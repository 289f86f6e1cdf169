"""Packages that only some renderings need: imported when they are used, and named with a remedy where they are not."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from energy_plugins.errors import ReportError


def needed(module: str, what: str) -> ModuleType:
    """Return a module of the extra ``report``; ``what`` cannot be made without it.

    Raises:
        ReportError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ReportError(f"{what} needs {package}: pip install 'energy-plugins[report]' ({error})") from error
