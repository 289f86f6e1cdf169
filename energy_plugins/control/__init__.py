"""The only room that changes a GPU, and puts back what it found, whatever happens.

The names below are loaded on first use: the watchdog imports this package in a bare interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.lazy import lazy_names

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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "advise": ("Advise",),
            "backend": ("BackEnd", "Lease", "Request", "Standing", "Status"),
            "binding": ("Binding",),
            "direct": ("DirectNvml",),
            "entry": ("Knob",),
            "locked_clocks": ("HeldClocks", "LockedClocks"),
            "power_limit": ("Advice", "HeldLimit", "PowerLimit"),
        },
    )
