"""What a sweep cost and found: the Pareto front of metric against energy, its knee, and joules by how trials ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

COMPLETE: Final = "complete"


@dataclass(frozen=True, kw_only=True)
class SweepTrial:
    """One trial, as a study keeps it; None is not known."""

    number: int
    state: str
    """"complete", "pruned", "fail", "running" or "waiting"."""
    value: float | None
    energy_j: float | None
    duration_s: float | None
    to_target_j: float | None
    to_target_s: float | None
    shared: bool
    """Whether its joules are those of other trials on the same GPU too."""
    simulated: bool = False
    """Whether its GPUs were."""
    params: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A study."""

    study: str
    metric: str
    maximize: bool
    """Whether more of the metric is better."""
    trials: Sequence[SweepTrial]
    budget_j: float | None
    importance: Mapping[str, float] | None
    """Of each hyperparameter for a trial's energy, 1 in sum."""
    why_no_importance: str = ""

    @property
    def energy_j(self) -> float:
        """What all trials drew."""
        return math.fsum(trial.energy_j for trial in self.trials if trial.energy_j is not None)

    @property
    def candidates(self) -> list[SweepTrial]:
        """Trials that have both a metric and joules of their own."""
        return [
            trial
            for trial in self.trials
            if trial.state == COMPLETE
            and not trial.shared
            and trial.energy_j is not None
            and trial.value is not None
            and math.isfinite(trial.value)
        ]

    def front(self) -> list[SweepTrial]:
        """Return the trials that no other one beats in metric and energy, the cheapest first."""
        best, front = -math.inf, []
        for trial in sorted(self.candidates, key=lambda one: (one.energy_j, -self._good(one), one.number)):
            if self._good(trial) > best:
                best = self._good(trial)
                front.append(trial)
        return front

    def knee(self) -> SweepTrial | None:
        """Return the trial of the front that is farthest from the line between its ends; None without one between them.

        Both axes are scaled to the front. It is where more joules begin to buy less (Satopaa et al., "Finding a
        'Kneedle' in a Haystack", 2011, for a curve of few points). One that lies below the line is no knee.
        """
        front = self.front()
        if len(front) < 3:
            return None
        first, last = front[0], front[-1]
        wide = (last.energy_j or 0.0) - (first.energy_j or 0.0)
        high = self._good(last) - self._good(first)

        def above(trial: SweepTrial) -> float:
            return (self._good(trial) - self._good(first)) / high - (
                (trial.energy_j or 0.0) - (first.energy_j or 0.0)
            ) / wide

        found = max(front[1:-1], key=above)
        return found if above(found) > 0 else None

    def by_state(self) -> dict[str, tuple[int, float]]:
        """Return how many trials ended how, and what they drew (J), the costliest first."""
        found: dict[str, tuple[int, float]] = {}
        for trial in self.trials:
            count, energy_j = found.get(trial.state, (0, 0.0))
            found[trial.state] = (count + 1, energy_j + (trial.energy_j or 0.0))
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def to_target(self) -> SweepTrial | None:
        """Return the trial that reached its target with the fewest joules."""
        reached = [trial for trial in self.trials if trial.to_target_j is not None and not trial.shared]
        return min(reached, key=lambda trial: trial.to_target_j or 0.0, default=None)

    def _good(self, trial: SweepTrial) -> float:
        value = trial.value if trial.value is not None else math.nan
        return value if self.maximize else -value
