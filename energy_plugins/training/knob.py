"""The power limits, or the locked clocks, of all GPUs that one process trains on, turned together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress

from energy_plugins.control import Advise, HeldLimit, PowerLimit, Standing
from energy_plugins.errors import ControlError
from energy_plugins.measure.devices import Gpu
from energy_plugins.training.guard import TROUBLE


class Knob:
    """The power limits of some GPUs, held from `open` to `close`.

    A limit asked for is each GPU's own, but none is ever set above what was found on it.
    """

    unit = "W"

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = gpus
        self._undo = ExitStack()
        self.held: list[HeldLimit] = []
        self.back_end = ""
        """Who turns it, empty if nobody does."""
        self.why_not = ""
        """Why nothing is turned here; empty if it is."""
        self.remedy = ""
        """What would be needed."""
        self.put_back = ""
        """What became of the GPUs in the end."""

    def open(self) -> None:
        """Find the limits, and hold them as they are. Does not raise: `why_not` says what went wrong."""
        try:
            for gpu in self._gpus:
                self.held.append(self._undo.enter_context(PowerLimit(gpu).at()))
        except TROUBLE as error:
            self.why_not = str(error)
            self.close()
            return
        self.back_end = " and ".join(dict.fromkeys(one.back_end for one in self.held))
        refusals = [refusal for one in self.held if one.back_end == Advise.name for refusal in one.refusals]
        self.why_not = "; ".join(dict.fromkeys(map(str, refusals)))
        self.remedy = " or ".join(dict.fromkeys(refusal.remedy for refusal in refusals))

    @property
    def found(self) -> float:
        """The highest value found."""
        return max((one.found_w for one in self.held), default=0.0)

    @property
    def lowest(self) -> float:
        """The lowest value that all GPUs take."""
        return max((one.range_w[0] for one in self.held), default=0.0)

    @property
    def most_w(self) -> float:
        """What all GPUs together may draw under the limits found."""
        return sum(one.found_w for one in self.held)

    def turn(self, value: float, *, exact: bool = False) -> None:
        """Set a value, on each GPU at most what was found there; ``exact``: or fail.

        Raises what `HeldLimit.set` does, ControlError.
        """
        for one in self.held:
            one.set(value if exact else min(value, one.found_w))
        self.check()

    def check(self) -> None:
        """Raise ControlError if others have changed a GPU meanwhile, or one does not answer. Asks nobody."""
        for one in self.held:
            if one.check() not in {Standing.HELD, Standing.ADVISED}:
                raise ControlError(f"GPU {one.gpu.uuid}: {one.status.why}")

    def binding(self, drawn_w: float | None) -> bool | None:
        """Tell whether the value in force binds: on any GPU; None if that cannot be told."""
        found = [one.binding(drawn_w).binds for one in self.held]
        return True if True in found else None if None in found or not found else False

    def close(self) -> None:
        """Put back what was found; does not raise."""
        with suppress(*TROUBLE):  # each of them says what became of it
            self._undo.close()
        endings = [one.restored.why for one in self.held if one.restored is not None]
        self.put_back = "; ".join(dict.fromkeys(endings))
