"""`LockedClocks`: for GPUs that no power limit binds, with an assertion where NVML cannot tell what it would undo."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from energy_plugins.control.backend import BackEnd, Lease, Request, Status
from energy_plugins.control.entry import Knob
from energy_plugins.control.held import BACK_ENDS, LOOK_EVERY_S, RECENT_LOOKS, Held
from energy_plugins.control.nvml import IDLE_REASON, Card
from energy_plugins.errors import ControlError
from energy_plugins.measure.devices import Gpu

_STEP_MHZ = 15
"""SM clocks of NVIDIA GPUs come in steps of 15 MHz: a lock is met by the nearest."""


@dataclass(frozen=True)
class LockedClocks:
    """Locked SM clocks of one of `visible_gpus`: ``with LockedClocks(gpu, assume_unlocked=True).at(mhz=1200): ...``.

    Locked clocks cannot be read: at the end they are unlocked, whoever had locked them. So somebody has to assert that
    nobody had, unless the journal knows that it was us. Constructing it opens nothing.
    """

    gpu: Gpu
    assume_unlocked: bool = False
    back_ends: Sequence[BackEnd] = BACK_ENDS
    look_every_s: float = LOOK_EVERY_S

    def at(self, mhz: int) -> HeldClocks:
        """Return a context manager that locks the SM clock; entering it raises what `PowerLimit.at` says."""
        return HeldClocks(self, mhz)


class HeldClocks(Held):
    """The locked SM clock of one GPU inside a ``with`` block."""

    def __init__(self, clocks: LockedClocks, mhz: int) -> None:
        request = Request(gpu=clocks.gpu, knob=Knob.CLOCKS, assume_unlocked=clocks.assume_unlocked)
        super().__init__(request, float(mhz), clocks.back_ends, clocks.look_every_s)
        self._mhz = mhz
        self._clocks = deque[int](maxlen=RECENT_LOOKS)  # at work, since the lock
        self.highest_mhz = 0
        """The highest SM clock of this GPU (MHz)."""

    def set(self, mhz: int) -> Status:
        """Lock another clock (MHz), and return how it stands. Raises what `HeldLimit.set` does."""
        self._check_range(mhz)
        self._holding()
        self._mhz = mhz
        try:
            return self._turn(float(mhz))
        finally:
            self._clocks = deque(maxlen=RECENT_LOOKS)  # a look that is under way adds to the former

    def obeyed(self) -> bool | None:
        """Tell whether the GPU keeps to the lock, by its highest clock in the last looks at work (12 at most).

        None if it was idle in all of them, if the driver does not answer, and where locking is only advised. A clock
        above the lock means that the lock is not there: somebody took it away, or set another.
        """
        if not self._lease().changes:
            return None
        try:
            self._patiently(self._observe_if_settled)
        except TimeoutError:
            return None
        clocks = list(self._clocks)
        return max(clocks) <= self._mhz + _STEP_MHZ if clocks else None

    def _observe(self) -> None:
        clocks = self._clocks
        clock_mhz, bits = self._ask(Card.sm_clock_mhz), self._ask(Card.reasons)
        if clock_mhz is not None and bits is not None and not bits & IDLE_REASON:
            clocks.append(clock_mhz)

    def _allow(self, card: Card, lease: Lease) -> float | None:
        self.highest_mhz = card.highest_clock_mhz()
        self._check_range(self._mhz)
        return super()._allow(card, lease)

    def _check_range(self, mhz: int) -> None:
        if not 0 < mhz <= self.highest_mhz:
            raise ControlError(f"GPU {self.gpu.uuid} has SM clocks up to {self.highest_mhz} MHz, not {mhz} MHz")
