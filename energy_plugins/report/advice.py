"""What would save joules in the next run, most joules first: rules over a report, each with its evidence. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

from energy_plugins.measure.report import Report
from energy_plugins.report.advice_item import Advice, Sums
from energy_plugins.report.habit_advice import checkpoints, outside, power_limit
from energy_plugins.report.waste_advice import data_wait, peer_wait, stall, underfilled

_RULES: Final[tuple[Callable[[Sums], Iterator[Advice]], ...]] = (
    data_wait,
    stall,
    underfilled,
    peer_wait,
    checkpoints,
    outside,
    power_limit,
)


def advice(report: Report) -> tuple[Advice, ...]:
    """Return what to do, most joules first; nothing for a run whose joules are not known."""
    sums = Sums.of(report)
    if sums is None:
        return ()
    found = [item for rule in _RULES for item in rule(sums)]
    return tuple(sorted(found, key=lambda item: -math.inf if item.energy_j is None else item.energy_j, reverse=True))
