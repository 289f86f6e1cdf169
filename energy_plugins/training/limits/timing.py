"""How long each part of limiting a training takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of limiting a training, in seconds of training unless said otherwise."""

    first_steps: int = 10
    """Steps at the beginning that are left out: caches fill, kernels are chosen and compiled."""
    pace_steps: int = 5
    """After them, by which it is told how long a step takes."""
    first_s: float = 3.0
    """They last at least so long."""
    settle_s: float = 0.5
    """From a change of the limit until steps count again; the regulator of a GPU needs a few tenths of it."""
    late_s: float = 1.5
    """After which the figures of a step are there, as a rule."""
    again_s: float = 0.5
    """Between looks for figures that are not."""
    looks: int = 40
    shorter: float = 1.0
    """By which windows of a search are divided: for trials, where nothing is noisy."""
    least_steps: int = 3
    """Of a window: fewer say nothing of their scatter."""
    tries: int = 3
    """Windows that told nothing, one after the other, before the search is given up."""
    check_s: float = 5.0
    """Length of the windows in which a remembered limit is checked."""
    watch_s: float = 60.0
    """Length of the windows in which the choice is watched."""
    tolerance: float = 0.05
    """Share by which time or energy of a step may differ from what was expected before another search begins."""
    least_search_s: float = 15.0
    """A search that may take less is not begun: it could try no limit."""
    unplanned_s: float = 60.0
    """What a search may take where the end of a training is not known: it begins once that is its share."""
