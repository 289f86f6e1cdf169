"""Numbers as people read them: SI prefixes, bounds with the digits they deserve, shares that add up. ASCII only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

_PREFIXES = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
_DIGITS = 4


def quantity(value: float, unit: str) -> str:
    """Return ``value`` with four digits and the SI prefix that keeps it between 1 and 1000: ``12.35 kJ``."""
    if not math.isfinite(value):
        return f"? {unit}"
    power = _prefix_power(value)
    if power is None:
        return f"{value:.3e} {unit}"
    scaled = value / 1000.0**power
    decimals = max(0, _DIGITS - 1 - _exponent(scaled)) if scaled else 0
    return f"{scaled:.{decimals}f} {_PREFIXES[power]}{unit}"


def binary(size_bytes: float) -> str:
    """Return a number of bytes with three digits and the binary prefix that fits, as caches are given: ``60.0 MiB``."""
    scaled, prefixes = float(size_bytes), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    prefix = next(prefixes)
    while scaled >= 999.5 and prefix != "TiB":
        scaled, prefix = scaled / 1024, next(prefixes)
    decimals = 0 if prefix == "B" else max(0, 2 - _exponent(scaled, 3)) if scaled else 0
    return f"{scaled:.{decimals}f} {prefix}"


def bounded(value: float, bound: float, unit: str) -> str:
    """Return ``value`` and its error bound in one unit, to the bound's second digit: ``12.35 +/- 0.12 kJ``."""
    power = _prefix_power(max(abs(value), abs(bound)))
    if not (math.isfinite(value) and math.isfinite(bound)) or power is None or bound <= 0:
        return f"{quantity(value, unit)} +/- {quantity(bound, unit)}"
    scale = 1000.0**power
    decimals = min(max(0, 1 - _exponent(bound / scale, 2)), 6)
    return f"{value / scale:.{decimals}f} +/- {bound / scale:.{decimals}f} {_PREFIXES[power]}{unit}"


def percent(fraction: float, decimals: int = 1) -> str:
    """Return a fraction as per cent, ``12.3 %``; what is unknown (NaN) as nothing."""
    if math.isnan(fraction):
        return ""
    return f"{100 * fraction:.{decimals}f} %" if abs(fraction) < 1e4 else "> 1e6 %"


def duration(seconds: float) -> str:
    """Return a duration in the two units that matter: ``850.0 ms``, ``12.35 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if not 60 <= seconds < 1e9:
        return quantity(seconds, "s")
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60:02d} s" if hours == 0 else f"{hours:,} h {minutes % 60:02d} min"


def age_at(then: str, now: str) -> str:
    """Return how long before ``now`` it was ``then``: ``3 days``, ``2 h 07 min``; nothing if that cannot be told.

    Both are times in ISO 8601.
    """
    try:
        age = datetime.fromisoformat(now) - datetime.fromisoformat(then)
    except (ValueError, TypeError):  # no time at all, or only one of them has a zone
        return ""
    return f"{age.days} days" if age.days > 1 else duration(max(age.total_seconds(), 0.0))


def bar(fraction: float, width: int = 20) -> str:
    """Return a bar of ``width`` characters, filled to ``fraction``; of what is unknown (NaN), nothing."""
    if math.isnan(fraction):
        return ""
    filled = round(min(max(fraction, 0.0), 1.0) * width)
    return "#" * filled + "." * (width - filled)


def shares(parts: Sequence[float], total: float) -> list[float]:
    """Return each part's fraction of ``total``; parts that make up the total are rounded and add up to 100.0 %.

    What rounding down leaves over goes to the parts it cut most. NaN where the total is unknown or nothing.
    """
    if not (math.isfinite(total) and total > 0 and all(math.isfinite(part) for part in parts)):
        return [math.nan] * len(parts)
    exact = [1000 * (part / total) for part in parts]
    if not abs(sum(exact) - 1000) <= 0.5:  # they are not the whole, or overflow
        return [part / 1000 for part in exact]
    floors = [math.floor(part) for part in exact]
    most_cut = sorted(range(len(parts)), key=lambda i: floors[i] - exact[i])
    for i in most_cut[: max(0, 1000 - sum(floors))]:
        floors[i] += 1
    return [part / 1000 for part in floors]


def _exponent(value: float, digits: int = _DIGITS) -> int:
    """Return the decimal exponent of ``value`` as it will be after rounding to ``digits`` digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _prefix_power(value: float) -> int | None:
    """Return the power of 1000 to write ``value`` in, None if there is no prefix for it."""
    power = _exponent(value) // 3 if value else 0
    return power if power in _PREFIXES else None
