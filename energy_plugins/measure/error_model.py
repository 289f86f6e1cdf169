"""Constants of the error bound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorModel:
    """Constants of the error bound of one kind of sensor; the defaults are those of the driver's sample buffer.

    Calibrated against simulator truth by ``benchmarks/simulator_accuracy.py`` and ``benchmarks/sensor_plans.py``
    (docs/measuring.md).
    """

    noise: float = 0.003
    """Relative noise of one sample."""
    spread: float = 0.5
    """Variance of one sample period's energy, in units of (local variability x period)^2."""
    cut: float = 0.15
    """Variance of cutting inside a period, in the same units."""
    timing_s: float = 0.001
    """Standard error of the sensor's delay: fits of the sample buffer's on an H200 agree to a millisecond."""
    unanchored: float = 0.02
    """Relative error of a sum that no counter confirms."""
    doubt: float = 2e-5
    """Of the sensor's response, as `LevelFit` counts it."""
    unseen: float = 0.0
    """Relative standard error of the power of a moment, from what the sensor cannot show."""
    unseen_s: float = 0.0
    """How long such an error lasts: what a window holds of it does not grow beyond."""
