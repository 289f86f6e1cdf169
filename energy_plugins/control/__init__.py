"""The only room that changes a GPU, and puts back what it found, whatever happens.

The names below are loaded on first use: the watchdog imports this package in a bare interpreter.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energy_plugins.control.advise import Advise
    from energy_plugins.control.backend import BackEnd, Lease, Request, Standing, Status
    from energy_plugins.control.binding import Binding
    from energy_plugins.control.direct import DirectNvml
    from energy_plugins.control.entry import Knob
    from energy_plugins.control.locked_clocks import HeldClocks, LockedClocks
    from energy_plugins.control.power_limit import Advice, HeldLimit, PowerLimit

__all__ = [
    "Advice",
    "Advise",
    "BackEnd",
    "Binding",
    "DirectNvml",
    "HeldClocks",
    "HeldLimit",
    "Knob",
    "Lease",
    "LockedClocks",
    "PowerLimit",
    "Request",
    "Standing",
    "Status",
]

_HOMES = {
    "advise": ("Advise",),
    "backend": ("BackEnd", "Lease", "Request", "Standing", "Status"),
    "binding": ("Binding",),
    "direct": ("DirectNvml",),
    "entry": ("Knob",),
    "locked_clocks": ("HeldClocks", "LockedClocks"),
    "power_limit": ("Advice", "HeldLimit", "PowerLimit"),
}
"""Which module holds which public names."""
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

# Hidden from type checkers: to them it would make every misspelt name a valid one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the module that holds a public name when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
