"""Conversions at the edges: inside, everything is in SI units, and every name says which."""

from __future__ import annotations

JOULES_PER_WH = 3600.0
"""One watt for one hour, by definition."""


def mj_to_j(energy_mj: float) -> float:
    """Convert millijoules, in which NVML counts energy, to joules."""
    return energy_mj / 1e3


def mw_to_w(power_mw: float) -> float:
    """Convert milliwatts, in which NVML gives power, to watts."""
    return power_mw / 1e3


def w_to_mw(power_w: float) -> int:
    """Convert watts to whole milliwatts, in which NVML is told a limit."""
    return round(power_w * 1e3)


def j_to_wh(energy_j: float) -> float:
    """Convert joules to watt-hours."""
    return energy_j / JOULES_PER_WH


def j_to_kwh(energy_j: float) -> float:
    """Convert joules to kilowatt-hours, the unit of an electricity bill."""
    return energy_j / (1e3 * JOULES_PER_WH)


def kwh_to_j(energy_kwh: float) -> float:
    """Convert kilowatt-hours to joules."""
    return energy_kwh * 1e3 * JOULES_PER_WH
