"""One piece of advice, and the figures of a report that rules look at. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from energy_plugins.measure.quantity import percent
from energy_plugins.measure.report import Report

WORTH_SAYING: Final = 0.01
"""Share of the total below which nothing is advised: less than what most sensors are off by."""


@dataclass(frozen=True)
class Advice:
    """One thing to do."""

    topic: str
    """In a word or two."""
    energy_j: float | None
    """What it is about, in joules of this run: the most that it may save. None where only trying tells."""
    share: float | None
    """The same as a share of the total."""
    sentence: str
    evidence: str
    """What in the report says so."""


@dataclass(frozen=True)
class Sums:
    """What the rules look at: of all ranks where they are known, else of this process."""

    report: Report
    whose: str
    total_j: float
    stall_j: float | None
    data_wait_j: float | None
    peer_wait_j: float | None
    steps: int

    @classmethod
    def of(cls, report: Report) -> Sums | None:
        """Return them; None where no total is known."""
        ranks = report.ranks
        if ranks is not None and ranks.total_j is not None and len(ranks.rows) > 1:
            of_all = (ranks.total_j, ranks.stall_j, ranks.data_wait_j, ranks.peer_wait_j, ranks.steps)
            sums = cls(report, f"all {ranks.world_size} ranks' energy", *of_all)
        else:
            own = (report.stall_j, report.data_wait_j, report.peer_wait_j, report.work.steps)
            sums = cls(report, "this run's energy", report.total_j or 0.0, *own)
        return sums if 0.0 < sums.total_j < math.inf else None

    def about(self, topic: str, energy_j: float, was: str, remedy: str, evidence: str) -> Advice:
        """Return the advice: its share, what the joules ``was`` spent on, and what to do."""
        share = energy_j / self.total_j
        sentence = f"{percent(share)} of {self.whose} was {was}: {remedy}"
        return Advice(topic, energy_j, share, sentence, evidence)

    def worth(self, energy_j: float | None, least: float = WORTH_SAYING) -> bool:
        """Tell whether joules are known and many enough."""
        return energy_j is not None and least * self.total_j <= energy_j < math.inf
