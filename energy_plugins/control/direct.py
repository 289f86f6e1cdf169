"""The back end that asks NVML itself; the driver lets root (CAP_SYS_ADMIN) do so."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from energy_plugins.control.backend import Request, Standing, Status
from energy_plugins.control.entry import SAME_W, Entry, Knob
from energy_plugins.control.guard import Guard, guard_of
from energy_plugins.control.journal import Journal, journal_folder
from energy_plugins.control.nvml import FUNCTION_NOT_FOUND, NO_PERMISSION, NOT_SUPPORTED, Card, Nvml
from energy_plugins.control.owner import Life, Owner
from energy_plugins.control.restore import Ending, Restored, put_back, settle
from energy_plugins.errors import (
    ControlError,
    EnergyError,
    JournalError,
    LibraryError,
    NvmlError,
    OwnedError,
    RefusedError,
)
from energy_plugins.measure.drivers import current_drivers

AS_ROOT = "run as root (CAP_SYS_ADMIN), or have the administrator set the limit"
_NOT_HERE = {
    NO_PERMISSION: AS_ROOT,
    NOT_SUPPORTED: "nothing: this GPU does not let it be changed",
    FUNCTION_NOT_FOUND: "update the driver",
}


class DirectNvml:
    """Changes GPUs through the driver library in force, with a journal and a watchdog that undo it."""

    name = "NVML"

    def take(self, request: Request) -> DirectLease:
        """Lease a knob; what a dead process left is put back first. As `BackEnd.take`."""
        if request.gpu.mig is not None:
            why, remedy = why_not_a_slice()
            raise RefusedError(why, remedy=remedy)
        # The watchdog works in another folder.
        library = current_drivers().nvml
        library = str(Path(library).absolute()) if "/" in library else library
        folder = journal_folder().absolute()
        with ExitStack() as undo:
            try:
                tools = _Tools.open(folder, library, request, undo)
                with tools.journal.alone(request.gpu.uuid):
                    entry = _begin(tools, request, undo)
            except JournalError as error:
                raise RefusedError(f"what is found could not be put back: {error}", remedy=_remedy(folder)) from error
            except LibraryError:
                raise
            except OSError as error:
                raise RefusedError(f"this process cannot be told apart: {error}", remedy="mount /proc") from error
            return DirectLease(tools, entry, undo.pop_all())


def why_not_a_slice() -> tuple[str, str]:
    """Return why a MIG slice is not limited, and what to do."""
    why = "a MIG slice has no limit of its own: its card's would bind the other slices as well"
    return why, "limit the whole card from outside the slice"


def _remedy(folder: Path) -> str:
    return f"see `energy-plugins doctor --restore`; remove {folder} if it is not yours and no training runs"


@dataclass(frozen=True)
class _Tools:
    """What a lease works with."""

    journal: Journal
    nvml: Nvml
    card: Card
    guard: Guard

    @classmethod
    def open(cls, folder: Path, library: str, request: Request, undo: ExitStack) -> _Tools:
        journal = undo.enter_context(Journal(folder))
        nvml = undo.enter_context(Nvml(library))
        return cls(journal, nvml, nvml.card(request.gpu.uuid), guard_of(folder, library))


def _begin(tools: _Tools, request: Request, undo: ExitStack) -> Entry:
    """Write the entry of a lease, and see whether the driver lets us; `undo` ends the watchdog again."""
    gpu, knob = request.gpu, request.knob
    unlocked = _clear_the_way(tools, request)
    if knob is Knob.CLOCKS and not (request.assume_unlocked or unlocked):
        why = "NVML does not tell whether somebody has locked the clocks, so they could not be put back as found"
        raise RefusedError(why, remedy="assert that nobody has: LockedClocks(gpu, assume_unlocked=True)")
    found = tools.card.limit_w() if knob is Knob.POWER else None
    entry = Entry(uuid=gpu.uuid, knob=knob, owner=Owner.current(), found=found)
    tools.guard.enter()
    undo.callback(tools.guard.leave)
    tools.journal.write(entry)
    try:
        if found is None:
            tools.card.reset_clocks()
        else:
            tools.card.set_limit_w(found)  # changes nothing, and tells whether it could
    except NvmlError as error:
        tools.journal.remove(entry)
        if error.code in _NOT_HERE:
            raise RefusedError(f"the driver refuses: {error}", remedy=_NOT_HERE[error.code]) from error
        raise
    return entry


def _clear_the_way(tools: _Tools, request: Request) -> bool:
    """Put back what a dead process left of this GPU, and return whether that has surely unlocked its clocks."""
    unlocked = False
    for knob in Knob:
        entry = tools.journal.read(request.gpu.uuid, knob)
        if entry is None:
            continue
        restored = settle(tools.journal, entry, tools.nvml.card)
        if restored.ending not in {Ending.KEPT, Ending.IN_USE}:
            unlocked = unlocked or (knob is Knob.CLOCKS and restored.ending is Ending.RESTORED)
        elif entry.owner != Owner.current():
            life, pid = entry.owner.life(), entry.owner.pid
            if life in {Life.ALIVE, Life.ELSEWHERE}:
                raise OwnedError(f"GPU {entry.uuid}: {restored.why}; one process at a time", pid=pid)
            raise RefusedError(f"what process {pid} left cannot be put back: {restored.why}", remedy="restore it first")
        elif knob is request.knob:
            raise OwnedError(f"this process controls the {knob.value} of GPU {entry.uuid} already", pid=entry.owner.pid)
    return unlocked


class DirectLease:
    """See `Lease`."""

    changes = True

    def __init__(self, tools: _Tools, entry: Entry, undo: ExitStack) -> None:
        self.found = entry.found
        self._tools = tools
        self._undo = undo
        self._mutex = threading.Lock()  # guards what follows, and the GPU between a read and a write of ours
        self._entry = entry
        self._foreign = ""

    def set(self, value: float) -> Status:
        """As `Lease.set`."""
        journal, card = self._tools.journal, self._tools.card
        with self._mutex, journal.alone(self._entry.uuid):
            self._see()
            if self._foreign:
                return self._status()
            entry = replace(self._entry, ours=(*self._entry.ours[-1:], value))
            journal.write(entry)
            self._entry = entry
            if self._entry.knob is Knob.CLOCKS:
                card.lock_clocks(round(value))
            else:
                card.set_limit_w(value)
                self._verify(value)
            self._entry = replace(self._entry, ours=(value,))
            journal.write(self._entry)
            return self._status()

    def look(self) -> Status:
        """As `Lease.look`."""
        with self._mutex:
            try:
                self._tools.guard.keep()
                self._see()
                return self._status()
            except EnergyError as error:
                return Status(standing=Standing.LOST, why=str(error))

    def release(self) -> Restored:
        """As `Lease.release`; what cannot be put back now the watchdog tries again when this process has ended."""
        with self._mutex:
            try:
                with self._tools.journal.alone(self._entry.uuid):
                    restored = self._put_back()
            except EnergyError as error:
                restored = self._ended(Ending.KEPT, str(error))
            if restored.ending is not Ending.KEPT:
                self._undo.close()
            return restored

    def _put_back(self) -> Restored:
        self._see_the_journal()
        restored = self._ended(Ending.FOREIGN, self._foreign)
        if not self._foreign:
            restored = put_back(self._entry, self._tools.card)
        if restored.ending is not Ending.KEPT and self._stored() is not None:
            self._tools.journal.remove(self._entry)
        return restored

    def _see(self) -> None:
        """Notice what others did. Raises NvmlError, JournalError."""
        self._see_the_journal()
        if self._foreign or self._entry.found is None:
            return
        present_w = self._tools.card.limit_w()
        untouched = not self._entry.ours and abs(present_w - self._entry.found) <= SAME_W
        if not untouched and not self._entry.is_ours(present_w):
            self._foreign = f"others changed the limit to {present_w:g} W: it is neither set again nor put back"
            self._entry = replace(self._entry, ours=())
            self._tools.journal.write(self._entry)

    def _see_the_journal(self) -> None:
        stored = self._tools.journal.read(self._entry.uuid, self._entry.knob)
        if stored is not None and stored.owner != self._entry.owner:
            self._foreign = f"process {stored.owner.pid} controls the GPU now"

    def _stored(self) -> Entry | None:
        """Return our entry in the journal."""
        stored = self._tools.journal.read(self._entry.uuid, self._entry.knob)
        return stored if stored is not None and stored.owner == self._entry.owner else None

    def _verify(self, asked_w: float) -> None:
        """Raise ControlError, with the limit found put back, if the GPU does not say what it was asked for."""
        now_w = self._tools.card.limit_w()
        if abs(now_w - asked_w) <= SAME_W:
            return
        self._entry = replace(self._entry, ours=(now_w,))
        restored = put_back(self._entry, self._tools.card)
        if restored.ending is Ending.RESTORED:
            self._entry = replace(self._entry, ours=())
        self._tools.journal.write(self._entry)
        raise ControlError(f"GPU {self._entry.uuid} was asked for {asked_w:g} W and says {now_w:g} W; {restored.why}")

    def _status(self) -> Status:
        standing = Standing.FOREIGN if self._foreign else Standing.HELD
        if self._entry.knob is Knob.CLOCKS:
            return Status(standing=standing, why=self._foreign)
        card = self._tools.card
        value_w, enforced_w = card.limit_w(), card.enforced_w()
        why = self._foreign
        if not why and enforced_w < value_w - SAME_W:
            why = f"another limiter holds the GPU at {enforced_w:g} W, below the {value_w:g} W asked for"
        return Status(standing=standing, value=value_w, enforced_w=enforced_w, why=why)

    def _ended(self, ending: Ending, why: str) -> Restored:
        return Restored(self._entry.uuid, self._entry.knob, ending, why)
