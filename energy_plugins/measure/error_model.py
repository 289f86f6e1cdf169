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
    unanchored: float = 0.11
    """Relative error of a sum that no counter confirms. A square wave between idle and full power, at the rate of the
    samples, passes their lag with a quarter of its first harmonic, which is up to 22 % of the mean if it is always met
    at its height."""
    unwatched: float = 0.0
    """Share of the time at which the sensor does not look. In it the power may be anything up to the most the GPU can
    draw, which falsifies a sum that no counter confirms: a load that repeats with the sensor's period looks steady."""
    doubt: float = 2e-5
    """Of the sensor's response, as `LevelFit` counts it."""
    unseen: float = 0.0
    """Relative standard error of the power of a moment that nothing averages out but time: what happened while the
    sensor did not look."""
    blind: bool = False
    """Whether the sensor tells only means over its window, so that the power may have been anything in it (`Blind`)."""
    hidden_s: float = 0.0
    """Standard error of a sum that no counter confirms, as a time at its mean power: what a mean over a second does not
    show of its last second. Of a wave of a second it shows nothing: two random moments of that are off by 0.1 s of its
    height, which is up to twice its mean."""
    coherent_s: float = 0.0
    """How long what was unseen lasts: windows shorter than that share one error instead of gathering many."""
