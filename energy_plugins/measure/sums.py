"""Sums of the energy counter alone become a piece of the energy curve, where a GPU has no reading of power."""

from __future__ import annotations

import numpy as np

from energy_plugins.measure.attribution import EnergyCurve, Times, Values
from energy_plugins.measure.curve import Stretch, cumulative, labels, unmeasured
from energy_plugins.measure.power_sensors import PowerSensor
from energy_plugins.measure.response import LevelFit


class SumBuilder:
    """Settles the energy curve of one GPU from sums alone.

    The levels of the kinds of work are fitted to the blocks' mean powers and the shares of time that each kind took in
    them; within a block, energy is divided in proportion to those levels.
    """

    def __init__(self, sensor: PowerSensor) -> None:
        self._sensor = sensor
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
        model = self._sensor.model
        return EnergyCurve(
            t_ns=knots,
            energy_j=cumulative(power_w * length_s),
            variance_j2=cumulative((model.unseen * power_w) ** 2 * model.coherent_s * length_s),
            covered_ns=cumulative(np.diff(knots).astype(np.float64)),
            cut_j2=np.zeros(len(length_s)),
            shift_j=np.zeros(len(length_s)),
            trust=1.0,
            bias=0.0,
            start_error_j=mean_w * total.start_error_ns * 1e-9,
            end_error_j=mean_w * total.end_error_ns * 1e-9,
            coherent_s=model.coherent_s,
        )

    def preview(self, stretch: Stretch) -> EnergyCurve:
        """Return what the curve of ``stretch`` will be as far as is known: nothing."""
        return unmeasured(stretch)
