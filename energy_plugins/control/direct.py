"""The back end that asks NVML itself; the driver lets root (CAP_SYS_ADMIN) do so."""

from __future__ import annotations

import math
import os
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
_held: set[tuple[Path, str, Knob]] = set()
"""What this process controls now, by journal: an entry of its own that is not here belongs to nobody any more."""
_kept: dict[tuple[Path, str, Knob], ExitStack] = {}
"""What ends the watch over what blocks of this process could not put back, while it is in the journal."""
os.register_at_fork(after_in_child=_held.clear)
os.register_at_fork(after_in_child=_kept.clear)


class DirectNvml:
    """Changes GPUs through the driver library in force, with a journal and a watchdog that undo it."""

    name = "NVML"
    changes = True

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
                why = f"what is found could not be put back: {error}"
                raise RefusedError(why, remedy=_remedy(folder), unsafe=True) from error
            except LibraryError:
                raise
            except OSError as error:
                why = f"processes cannot be told apart: {error}"
                raise RefusedError(why, remedy="mount /proc", unsafe=True) from error
            highest_w = math.inf if request.allow_above_found or entry.found is None else entry.found
            return DirectLease(tools, entry, highest_w, undo.pop_all())


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
    _let_go(tools.journal)
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
    _held.add((tools.journal.folder, gpu.uuid, knob))
    return entry


def _clear_the_way(tools: _Tools, request: Request) -> bool:
    """Put back what a dead process left of this GPU, and return whether that has surely unlocked its clocks."""
    unlocked = False
    for knob in Knob:
        entry = tools.journal.read(request.gpu.uuid, knob)
        if entry is None:
            continue
        mine = entry.owner == Owner.current()
        if mine and (tools.journal.folder, entry.uuid, knob) not in _held:
            entry = replace(entry, released=True)  # of a block that is over, or of what this process ran before an exec
        restored = settle(tools.journal, entry, tools.nvml.card)
        if restored.ending not in {Ending.KEPT, Ending.IN_USE}:
            unlocked = unlocked or (knob is Knob.CLOCKS and restored.ending is Ending.RESTORED)
        elif not mine or entry.released:
            life, pid = entry.owner.life(), entry.owner.pid
            if not entry.released and life in {Life.ALIVE, Life.ELSEWHERE}:
                raise OwnedError(f"GPU {entry.uuid}: {restored.why}; one process at a time", pid=pid)
            why = f"what process {pid} left cannot be put back: {restored.why}"
            raise RefusedError(why, remedy="restore it first: energy-plugins doctor --restore", unsafe=True)
        elif knob is request.knob:
            raise OwnedError(f"this process controls the {knob.value} of GPU {entry.uuid} already", pid=entry.owner.pid)
    return unlocked


def _let_go(journal: Journal) -> None:
    """End the watch over what has been put back since, by whomever: it is in the journal no more."""
    there = {(journal.folder, uuid, knob) for uuid, knob in journal.names()}
    for one in [key for key in _kept if key[0] == journal.folder and key not in there]:
        watch = _kept.pop(one, None)  # two threads may begin at once
        if watch is not None:
            watch.close()


