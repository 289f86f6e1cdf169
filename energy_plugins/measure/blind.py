"""What a sensor hides that tells only the mean over a window: when in the window its joules were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Blind:
    """How little a sensor tells of what happens within ``window_s``.

    The power may be anything from nothing to ``highest_w`` there, and only its mean is known. ``share`` is the part of
    that freedom that the marks leave, from 0 (no window, or they explain all) to 1 (they explain nothing).
    """

    window_s: float = 0.0
    highest_w: float = 0.0
    share: float = 0.0

    def cut_j(self, power_w: Values) -> Values:
        """Return by how much a cut through a curve of means of ``power_w`` (m) can be off: ``m (h - m) W / 2 h``.

        There the curve is the mean of the true one over the window W around the cut. It is off by the integral of the
        true power, weighted with what rises from 0 at the window's start to 1/2 just before the cut, jumps to -1/2 and
        rises to 0 again. Of all powers between 0 and h whose mean is m, it is off most for the one that is h in a
        stretch of m W / h right after the cut (or before it), and 0 elsewhere.
        """
        highest_w = np.maximum(np.maximum(power_w, self.highest_w), 1e-3)
        return np.asarray(self.share * self.window_s / 2 * power_w * (highest_w - power_w) / highest_w)


def most_off_j(energy_j: Values, length_s: Values | float, highest_w: Values | float) -> Values:
    """Return by how much joules can be off that were drawn somehow: between none and the most in all of their time."""
    return np.asarray(np.maximum(energy_j, highest_w * length_s - energy_j))
