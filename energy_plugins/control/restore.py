"""Putting back what was found: the same lines at a normal end, in the watchdog, and when a journal is replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from energy_plugins.control.entry import SAME_W, Entry, Knob
from energy_plugins.control.journal import Journal
from energy_plugins.control.nvml import Card
from energy_plugins.control.owner import Life
from energy_plugins.errors import EnergyError, JournalError, NvmlError


class Ending(Enum):
    """What became of a change of ours."""

    RESTORED = "restored"
    """The value found is back; it was read back."""
    FOREIGN = "foreign"
    """Somebody else has set another value since, which stays."""
    DROPPED = "dropped"
    """The machine was started again since: nothing of ours is left."""
    IN_USE = "in use"
    """The process that made it lives."""
    KEPT = "kept"
    """It could not be undone, and stays in the journal."""


@dataclass(frozen=True)
class Restored:
    """What became of one entry of the journal, and a sentence about it."""

    uuid: str
    knob: Knob
    ending: Ending
    why: str


@dataclass(frozen=True)
class Action:
    """What is to be done about a power limit: a value to set (W), or none; ``ending`` if that works."""

    ending: Ending
    set_w: float | None = None
    why: str = ""


def decide(entry: Entry, present_w: float, range_w: tuple[float, float]) -> Action:
    """Say what to do about a power limit of which ``entry`` speaks, from the limit asked for now and the range."""
    if entry.found is None:
        return Action(Ending.KEPT, why="the journal does not say what was found")
    if not range_w[0] <= entry.found <= range_w[1]:
        why = f"the journal says that {entry.found:g} W were found, outside this GPU's {range_w[0]:g}-{range_w[1]:g} W"
        return Action(Ending.KEPT, why=why)
    if abs(present_w - entry.found) <= SAME_W:
        return Action(Ending.RESTORED, why=f"the limit is {entry.found:g} W, as it was found")
    if not entry.is_ours(present_w):
        return Action(Ending.FOREIGN, why=f"the limit was changed to {present_w:g} W by others, and stays so")
    return Action(Ending.RESTORED, entry.found, f"the limit is {entry.found:g} W again, as it was found")


def put_back(entry: Entry, card: Card) -> Restored:
    """Undo one change. The caller keeps others out of the journal, and removes the entry unless it is KEPT."""
    try:
        ending, why = _put_back_clocks(card) if entry.knob is Knob.CLOCKS else _put_back_limit(entry, card)
    except NvmlError as error:
        ending, why = Ending.KEPT, f"the driver does not let it be put back: {error}"
    return Restored(entry.uuid, entry.knob, ending, why)


def replay(journal: Journal, card_of: Callable[[str], Card], *, of_pid: int | None = None) -> Iterator[Restored]:
    """Undo what processes that have ended left behind (``of_pid``: that one alone); yield what became of each entry.

    Entries of processes that live are IN_USE, unless they have done with them; those of which nothing can be known here
    are KEPT.
    """
    for uuid, knob in journal.names():
        restored = None
        try:
            with journal.alone(uuid):
                entry = journal.read(uuid, knob)
                if entry is not None and of_pid in {None, entry.owner.pid}:
                    restored = settle(journal, entry, card_of)
        except JournalError as error:
            restored = Restored(uuid, knob, Ending.KEPT, str(error))
        if restored is not None:  # told once the GPU is others' again
            yield restored


def settle(journal: Journal, entry: Entry, card_of: Callable[[str], Card]) -> Restored:
    """Undo one entry if its owner has ended or done with it; remove it unless KEPT or IN_USE. Raises JournalError."""
    pid = entry.owner.pid
    try:
        life = entry.owner.life()
    except OSError as error:
        return Restored(entry.uuid, entry.knob, Ending.KEPT, f"what became of process {pid} is not seen: {error}")
    if entry.released and life is not Life.EARLIER_BOOT:
        life = Life.DEAD
    match life:
        case Life.ALIVE:
            return Restored(entry.uuid, entry.knob, Ending.IN_USE, f"process {pid} controls it")
        case Life.ELSEWHERE:
            why = f"process {pid} of another container controls it, or did: what became of it is not seen from here"
            return Restored(entry.uuid, entry.knob, Ending.KEPT, why)
        case Life.EARLIER_BOOT:
            restored = _of_an_earlier_boot(entry, card_of)
        case Life.DEAD:
            try:
                restored = put_back(entry, card_of(entry.uuid))
            except EnergyError as error:
                restored = Restored(entry.uuid, entry.knob, Ending.KEPT, str(error))
    if restored.ending is not Ending.KEPT:
        journal.remove(entry)
    return restored


def _of_an_earlier_boot(entry: Entry, card_of: Callable[[str], Card]) -> Restored:
    """Drop an entry of a GPU of this machine: one of another, whose disk it shares, may be in use there."""
    pid = entry.owner.pid
    try:
        card_of(entry.uuid)
    except EnergyError as error:
        why = f"process {pid} set it before this machine was last started, or on another one: {error}"
        return Restored(entry.uuid, entry.knob, Ending.KEPT, why)
    why = f"process {pid} set it before this machine was last started, which undid it"
    return Restored(entry.uuid, entry.knob, Ending.DROPPED, why)


def _put_back_limit(entry: Entry, card: Card) -> tuple[Ending, str]:
    action = decide(entry, card.limit_w(), card.range_w())
    if action.set_w is not None:
        card.set_limit_w(action.set_w)
        now_w = card.limit_w()
        if abs(now_w - action.set_w) > SAME_W:
            return Ending.KEPT, f"the driver was asked for {action.set_w:g} W and says {now_w:g} W"
    return action.ending, action.why


def _put_back_clocks(card: Card) -> tuple[Ending, str]:
    card.reset_clocks()
    return Ending.RESTORED, "the clocks are unlocked again"
