"""Whether the micro-batch of a training may be another: found out by all ranks, from windows run both ways."""

from __future__ import annotations

import math
from collections.abc import Callable

from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory

AGREEING = 3
"""Windows that have to agree. Ours: parts may have equal numbers of labels by chance, where most samples have the same
number; where they do in one window of two, they do in one of eight trainings in three windows. Later ones are looked
at, too (`LaterChecks`)."""
_MOST_WINDOWS = 20
"""After so many without an answer there will be none."""
_AGREES, _DIFFERS, _TOO_LARGE, _UNKNOWN = 1.0, 0.0, -1.0, math.nan


class Gate:
    """Open once the gradients of so many windows on every rank are the same either way.

    One is enough where whole batches do not fit into memory: there is no other way to run the next.

    All ranks look at their windows together, and hear the same. What one of them cannot run is a reason for all.

    Args:
        ranks: all of them.
        why_not: why this rank's training must be left as it is; empty if nothing is known against it.
        agreeing: how many windows have to agree.
    """

    def __init__(self, ranks: AllRanks, why_not: str = "", *, agreeing: int = AGREEING) -> None:
        self.is_open: bool | None = None
        """None until it is decided."""
        self.why_not = why_not
        """Why it is shut; empty if it is not."""
        self.fits = True
        """Whether there was memory enough, on all ranks."""
        self.difference: float | None = None
        """By which share of their norm gradients differed, on the rank where they did most."""
        self._ranks = ranks
        self._agreeing = agreeing
        self._windows = 0
        self._agreed = 0

    def look(self, compare: Callable[[], GradientCheck | None]) -> None:
        """Decide, if this window tells. Collective until it is decided.

        ``compare`` runs the window both ways; None if it cannot tell, because it is not a whole one.
        """
        if self.is_open is not None:
            return
        self._windows += 1
        words = self._ranks.hear(self._own(compare))
        verdicts = [verdict for verdict, _, _ in words]
        apart = max(apart for _, apart, _ in words)
        self.fits = _TOO_LARGE not in verdicts
        if _DIFFERS in verdicts or not self.fits:
            by = f": its gradients differ by {apart:.2g} of their norm" if apart else ""
            self._shut(f"another rank says no{by}" if self.fits else "it does not fit into the memory of another rank")
        elif all(verdict == _AGREES for verdict in verdicts):
            self._agreed += 1
            self.is_open = True if self._agreed >= self._agreeing or any(parts for _, _, parts in words) else None
        elif self._windows >= _MOST_WINDOWS:
            self._shut(
                f"{_MOST_WINDOWS} optimizer steps had no whole batches, or gradients that are zero or not finite"
            )
        if self.fits:
            self.difference = max(apart, self.difference or 0.0)

    def _shut(self, otherwise: str) -> None:
        self.is_open = False
        self.why_not = self.why_not or otherwise

    def _own(self, compare: Callable[[], GradientCheck | None]) -> tuple[float, float, float]:
        """Return what this rank has to say, how far its gradients are apart, and whether only parts fit."""
        if self.why_not:
            return _DIFFERS, 0.0, 0.0
        too_large = False
        try:
            check = compare()
        except Exception as error:  # noqa: BLE001 - what a training's own code says of batches that are not its own
            too_large = is_out_of_memory(error)
            said = str(error).splitlines()[0] if str(error) else repr(error)
            self.why_not = (
                "it does not fit into memory" if too_large else f"a window could not be run both ways: {said}"
            )
        if too_large:
            free_caches()
        if self.why_not:
            return (_TOO_LARGE if too_large else _DIFFERS), 0.0, 0.0
        if check is None or not check.is_known:
            return _UNKNOWN, 0.0, 0.0
        self.why_not = check.why_not
        verdict = _AGREES if check.agrees else _DIFFERS
        return verdict, min(check.difference, 1e300), float(check.samples is not None)
