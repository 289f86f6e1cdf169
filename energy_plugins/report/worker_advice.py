"""How many loader workers would keep up with a training. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.quantity import quantity

_MOST: Final = 64
"""More than these on one machine is no advice to give."""


def more_workers(workers: JSON, wait_s: float, work_s: float) -> str:
    """Return what to do about a loader for which a step waits ``wait_s`` on average and then works ``work_s``.

    A loader without workers makes a batch while the step waits; n workers make one in each period of waiting and
    working. To be waited for no more they must make one in the time that a step works. Where there are several loaders,
    of which it is not known who is waited for, each of them is taken to be.

    Args:
        workers: of the loader, or a list of those of each; None for a loader that knows no workers.
        wait_s: 0 or more.
        work_s: more than 0.
    """
    has = list(workers) if isinstance(workers, Sequence) and not isinstance(workers, str) else [workers]
    counts = [count for count in has if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    if not counts or len(counts) < len(has):
        return f"have batches made ahead by workers (a DataLoader's num_workers), one every {quantity(work_s, 's')}"
    needed = [_needed(count, wait_s / work_s) for count in counts]
    if max(needed) > _MOST:
        return (
            f"num_workers {_listed(counts)} is too few, and to keep up it would take more than {_MOST}: make batches "
            f"cheaper, until one is ready every {quantity(work_s, 's')}"
        )
    whose = f" ({len(counts)} loaders, in their order)" if len(counts) > 1 else ""
    return f"num_workers {_listed(counts)} -> {_listed(needed)}{whose}"


def _needed(workers: int, wait_by_work: float) -> float:
    if not wait_by_work < _MOST:
        return math.inf
    return max(workers + 1, math.ceil(wait_by_work if workers == 0 else workers * (1 + wait_by_work)))


def _listed(counts: Sequence[float]) -> str:
    return ", ".join(map(str, counts))
