"""A knob of a GPU, held for the length of a ``with`` block: what power limits and locked clocks share."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

from energy_plugins.control.advise import Advise
from energy_plugins.control.backend import BackEnd, Lease, Request, Standing, Status, Taken, take_first
from energy_plugins.control.direct import DirectNvml
from energy_plugins.control.nvml import Card, Nvml
from energy_plugins.control.powerd_client import Powerd
from energy_plugins.control.restore import Ending, Restored
from energy_plugins.control.watch import Watch
from energy_plugins.errors import ControlError, NvmlError, RefusedError
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.patience import Aside

T = TypeVar("T")

BACK_ENDS: tuple[BackEnd, ...] = (DirectNvml(), Powerd(), Advise())
"""Asked in this order."""
LOOK_EVERY_S = 5.0
"""Between looks at the GPU; each takes about 0.5 ms of a thread of its own on an H200."""
_SETTLED_S = 0.3
"""After a change, until what the driver says of clocks is of the time since: it refreshes every 100 ms on an H200."""
_PATIENCE_S = 10.0
_NO_ANSWER = f"the driver has not answered for {_PATIENCE_S:g} s"
RECENT_LOOKS = 12
"""What a judgement rests on: a minute of looks."""


@dataclass(frozen=True)
class _Begun:
    """A block that has begun: a lease, how it stands, and the driver, if that answered."""

    taken: Taken
    status: Status
    nvml: Nvml | None = None
    card: Card | None = None


class Held:
    """One knob of one GPU; to be entered once."""

    def __init__(
        self, request: Request, value: float | None, back_ends: Sequence[BackEnd], look_every_s: float
    ) -> None:
        self.gpu = request.gpu
        self._request = request
        self._first = value
        self._back_ends = back_ends
        self._look_every_s = look_every_s
        self._status = Status(standing=Standing.ENDED, why="it has not begun")
        self._taken: Taken | None = None
        self._card: Card | None = None  # None where the driver did not answer
        self._undo = ExitStack()
        self._pid = 0
        self._turned_ns = 0
        self.restored: Restored | None = None
        """What became of the GPU, after the block."""

    @property
    def back_end(self) -> str:
        """The name of who changes the GPU: ``NVML``, or ``advice`` where nobody may."""
        return self._holding().back_end

    @property
    def status(self) -> Status:
        """How it stood when it was last set or looked at."""
        return self._status

    @property
    def refusals(self) -> tuple[RefusedError, ...]:
        """Why better back ends refused."""
        return self._holding().refusals

    def check(self) -> Standing:
        """Say how it stands, for every step of a loop: it asks nobody, the GPU is looked at aside every 5 s."""
        return self._status.standing

    def look(self) -> Status:
        """Ask the driver how it stands, now; LOST if it does not answer within 10 s."""
        lease = self._lease()
        try:
            return self._note(self._patiently(lease.look))
        except TimeoutError:
            return self._note(Status(standing=Standing.LOST, why=_NO_ANSWER))

    def __enter__(self) -> Self:
        if self._taken is not None or self.restored is not None:
            raise ControlError("a limit or lock is held once: make another one")
        drivers = current_drivers()
        self._clock = drivers.clock
        self._pid = os.getpid()
        with self._undo as undo:
            begun = self._begin_in_time(drivers.nvml)
            self._taken, self._card = begun.taken, begun.card
            if begun.nvml is not None:
                undo.callback(self._close, begun.nvml)
            undo.callback(self._release)
            self._turned_ns = self._clock.now_ns()
            self._note(begun.status)
            self._warn_of_others()
            watch = Watch(self._look_aside, self._look_every_s, self._clock)
            watch.begin()
            undo.callback(watch.end)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() == self._pid:  # a forked child that leaves the block has nothing to put back
            self._undo.close()

    def __del__(self) -> None:
        if self._taken is not None and self.restored is None and os.getpid() == self._pid:
            warnings.warn(f"{self!r} was not ended: use `with`", ResourceWarning, source=self, stacklevel=1)

    def _turn(self, value: float) -> Status:
        """Set a value, which is allowed."""
        lease = self._lease()
        if lease.changes:
            try:
                self._status = self._patiently(lambda: lease.set(value))
            except TimeoutError as error:
                raise ControlError(f"GPU {self.gpu.uuid}: {_NO_ANSWER}") from error
            self._turned_ns = self._clock.now_ns()
            self._warn_of_others()
        return self._status

    def _warn_of_others(self) -> None:
        if self._status.standing is Standing.FOREIGN:
            warnings.warn(f"energy: GPU {self.gpu.uuid}: {self._status.why}", RuntimeWarning, stacklevel=4)

    def _begin_in_time(self, library: str) -> _Begun:
        """Begin; where the driver hangs, with advice. What comes back late is undone. Raises what `_begin` does."""
        over = threading.Lock()  # of whoever gets it first: the work that is done, or who no longer waits for it
        if not self._clock.threaded:
            return self._begin(library, over)
        work = Aside(lambda: self._begin(library, over))
        try:
            return work.within(_PATIENCE_S)
        except TimeoutError:
            if not over.acquire(blocking=False):
                return work.within(_PATIENCE_S)  # it was done at that moment
        except BaseException:
            if not over.acquire(blocking=False):
                work.within(_PATIENCE_S).taken.lease.release()
            raise
        refusal = RefusedError(_NO_ANSWER, remedy="see whether nvidia-smi answers", unsafe=True)
        try:
            taken = take_first([one for one in self._back_ends if not one.changes], self._request)
        except RefusedError:
            raise ControlError(f"GPU {self.gpu.uuid}: {_NO_ANSWER}") from None
        return _Begun(replace(taken, refusals=(refusal,)), taken.lease.look())

    def _begin(self, library: str, over: threading.Lock) -> _Begun:
        """Lease the knob and set the first value, all of which asks the driver."""
        with ExitStack() as undo:
            nvml = undo.enter_context(Nvml(library))
            card = nvml.card(self.gpu.uuid)
            taken = take_first(self._back_ends, self._request)
            lease = taken.lease
            undo.callback(lease.release)
            first = self._allow(card, lease)
            if over.locked():
                raise TimeoutError(_NO_ANSWER)
            status = lease.look() if first is None or not lease.changes else lease.set(first)
            if not over.acquire(blocking=False):
                raise TimeoutError(_NO_ANSWER)
            undo.pop_all()
            return _Begun(taken, status, nvml, card)

    def _close(self, nvml: Nvml) -> None:
        if self.restored is None or self.restored.why != _NO_ANSWER:
            with suppress(TimeoutError):
                self._patiently(nvml.close)

    def _note(self, status: Status) -> Status:
        if status.standing is Standing.ADVISED:
            status = replace(status, why="; ".join(str(refusal) for refusal in self.refusals))
        if self.restored is None:  # the watch may come back late, from a driver that hung
            self._status = status
        return status

    def _look_aside(self) -> None:
        with suppress(ControlError):  # the block has ended meanwhile
            self._observe_if_settled()
            self._note(self._lease().look())

    def _observe_if_settled(self) -> None:
        if self._clock.now_ns() - self._turned_ns >= _SETTLED_S * 1e9:
            self._observe()

    def _observe(self) -> None:
        """Note what can be seen only while the value is in force; called with each look."""

    def _allow(self, card: Card, lease: Lease) -> float | None:  # noqa: ARG002 - for those who do
        """Return the first value as it may be set; raise ControlError if it may not. Nothing has been changed yet."""
        return self._first

    def _ask(self, read: Callable[[Card], T]) -> T | None:
        """Return a reading of the GPU, None if the driver does not tell."""
        if self._card is None:
            return None
        try:
            return read(self._card)
        except NvmlError:
            return None

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do what asks the driver, and raise TimeoutError if that hangs: a training goes on."""
        return Aside(work).within(_PATIENCE_S) if self._clock.threaded else work()

    def _holding(self) -> Taken:
        if self._taken is None or self.restored is not None or os.getpid() != self._pid:
            raise ControlError("this is held only inside its `with` block, and by the process that entered it")
        return self._taken

    def _lease(self) -> Lease:
        return self._holding().lease

    def _release(self) -> None:
        lease = self._lease()
        try:
            self.restored = self._patiently(lease.release)
        except TimeoutError:
            self.restored = Restored(self.gpu.uuid, self._request.knob, Ending.KEPT, _NO_ANSWER)
        self._status = Status(standing=Standing.ENDED, why=self.restored.why)
        told = {
            Ending.KEPT: "it stays in the journal; the watchdog tries it again every 2 s and when this process "
            "ends, and so does `energy-plugins doctor --restore`",
            Ending.FOREIGN: "it is not put back",
        }.get(self.restored.ending)
        if told is not None:
            warnings.warn(f"energy: GPU {self.gpu.uuid}: {self.restored.why}; {told}", RuntimeWarning, stacklevel=3)
