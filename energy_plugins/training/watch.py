"""The energy budget of a fit, kept by all its ranks together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from energy_plugins.measure.budget import Budget
from energy_plugins.training.guard import warn
from energy_plugins.units import j_to_kwh

SumOverRanks = Callable[[tuple[float, ...]], tuple[float, ...]]


class Watch:
    """The energy budget of one fit. Every rank has one, they look together, and all decide alike.

    Args:
        budget: what may be spent.
        earlier_j: what all ranks spent before this fit was resumed.
        ranks: how many there are.
        speaks: whether this rank is the one that prints.
        sum_over_ranks: collective where there are several.
    """

    def __init__(
        self, budget: Budget, earlier_j: float, *, ranks: int, speaks: bool, sum_over_ranks: SumOverRanks
    ) -> None:
        self.budget = budget
        self.speaks = speaks
        self.stopped = False
        self.own_j = 0.0
        """What this rank drew in this fit; of GPUs that no other rank counts."""
        self.own_expected_j = 0.0
        """What it will have drawn at the end, NaN if that is not known."""
        self._earlier_j = earlier_j
        self._ranks = ranks
        self._sum = sum_over_ranks
        self._all_j = 0.0
        self._first_step = self._next_step = 0
        self._has_warned = False
        self._undo = ExitStack()

    def begin(self, step: int) -> None:
        """Count optimizer steps from ``step``."""
        self._first_step, self._next_step = step, step + 1

    def due(self, step: int) -> bool:
        """Tell whether it is time to look: after the same optimizer step on all ranks."""
        return not self.stopped and step >= self._next_step

    def look(self, step: int) -> bool:
        """Tell whether the budget is spent, and warn of a fit that will spend it before its end. Collective."""
        self._all_j, expected_j = self._sum((self.own_j, self.own_expected_j))
        total_j = self._earlier_j + self._all_j
        self._next_step = step + self.budget.steps_to_next_look(total_j, self._all_j, step - self._first_step)
        if self._earlier_j + expected_j > self.budget.energy_j and not self._has_warned:
            self._has_warned = True
            if self.speaks:
                about = f"this fit will need about {j_to_kwh(self._earlier_j + expected_j):.2g} kWh"
                warn(f"{about} and be ended when its {self.budget} is spent")
        return self.budget.spent(total_j)

    @property
    def spent(self) -> bool:
        """Whether earlier runs have spent it all."""
        return self.budget.spent(self._earlier_j)

    def undo(self, put_back: Callable[[], None]) -> None:
        """Remember how to put back what was changed to end the fit."""
        self._undo.callback(put_back)

    def close(self) -> None:
        """Put back what was found."""
        self._undo.close()

    def total_j(self, own_j: float) -> float:
        """Return what all ranks have drawn, about, by what this one has drawn now and all had at the last look."""
        total_j = self._earlier_j + own_j * (
            self._all_j / self.own_j if self.own_j and self._ranks > 1 else self._ranks
        )
        # The last second's joules are a guess. One that came out lower by now does not give anything back.
        total_j = max(total_j, self._earlier_j + self._all_j)
        return max(total_j, self.budget.energy_j) if self.stopped else total_j
