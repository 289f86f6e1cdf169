"""The most that a fit may draw, and how often to look whether it has. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from energy_plugins.units import j_to_kwh, kwh_to_j

_MOST_STEPS = 100


@dataclass(frozen=True)
class Budget:
    """The most that a fit may draw, in joules."""

    energy_j: float

    @classmethod
    def of_kwh(cls, kwh: object) -> Self:
        """Return the budget of ``kwh`` kilowatt-hours. Raises ValueError for what is no positive, finite number."""
        if isinstance(kwh, bool) or not isinstance(kwh, int | float) or not 0 < kwh < math.inf:
            raise ValueError(
                f"energy_budget_kwh is {kwh!r}: give a positive number of kilowatt-hours, or None for no budget"
            )
        return cls(kwh_to_j(kwh))

    def __str__(self) -> str:
        return f"energy budget of {j_to_kwh(self.energy_j):.6g} kWh"

    def spent(self, total_j: float) -> bool:
        """Tell whether it is used up."""
        return total_j >= self.energy_j

    def steps_to_next_look(self, total_j: float, drawn_j: float, steps: int) -> int:
        """Return after how many optimizer steps to look again.

        That is half of the way to the budget, so that a look, which costs a synchronisation where there are several
        ranks, is rare while there is much left, and a pace that doubles spends no more than the budget. For the same
        reason it is no more steps than were made so far, and at most 100; so many, too, where joules are no numbers.

        Args:
            total_j: what is spent, earlier fits included.
            drawn_j: the part of it drawn in this fit.
            steps: optimizer steps of this fit.
        """
        most = min(max(steps, 1), _MOST_STEPS)
        if not (math.isfinite(total_j) and 0 < drawn_j < math.inf and steps > 0):
            return most
        left = max(self.energy_j - total_j, 0.0) / (drawn_j / steps)
        return max(1, math.floor(min(left / 2, most)))
