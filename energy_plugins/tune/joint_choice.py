"""What searching for micro-batch and power limit together chose, and what each of both saves."""

from __future__ import annotations

from dataclasses import dataclass

from energy_plugins.tune.limit.decision import LimitChoice
from energy_plugins.tune.micro_batch.choice import MicroBatchChoice


@dataclass(frozen=True)
class JointChoice:
    """What to run, and what each part of it is expected to save."""

    size: int
    limit: float
    batch: MicroBatchChoice
    """Against the user's setting, under the limit found."""
    power_limit: LimitChoice
    """Against the limit found, with the batch of the first search."""
    saving_of_neighbour: float
    """Of taking a neighbour of that batch, under the new limit; 0 if none was better."""

    @property
    def saving_of_batch(self) -> float:
        """Share of the energy that the micro-batch saves, against the user's setting."""
        return 1 - (1 - self.batch.expected_saving) * (1 - self.saving_of_neighbour)

    @property
    def saving_of_limit(self) -> float:
        """Share of what is left that the power limit saves."""
        return self.power_limit.expected_saving

    @property
    def saving(self) -> float:
        """What both save together."""
        return 1 - (1 - self.saving_of_batch) * (1 - self.saving_of_limit)
