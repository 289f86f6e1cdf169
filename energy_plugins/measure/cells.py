"""The stretch of time that each power sample speaks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.attribution import Times, Values
from energy_plugins.measure.power_sensors import PowerSensor


@dataclass(frozen=True)
class Cells:
    """The stretch of time that each sample speaks for."""

    edges_ns: Times
    ratio: Values
    """Measured over expected power."""
    measured: NDArray[np.bool_]
    variability_w2: Values
    """Half the mean square of neighbouring samples' differences, relative to what was expected."""
    width_s: Values

    @classmethod
    def of(cls, seen_ns: Times, power_w: Values, expected_w: Values, sensor: PowerSensor) -> Cells:
        """Return cells that meet half way between samples; a gap gets a cell of its own."""
        ratio = power_w / expected_w
        apart = np.diff(seen_ns)
        half = int(np.median(apart)) // 2 if len(apart) else 10_000_000
        difference = np.diff(ratio) * (expected_w[1:] + expected_w[:-1]) / 2
        local = _smooth(difference**2 / 2, len(ratio)) + (sensor.model.noise * power_w) ** 2
        gap = np.flatnonzero(apart > sensor.gap_ns)
        edges = np.concatenate([[seen_ns[0] - half], seen_ns[:-1] + apart // 2, [seen_ns[-1] + half]])
        if not len(gap):
            return cls(edges, ratio, np.ones(len(ratio), bool), local, np.diff(edges) * 1e-9)
        edges = np.concatenate([np.delete(edges, gap + 1), seen_ns[gap] + half, seen_ns[gap + 1] - half])
        edges.sort()
        at = gap + 1
        inserted = np.insert(np.ones(len(ratio), bool), at, False)
        between = (ratio[gap] * expected_w[gap] + ratio[gap + 1] * expected_w[gap + 1]) / (
            expected_w[gap] + expected_w[gap + 1]
        )
        return cls(edges, np.insert(ratio, at, between), inserted, np.insert(local, at, 0.0), np.diff(edges) * 1e-9)


def _smooth(values: Values, length: int) -> Values:
    """Return the mean of the differences within two samples of each of ``length`` samples."""
    if not len(values):
        return np.zeros(length)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.clip(np.arange(length) - 3, 0, len(values) - 1), np.clip(np.arange(length) + 3, 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))
