"""Which kind of GPU is simulated.

Sensor windows by generation: arXiv:2312.02741. Power and rates of all but the H200 are the data sheets', roughly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a kind of GPU draws and does. What is not said here of its sensors is as on an H200."""

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
    compute_capability: float = 9.0
    usage_window_s: float = 1.0
    """What the driver calls power usage is the mean over so long."""
    power_age_s: float = 0.02
    """How old the mean is when it appears, as measured on an H200 (benchmarks/results/h200_sensors.json)."""
    power_refresh_s: float = 0.1
    """How often it, and the average and instant power, come to a new value."""
    multiprocessors: float = 132.0
    shared_bytes: float = 228 * 2.0**10
    """Memory that the threads of one multiprocessor may share."""
    l2_bytes: float = 60 * 2.0**20
    memory_bus_bits: float = 6144.0
    memory_clock_mhz: float = 3201.0


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

RTX_4090 = replace(
    H200,
    name="NVIDIA GeForce RTX 4090 (SIMULATED)",
    idle_w=25.0,
    compute_w=400.0,
    memory_w=150.0,
    ops_per_s=160e12,
    bytes_per_s=0.95e12,
    min_limit_w=150.0,
    max_limit_w=450.0,
    max_clock_mhz=2520.0,
    memory_bytes=24564 * 2.0**20,
    compute_capability=8.9,
    multiprocessors=128.0,
    shared_bytes=100 * 2.0**10,
    l2_bytes=72 * 2.0**20,
    memory_bus_bits=384.0,
    memory_clock_mhz=10501.0,
)
"""Power usage is a mean over a second."""

A100 = replace(
    H200,
    name="NVIDIA A100-SXM4-40GB (SIMULATED)",
    idle_w=55.0,
    compute_w=320.0,
    memory_w=180.0,
    ops_per_s=280e12,
    bytes_per_s=1.4e12,
    min_limit_w=100.0,
    max_limit_w=400.0,
    max_clock_mhz=1410.0,
    memory_bytes=40960 * 2.0**20,
    compute_capability=8.0,
    usage_window_s=0.025,
    multiprocessors=108.0,
    shared_bytes=164 * 2.0**10,
    l2_bytes=40 * 2.0**20,
    memory_bus_bits=5120.0,
    memory_clock_mhz=1215.0,
)
"""Power usage is 25 ms of every 100."""

V100 = replace(
    A100,
    name="Tesla V100-SXM2-16GB (SIMULATED)",
    idle_w=40.0,
    compute_w=240.0,
    memory_w=120.0,
    ops_per_s=100e12,
    bytes_per_s=0.8e12,
    max_limit_w=300.0,
    max_clock_mhz=1530.0,
    memory_bytes=16160 * 2.0**20,
    compute_capability=7.0,
    usage_window_s=0.02,
    power_age_s=0.0,
    power_refresh_s=0.02,
    multiprocessors=80.0,
    shared_bytes=96 * 2.0**10,
    l2_bytes=6 * 2.0**20,
    memory_bus_bits=4096.0,
    memory_clock_mhz=877.0,
)
"""Power usage comes every 20 ms."""
