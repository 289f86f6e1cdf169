"""The steps of a loop that someone wrote: nobody calls out at a step's beginning and end, so they are told by signs."""

from __future__ import annotations

from collections.abc import Sequence

from energy_plugins.measure.spans import Kind
from energy_plugins.training.batch import Work
from energy_plugins.training.monitor import Monitor


class Loop:
    """Turns fetches, forward and backward passes and steps of optimizers into steps of a report.

    A step is one step of an optimizer, or of several that follow one backward pass, with all the work since the one
    before it. It begins with the fetch of its first batch, if that is seen; but a fetch alone begins none, because the
    loop may end there.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.steps = 0
        self._is_open = False
        self._phase: Kind | None = None
        self._stepped: set[int] = set()
        self._work = Work()

    def fetch_begins(self) -> None:
        """Turn to a loader for a batch to train on."""
        self.settle()
        if not self._is_open:
            self._work.taken()  # the batches before it were passed over
        self._monitor.fetch_begins()

    def fetched(self, batch: object) -> None:
        """Have one."""
        self._monitor.fetch_ends()
        self._work.add(batch)

    def found_none(self) -> None:
        """Have none, because the loader is exhausted. Gradients may still be accumulating."""
        if self._is_open:
            self._monitor.fetch_ends()
        else:
            self._monitor.drop_step()

    def enter(self, phase: Kind | None) -> None:
        """Begin to work in ``phase``, or cease to."""
        if phase is not Kind.OPTIMIZER:
            self.settle()
        if phase is not None and not self._is_open:
            self._is_open = True
            self._monitor.open_step(self.steps)
            self._phase = Kind.FORWARD
        if phase is not self._phase:
            self._monitor.enter(phase)
            self._phase = phase

    def stepped(self, optimizer: int, waited_for: Sequence[int]) -> None:
        """Note an optimizer's step; the last of those waited for ends the step at once, else the next work will."""
        self._stepped.add(optimizer)
        self._monitor.enter(None)
        self._phase = None
        if self._stepped.issuperset(waited_for):
            self.settle()

    def settle(self) -> None:
        """Close the step if an optimizer made it one."""
        if self._stepped:
            self._monitor.close_step(*self._work.taken())
            self.steps += 1
            self._is_open = False
            self._phase = None
            self._stepped.clear()
