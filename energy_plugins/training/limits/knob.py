"""What is turned on all GPUs that one process trains on, together: their power limits, or their locked clocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress

from energy_plugins.control import Advise, HeldClocks, HeldLimit, LockedClocks, PowerLimit, Standing
from energy_plugins.control.held import Held
from energy_plugins.control.nvml import Nvml
from energy_plugins.errors import ControlError
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.training.guard import TROUBLE


class SharedKnob(ABC):
    """One value for some GPUs, held from `open` to `close`. None is ever set above what was found on a GPU."""

    unit: str
    resolution: float
    """Values closer than this are not told apart by trying them."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = gpus
        self._undo = ExitStack()
        self._held: list[Held] = []
        self.back_end = ""
        """Who turns it, empty if nobody does."""
        self.why_not = ""
        """Why nothing is turned here; empty if it is."""
        self.remedy = ""
        """What would be needed."""
        self.put_back = ""
        """What became of the GPUs in the end."""

    def open(self) -> None:
        """Find the values, and hold them as they are. Does not raise: `why_not` says what went wrong."""
        try:
            for gpu in self._gpus:
                self._held.append(self._undo.enter_context(self._holding(gpu)))
        except TROUBLE as error:
            self.why_not = str(error)
            self.close()
            return
        self.back_end = " and ".join(dict.fromkeys(one.back_end for one in self._held))
        refusals = [refusal for one in self._held if one.back_end == Advise.name for refusal in one.refusals]
        self.why_not = "; ".join(dict.fromkeys(map(str, refusals)))
        self.remedy = " or ".join(dict.fromkeys(refusal.remedy for refusal in refusals if refusal.remedy))

    def check(self) -> None:
        """Raise ControlError if others have changed a GPU meanwhile, or one does not answer. Asks nobody."""
        for one in self._held:
            if one.check() not in {Standing.HELD, Standing.ADVISED}:
                raise ControlError(f"GPU {one.gpu.uuid}: {one.status.why}")

    def close(self) -> None:
        """Put back what was found; does not raise."""
        with suppress(*TROUBLE):  # each of them says what became of it
            self._undo.close()
        endings = [one.restored.why for one in self._held if one.restored is not None]
        self.put_back = "; ".join(dict.fromkeys(endings))

    @abstractmethod
    def _holding(self, gpu: Gpu) -> Held:
        """Return what holds the value of a GPU, as it is."""

    @property
    @abstractmethod
    def found(self) -> float:
        """The highest value found."""

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The lowest value that all GPUs take."""

    @property
    @abstractmethod
    def most_w(self) -> float:
        """What all GPUs together may draw under the limits found."""

    @property
    def limit_w(self) -> float | None:
        """The highest power limit in force, None where none is held."""
        return None

    @abstractmethod
    def turn(self, value: float, *, exact: bool = False) -> None:
        """Set a value, on each GPU at most what was found there; ``exact``: or fail.

        Raises what `HeldLimit.set` does, ControlError.
        """

    @abstractmethod
    def binding(self, drawn_w: float | None) -> bool | None:
        """Tell whether the value in force holds any GPU back that draws so much; None if that cannot be told."""


class LimitKnob(SharedKnob):
    """Power limits, in watts."""

    unit = "W"
    resolution = 5.0

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        super().__init__(gpus)
        self._limits: list[HeldLimit] = []

    def _holding(self, gpu: Gpu) -> Held:
        self._limits.append(PowerLimit(gpu).at())
        return self._limits[-1]

    @property
    def found(self) -> float:
        """As `SharedKnob.found`."""
        return max((one.found_w for one in self._limits), default=0.0)

    @property
    def lowest(self) -> float:
        """As `SharedKnob.lowest`."""
        return max((one.range_w[0] for one in self._limits), default=0.0)

    @property
    def most_w(self) -> float:
        """As `SharedKnob.most_w`."""
        return sum(one.found_w for one in self._limits)

    @property
    def limit_w(self) -> float | None:
        """As `Knob.limit_w`."""
        return max((one.status.value for one in self._limits if one.status.value is not None), default=None)

    def turn(self, value: float, *, exact: bool = False) -> None:
        """As `SharedKnob.turn`."""
        for one in self._limits:
            one.set(value if exact else min(value, one.found_w))
        self.check()

    def binding(self, drawn_w: float | None) -> bool | None:
        """As `SharedKnob.binding`."""
        return _any(one.binding(drawn_w).binds for one in self._limits)


class ClockKnob(SharedKnob):
    """Locked SM clocks, in MHz, for GPUs that no limit binds; what is found, nothing locked, is the highest clock.

    Args:
        gpus: to lock.
        assume_unlocked: the user asserts that nobody has locked them.
    """

    unit = "MHz"
    resolution = 30.0

    def __init__(self, gpus: Sequence[Gpu], *, assume_unlocked: bool) -> None:
        super().__init__(gpus)
        self._assume_unlocked = assume_unlocked
        self._clocks: list[HeldClocks] = []
        self._most_w = 0.0

    def _holding(self, gpu: Gpu) -> Held:
        with Nvml(current_drivers().nvml) as nvml:
            card = nvml.card(gpu.uuid)
            highest_mhz, limit_w = card.highest_clock_mhz(), card.limit_w()
        self._most_w += limit_w
        self._clocks.append(LockedClocks(gpu, assume_unlocked=self._assume_unlocked).at(mhz=highest_mhz))
        return self._clocks[-1]

    @property
    def found(self) -> float:
        """As `SharedKnob.found`."""
        return float(max((one.highest_mhz for one in self._clocks), default=0))

    @property
    def lowest(self) -> float:
        """As `SharedKnob.lowest`."""
        return _LOWEST_CLOCK * self.found

    @property
    def most_w(self) -> float:
        """As `SharedKnob.most_w`."""
        return self._most_w

    def turn(self, value: float, *, exact: bool = False) -> None:
        """As `SharedKnob.turn`."""
        for one in self._clocks:
            one.set(round(value) if exact else min(round(value), one.highest_mhz))
        self.check()

    def binding(self, drawn_w: float | None) -> bool | None:
        """As `SharedKnob.binding`."""
        del drawn_w
        return _any(one.obeyed() for one in self._clocks)


_LOWEST_CLOCK = 0.25
"""Share of the highest clock below which none is tried."""


def _any(each: Iterable[bool | None]) -> bool | None:
    found = list(each)
    return True if True in found else None if None in found or not found else False
