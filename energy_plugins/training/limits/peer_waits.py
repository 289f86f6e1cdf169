"""Which ranks wait for a slower one, from what all tell of their backward phases. Pure.

With data parallelism the last rank's gradients end every other rank's backward: a rank waited by how much its backward
phase is longer than the shortest, as `peer_wait_j` of a report has it. A GPU spins while it waits, so nothing else that
a rank can measure alone tells waiting from work: power hardly falls, and steps take equally long on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from energy_plugins.training.step_window import Told

LEAST_SHARE = 0.02
"""Of a step: shorter waits are none to speak of. Ours, as for the stragglers that a report names."""
_SURELY = 4.0
"""Standard errors of a difference that is no accident: the shortest of many is found by looking at all of them."""


class PeerWaits:
    """What all ranks told of their backward phases, window by window; equal on all ranks, who hear the same."""

    def __init__(self) -> None:
        self._shares: list[NDArray[np.float64]] = []
        self._errors: list[NDArray[np.float64]] = []

    def add(self, words: Sequence[Told]) -> None:
        """Take what all ranks told of one window; nothing if one of them marked no phases."""
        step_s = max(word.time_s for word in words)
        shares = np.array([word.backward_s for word in words]) / step_s
        errors = np.array([word.backward_sem for word in words]) / step_s
        if np.isfinite(shares).all() and np.isfinite(errors).all():
            self._shares.append(shares)
            self._errors.append(errors)

    def who(self) -> tuple[int, ...]:
        """Return the ranks that surely wait for another, none if that is not known."""
        count = len(self._shares)
        if count == 0:
            return ()
        means = np.mean(self._shares, axis=0)
        errors = np.sqrt(np.sum(np.square(self._errors), axis=0)) / count
        if count > 1:  # whatever windows say of themselves, they may scatter more
            errors = np.maximum(errors, np.std(self._shares, axis=0, ddof=1) / np.sqrt(count))
        last = int(np.argmin(means))
        longer = means - means[last]
        waits = (longer >= LEAST_SHARE) & (longer > _SURELY * np.hypot(errors, errors[last]))
        return tuple(np.flatnonzero(waits).tolist())
