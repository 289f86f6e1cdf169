"""Which kind of GPU is simulated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a kind of GPU draws and does. Its sensors are those of an H200 whatever the profile."""

    name: str
    idle_w: float
    compute_w: float
    """Drawn on top of idle by arithmetic alone at full clock."""
    memory_w: float
    """Drawn on top of idle by memory traffic alone."""
    ops_per_s: float
    bytes_per_s: float
    launch_s: float
    """Device time every kernel costs beside its work."""
    min_limit_w: float
    max_limit_w: float
    min_clock_mhz: float
    max_clock_mhz: float
    memory_bytes: float


H200 = Profile(
    name="NVIDIA H200 (SIMULATED)",
    idle_w=125.0,
    compute_w=545.0,
    memory_w=350.0,
    ops_per_s=800e12,  # what large bf16 matrix products reach of the data sheet's 990e12
    bytes_per_s=4.3e12,  # of 4.8e12
    launch_s=4e-6,
    min_limit_w=200.0,
    max_limit_w=700.0,
    min_clock_mhz=345.0,
    max_clock_mhz=1980.0,
    memory_bytes=143771 * 2.0**20,
)
"""NVIDIA H200 SXM: power, limits and clocks as read on one (driver 580), rates as its benchmarks reach them."""
