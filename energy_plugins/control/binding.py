"""Whether a power limit holds a GPU back: one that does not bind saves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from energy_plugins.control.nvml import POWER_CAP_REASON

_LASTING_SHARE = 1 / 3
"""Of looks: a limit that slows a GPU for less of the time saves next to nothing, and single looks catch peaks."""


@dataclass(frozen=True, kw_only=True)
class Binding:
    """Whether a limit binds, and how that is known."""

    binds: bool | None
    """None where it cannot be told."""
    drawn_w: float | None
    limit_w: float | None
    why: str


def lasting(looks: Sequence[int]) -> int | None:
    """Return the power cap's bit if it was seen in a third of the looks, 0 if not, None if there was none."""
    if not looks:
        return None
    share = sum(bool(bits & POWER_CAP_REASON) for bits in looks) / len(looks)
    return POWER_CAP_REASON if share >= _LASTING_SHARE else 0


def judge(*, drawn_w: float | None, limit_w: float | None, enforced_w: float | None, reasons: int | None) -> Binding:
    """Tell whether ``limit_w`` binds.

    It does when the GPU draws as much, or lowers its clocks because of the power (``reasons``, bits of
    nvmlClocksEventReasons that lasted while it was in force); not when another limiter is stricter (``enforced_w``).
    """
    binds: bool | None
    capped = bool(reasons & POWER_CAP_REASON) if reasons is not None else None
    if limit_w is None or drawn_w is None:
        binds, why = None, "the driver does not tell the limit or the power drawn"
    elif enforced_w is not None and enforced_w < limit_w - 1.0:
        binds, why = False, f"not binding: another limiter holds the GPU at {enforced_w:g} W"
    elif drawn_w >= limit_w:
        binds, why = True, f"the GPU draws {drawn_w:.0f} W, all that it may"
    elif capped is None:
        binds, why = None, f"the GPU draws {drawn_w:.0f} W, and whether the limit slows it is not known"
    elif capped:
        binds, why = True, f"the driver lowers the clocks because of the limit; the GPU draws {drawn_w:.0f} W"
    else:
        binds, why = False, f"not binding: the GPU draws {drawn_w:.0f} W, and nothing slows it for its power"
    return Binding(binds=binds, drawn_w=drawn_w, limit_w=limit_w, why=why)
