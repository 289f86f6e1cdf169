"""What ranks tell each other between the windows of a search for a micro-batch."""

from __future__ import annotations

import math
from typing import NamedTuple

from energy_plugins.training.limits.windows import Windows
from energy_plugins.training.micro_batch.doubt import Doubt, GradientsDifferError, first_of
from energy_plugins.training.micro_batch.own_sizes import OwnSizes


class Word(NamedTuple):
    """What one rank tells the others between windows."""

    able: float
    """1 if it measures."""
    step_s: float
    elapsed_s: float
    left_s: float
    """Until the end of the training; NaN where that is not known."""
    failed: float
    """The smallest size that ran out of memory, 0 if none did."""
    remembered: float
    """The size that was chosen for such a training before, 0 if none is known. Rank 0's counts."""
    checked_s: float = 0.0
    """What comparing gradients has taken before a search."""
    in_doubt: float = 0.0
    """The optimizer step whose gradients would have differed, and what `Doubt` has beside it; 0 if none would."""
    difference: float = 0.0
    first: float = 0.0
    last: float = 0.0


class RankWords:
    """Tells the others what this rank knows, and keeps what all have heard.

    Args:
        windows: of the training.
        rank: this one.
        remembered: see `Word.remembered`.
        checked_s: see `Word.checked_s`.
    """

    def __init__(self, windows: Windows, rank: OwnSizes, *, remembered: int, checked_s: float) -> None:
        self.start = 0
        """The user's size, once it is known."""
        self._windows = windows
        self._rank = rank
        self._remembered = remembered
        self._checked_s = checked_s
        self._failed: set[int] = set()
        """Sizes that ran out of memory on a rank."""

    def hear(self) -> list[Word]:
        """Return what all ranks say, the first one's first. Collective.

        Raises:
            GradientsDifferError: on all ranks, if one of them has a doubt.
        """
        rank, step_s = self._rank, self._windows.step_s
        left_s = rank.left_s(step_s)
        own = Word(
            able=float(not rank.trouble),
            step_s=step_s,
            elapsed_s=rank.elapsed_s,
            left_s=math.nan if left_s is None else left_s,
            failed=float(rank.failed),
            remembered=float(self._remembered),
            checked_s=self._checked_s,
        )
        if rank.doubt is not None:
            own = own._replace(
                **dict(zip(("in_doubt", "difference", "first", "last"), rank.doubt.numbers, strict=True))
            )
        rank.failed = 0
        words = [Word(*word) for word in self._windows.ranks.hear(own)]
        self._failed |= {round(word.failed) for word in words if word.failed}
        doubt = first_of([Doubt(word.in_doubt, word.difference, word.first, word.last) for word in words])
        if doubt is not None:
            raised = "" if rank.doubt is None else rank.doubt.raised
            raise GradientsDifferError(doubt._replace(raised=raised))
        return words

    def is_too_large(self, size: int) -> bool:
        """Tell whether it ran out of memory, or one below did that was to be used because the user's does not fit."""
        return size in self._failed or any(one <= size <= self.start for one in self._failed)
