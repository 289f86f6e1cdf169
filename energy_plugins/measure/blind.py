"""What a sensor hides that tells only the mean over a window: when in the window its joules were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_UNSEEN = 0.05
"""Of the window: what a piece that is no longer adds to a reading is within what readings differ by anyhow."""


@dataclass(frozen=True)
class Blind:
    """How little a sensor tells of what happens within ``window_s``.

    The power may be anything from nothing to ``highest_w`` there, and only its mean is known.
    """

    window_s: float = 0.0
    highest_w: float = 0.0

    def shares(self, kinds: NDArray[np.int64], length_s: Values, unexplained: float) -> Values:
        """Return what part of that freedom marks leave in each piece of time, from 0 (none) to 1 (all of it).

        The levels of kinds leave the share ``unexplained`` of the readings' variance. That says something of a kind
        only where readings show it beside others. Inside a stretch of one kind that is longer than the window each
        reading is a mean of that kind alone, which confirms its mean and nothing else, however well the levels explain
        the change from one such stretch to the next. Pieces of other kinds that are too short to show in a reading
        do not interrupt a stretch.

        Args:
            kinds: the kind of each piece; pieces follow each other.
            length_s: how long each is.
            unexplained: see `LevelFit.unexplained`.
        """
        alone = np.zeros(len(kinds), bool)
        for kind in np.unique(kinds):
            bridged = kinds == kind
            bridged |= _stretch_s(bridged, length_s) < _UNSEEN * self.window_s
            alone |= (kinds == kind) & bridged & (_stretch_s(bridged, length_s) > self.window_s)
        # A cut between two pieces is one through either of them.
        beside = alone.copy()
        beside[1:] |= alone[:-1]
        beside[:-1] |= alone[1:]
        return np.where(beside, 1.0, np.sqrt(unexplained))

    def cut_j(self, power_w: Values) -> Values:
        """Return by how much a cut through a curve of means of ``power_w`` (m) can be off: ``m (h - m) W / 2 h``.

        There the curve is the mean of the true one over the window W around the cut. It is off by the integral of the
        true power, weighted with what rises from 0 at the window's start to 1/2 just before the cut, jumps to -1/2 and
        rises to 0 again. Of all powers between 0 and h whose mean is m, it is off most for the one that is h in a
        stretch of m W / h right after the cut (or before it), and 0 elsewhere.
        """
        highest_w = np.maximum(np.maximum(power_w, self.highest_w), 1e-3)
        return np.asarray(self.window_s / 2 * power_w * (highest_w - power_w) / highest_w)


def _stretch_s(chosen: NDArray[np.bool_], length_s: Values) -> Values:
    """Return for each piece the length of the run of pieces, chosen or not, in which it lies."""
    begins = np.flatnonzero(np.diff(chosen, prepend=not chosen[0]))
    return np.repeat(np.add.reduceat(length_s, begins), np.diff(begins, append=len(chosen)))


def most_off_j(energy_j: Values, length_s: Values | float, highest_w: Values | float) -> Values:
    """Return by how much joules can be off that were drawn somehow: between none and the most in all of their time."""
    return np.asarray(np.maximum(energy_j, highest_w * length_s - energy_j))
