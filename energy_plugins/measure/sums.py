"""Sums of the energy counter alone become a piece of the energy curve, where a GPU has no reading of power."""

from __future__ import annotations

import numpy as np

from energy_plugins.measure.attribution import Z95, EnergyCurve, Times, Values
from energy_plugins.measure.blind import most_off_j
from energy_plugins.measure.curve import UNKNOWN_MOST_W, Stretch, cumulative, labels, unmeasured
from energy_plugins.measure.power_sensors import PowerSensor
from energy_plugins.measure.response import LevelFit


class SumBuilder:
    """Settles the energy curve of one GPU from sums alone.

    The levels of the kinds of work are fitted to the blocks' mean powers and the shares of time that each kind took in
    them; within a block, energy is divided in proportion to those levels.
    """

    def __init__(self, sensor: PowerSensor, max_power_w: float | None = None) -> None:
        self._sensor = sensor
        self._highest_w = max_power_w or UNKNOWN_MOST_W
        self._fit = LevelFit(sensor.model.doubt)
        self.horizon_ns = 0
        """Time up to which the counter has told the energy."""
        self.last_w = float("nan")
        """Mean power of the newest block, NaN before the first."""

    def add(self, t_ns: Times, power_w: Values) -> None:
        """Take samples: there are none."""

    def forget(self, before_ns: int) -> None:
        """Drop what no block after ``before_ns`` needs: nothing is kept."""

    def settle(self, stretch: Stretch) -> EnergyCurve:
        """Return the curve of ``stretch`` and learn from it."""
        total, segments = stretch.total, stretch.segments
        if total is None or stretch.end_ns <= total.start_ns:
            return unmeasured(stretch)
        inside = segments.edges_between(stretch.start_ns, stretch.end_ns)
        knots = np.unique(np.concatenate([[stretch.start_ns, total.start_ns, stretch.end_ns], inside]))
        middle = knots[:-1] + np.diff(knots) // 2
        kinds, column = np.unique(labels(segments, self._sensor.gap_ns)[segments.at(middle)], return_inverse=True)
        length_s = np.diff(knots) * 1e-9
        counted = middle >= total.start_ns
        counted_s = float(length_s[counted].sum())
        shares = np.bincount(column[counted], length_s[counted], len(kinds)) / counted_s
        mean_w = total.energy_j / counted_s
        levels = self._fit.update(shares[None, :], kinds, np.array([mean_w]))
        power_w = np.maximum(levels.power_w[column], 1e-3)
        power_w *= total.energy_j / max(float((power_w * length_s)[counted].sum()), 1e-12)
        self.horizon_ns, self.last_w = stretch.end_ns, mean_w
        # Of a moment between two readings nothing is known but the most that the GPU can draw.
        coherent_s = self._sensor.model.coherent_s
        off_w = most_off_j(power_w, 1.0, self._highest_w) / Z95
        # Nor of the level of a kind, but that all other kinds' time must make up for what it is off by.
        taken = (np.bincount(column, length_s, len(kinds)) / length_s.sum())[column]
        whole_w = float((power_w * length_s).sum() / length_s.sum())
        most_w = np.minimum(whole_w / taken, self._highest_w)
        least_w = np.maximum((whole_w - (1.0 - taken) * self._highest_w) / taken, 0.0)
        level_w = np.maximum(np.maximum(most_w - power_w, power_w - least_w), 0.0) / Z95
        return EnergyCurve(
            t_ns=knots,
            energy_j=cumulative(power_w * length_s),
            variance_j2=cumulative(off_w**2 * coherent_s * length_s),
            covered_ns=cumulative(np.diff(knots).astype(np.float64)),
            cut_j2=np.zeros(len(length_s)),
            shift_j=np.zeros(len(length_s)),
            trust=1.0,
            bias=0.0,
            start_error_j=mean_w * total.start_error_ns * 1e-9,
            end_error_j=mean_w * total.end_error_ns * 1e-9,
            coherent_s=coherent_s,
            level_j=level_w * length_s,
        )

    def preview(self, stretch: Stretch) -> EnergyCurve:
        """Return what the curve of ``stretch`` will be as far as is known: nothing."""
        return unmeasured(stretch)
