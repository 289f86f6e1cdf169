"""How far a search for a micro-batch has come, as others are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from energy_plugins.tune import MicroBatchChoice
from energy_plugins.tune.beside import Beside


def ran_out_of_memory(size: int, *, is_back: bool = True) -> str:
    """Return what is said of a size that was in force; ``is_back`` if the user's setting is now."""
    then = "your setting is in force again" if is_back else "fewer are used, for your setting does not fit"
    return f"{size} samples at once ran out of memory: {then}"


@dataclass
class Searched:
    """How far it has come."""

    choice: MicroBatchChoice | None = None
    source: str = ""
    why: str = ""
    """Why there is no choice."""
    search_s: float = 0.0
    is_over: bool = False
    is_checking: bool = False
    """Whether the sizes beside the choice are being looked at once more."""
    beside: Beside | None = None
    """What came of that; None if there was no such look."""
    looked_at: Sequence[int] = field(default_factory=tuple)
    """The sizes that were measured in it."""

    def leave(self, why: str) -> None:
        """End it: the user's setting is in force again."""
        self.why, self.is_over, self.is_checking = why, True, False
