"""One rank's part in trying micro-batches: it turns nothing but a number, and measures as for a limit."""

from __future__ import annotations

from energy_plugins.training.limits.own_rank import OwnRank
from energy_plugins.training.measured import Measured
from energy_plugins.training.micro_batch.doubt import Doubt


class OwnSizes(OwnRank):
    """The micro-batch in force on one rank.

    Args:
        measured: the run; None if nothing is measured.
    """

    what = "the search for a micro-batch"

    def __init__(self, measured: Measured | None) -> None:
        super().__init__(None, measured)
        self.size: int | None = None
        """In force from the next optimizer step on; None for the user's setting."""
        self.failed = 0
        """The smallest size that ran out of memory, and has not been told of yet; 0 if none did."""
        self.doubt: Doubt | None = None
        """What a check found while another size was in force."""
        run = None if measured is None else measured.meter.run
        if measured is not None and (run is None or not run.gpus):
            self.lose("no GPU is measured")

    def turn(self, value: float, *, exact: bool = False) -> None:  # noqa: ARG002 - every size is exact
        """Run steps with so many samples at once from now on."""
        self.size = round(value)
        self.turned_ns = self.now_ns()