class DirectLease:
    """See `Lease`."""

    changes = True

    def __init__(self, tools: _Tools, entry: Entry, highest_w: float, undo: ExitStack) -> None:
        self.found = entry.found
        self._highest_w = highest_w
        self._tools = tools
        self._undo = undo
        self._mutex = threading.Lock()  # guards what follows, and the GPU between a read and a write of ours
        self._entry = entry
        self._foreign = ""
        self._taken_over = False  # the entry of this knob is another process's

    def set(self, value: float) -> Status:
        """As `Lease.set`."""
        journal, card = self._tools.journal, self._tools.card
        if value > self._highest_w:
            raise ControlError(f"GPU {self._entry.uuid} had {self._highest_w:g} W: it is not given {value:g} W")
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
            if self._foreign:
                return self._status()
            self._entry = replace(self._entry, ours=(value,))
            journal.write(self._entry)
            return self._status()

    def look(self) -> Status:
        """As `Lease.look`."""
        with self._mutex:
            try:
                self._tools.guard.keep()
                with self._tools.journal.alone(self._entry.uuid):
                    self._see()
                return self._status()
            except EnergyError as error:
                return Status(standing=Standing.LOST, why=str(error))

    def release(self) -> Restored:
        """As `Lease.release`; what cannot be put back now the watchdog, or the next lease, tries again.

        What was found is remembered here as well: a journal that others have spoiled keeps nothing from being put back.
        """
        with self._mutex:
            restored = self._put_back()
            if restored.ending is Ending.KEPT:
                _kept[self._tools.journal.folder, self._entry.uuid, self._entry.knob] = self._undo
            else:
                self._undo.close()
            return restored

    def _put_back(self) -> Restored:
        with ExitStack() as alone:
            trouble = ""
            try:
                alone.enter_context(self._tools.journal.alone(self._entry.uuid))
                self._see_who_controls_it()
            except JournalError as error:
                trouble = f"; {error}"
            restored = self._ended(Ending.FOREIGN, self._foreign)
            if not self._foreign:
                restored = put_back(self._entry, self._tools.card)
            if not self._taken_over:
                trouble += self._close_the_entry(restored.ending)
            _held.discard((self._tools.journal.folder, self._entry.uuid, self._entry.knob))
            return replace(restored, why=restored.why + trouble)

    def _close_the_entry(self, ending: Ending) -> str:
        """Remove our entry, or leave it to others; return what hinders that."""
        try:
            if ending is Ending.KEPT:
                self._tools.journal.write(replace(self._entry, released=True))
            else:
                self._tools.journal.remove(self._entry)
        except JournalError as error:
            return f"; {error}"
        return ""

    def _see(self) -> None:
        """Notice what others did. Raises NvmlError, JournalError."""
        self._see_the_journal()
        if self._foreign or self._entry.found is None:
            return
        present_w = self._tools.card.limit_w()
        untouched = not self._entry.ours and abs(present_w - self._entry.found) <= SAME_W
        if not untouched and not self._entry.is_ours(present_w):
            self._leave_to_others(present_w)

    def _see_the_journal(self) -> None:
        """Notice who controls the GPU, and write our entry again if somebody has removed or spoiled it."""
        try:
            there = self._see_who_controls_it()
        except JournalError:
            there = False
        if not there and not self._taken_over:
            self._tools.journal.write(self._entry)

    def _see_who_controls_it(self) -> bool:
        """Return whether there is an entry. Raises JournalError if it cannot be read."""
        stored = self._tools.journal.read(self._entry.uuid, self._entry.knob)
        if stored is not None and stored.owner != self._entry.owner:
            self._foreign = f"process {stored.owner.pid} controls the GPU now"
            self._taken_over = True
        return stored is not None

    def _verify(self, asked_w: float) -> None:
        """Raise ControlError, with the limit found put back, if the GPU has not taken what it was asked for.

        A value that is neither the one found nor one of ours is somebody else's, who was quicker than the reading.
        """
        now_w = self._tools.card.limit_w()
        if abs(now_w - asked_w) <= SAME_W:
            return
        if not self._is_found_or_ours(now_w):
            self._leave_to_others(now_w)
            return
        restored = put_back(self._entry, self._tools.card)
        if restored.ending is Ending.RESTORED:
            self._entry = replace(self._entry, ours=())
        self._tools.journal.write(self._entry)
        raise ControlError(f"GPU {self._entry.uuid} was asked for {asked_w:g} W and says {now_w:g} W; {restored.why}")

    def _is_found_or_ours(self, present_w: float) -> bool:
        found_w = self._entry.found
        return self._entry.is_ours(present_w) or (found_w is not None and abs(present_w - found_w) <= SAME_W)

    def _leave_to_others(self, present_w: float) -> None:
        self._foreign = f"others changed the limit to {present_w:g} W: it is neither set again nor put back"
        self._entry = replace(self._entry, ours=())
        self._tools.journal.write(self._entry)

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
