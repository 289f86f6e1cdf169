"""Who may change a GPU here, what was left changed, and putting that back. Run in the child of a `Probe`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from energy_plugins.cli.capabilities import CAP_SYS_ADMIN, has_capability
from energy_plugins.cli.check import Check, Status
from energy_plugins.cli.probe import Say
from energy_plugins.control.direct import AS_ROOT, why_not_a_slice
from energy_plugins.control.entry import Entry, Knob
from energy_plugins.control.journal import Journal, journal_folder
from energy_plugins.control.nvml import Card, Nvml
from energy_plugins.control.owner import Life
from energy_plugins.control.powerd_client import ask_powerd
from energy_plugins.control.restore import Ending, replay
from energy_plugins.errors import EnergyError, JournalError
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.drivers import current_drivers

JOURNAL = "journal"
SET_BY = "limits set by"
LEFT = "changed by us"
_RESTORE = "energy-plugins doctor --restore"
_NOT_NEEDED_TO_MEASURE = f"nothing, to measure; to change limits, {AS_ROOT}"
_STATUSES = {
    Ending.RESTORED: Status.OK,
    Ending.DROPPED: Status.OK,
    Ending.IN_USE: Status.OK,
    Ending.FOREIGN: Status.WARNING,
    Ending.KEPT: Status.MISSING,
}


def control_checks(gpu: Gpu) -> Iterator[Check]:
    """Yield which back end changes the limits of a GPU, and what of it is not as it was found. Nothing is tried."""
    why, remedy, entries, unsafe = "", "", list[Entry](), False
    try:
        with Journal(journal_folder(), create=False) as journal:
            entries = [entry for knob in Knob if (entry := journal.read(gpu.uuid, knob)) is not None]
    except FileNotFoundError:
        pass  # nothing was ever changed
    except JournalError as error:
        why, remedy = str(error), f"{_RESTORE}; remove the journal if it is not yours and no training runs"
        unsafe = True  # what the GPU has now may be what a dead trainer set, so nobody else is asked
    if not unsafe and not has_capability(CAP_SYS_ADMIN):
        why, remedy = "setting limits needs CAP_SYS_ADMIN, which this process lacks", _NOT_NEEDED_TO_MEASURE
    if gpu.mig is not None:
        why, remedy = why_not_a_slice()
    if not _has_pidfds():
        why, remedy = "the watchdog needs pidfds, which this kernel or this Python does not have", "Linux 5.3 or newer"
    powerd = _powerd_says(gpu) if why and not unsafe else ""
    if powerd:
        yield Check(SET_BY, Status.OK, f"powerd; {powerd}", gpu=gpu.visible_uuid)
    elif why:
        yield Check(SET_BY, Status.WARNING, "nobody: limits are only advised", why, remedy, gpu.visible_uuid)
    else:
        yield Check(SET_BY, Status.OK, f"NVML directly; journal in {journal_folder()}", gpu=gpu.visible_uuid)
    yield from (_left(entry, gpu) for entry in entries)


def _powerd_says(gpu: Gpu) -> str:
    """Return what the helper says of a GPU, "" if there is none for it."""
    if gpu.mig is not None:
        return ""
    try:
        return ask_powerd(gpu.uuid)
    except EnergyError:
        return ""


def _has_pidfds() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _left(entry: Entry, gpu: Gpu) -> Check:
    what = f"its {entry.knob.value}" + ("" if entry.found is None else f", found at {entry.found:g} W")
    if not entry.released and _lives(entry):
        return Check(LEFT, Status.OK, f"{what}, by process {entry.owner.pid}, which runs", gpu=gpu.visible_uuid)
    why = f"process {entry.owner.pid}, which changed it, has not put it back"
    return Check(LEFT, Status.WARNING, what, why, _RESTORE, gpu.visible_uuid)


def _lives(entry: Entry) -> bool:
    try:
        return entry.owner.life() is Life.ALIVE
    except OSError:  # /proc does not show it: it is there
        return True


def restored_checks(say: Say) -> Iterator[Check]:
    """Put back what processes that have ended left changed, and yield what became of each."""
    say("opening the journal of changed GPUs")
    with ExitStack() as undo:
        try:
            journal = undo.enter_context(Journal(journal_folder(), create=False))
            if not journal.names():
                yield Check(JOURNAL, Status.OK, "nothing is left to put back")
            say("putting back what was found")
            for one in replay(journal, _cards(undo)):
                found, why = one.ending.value, one.why
                yield Check(one.knob.value, _STATUSES[one.ending], found, why, _remedy(one.ending), one.uuid)
        except FileNotFoundError:
            yield Check(JOURNAL, Status.OK, "there is none: nothing was ever changed")
        except JournalError as error:
            yield Check(JOURNAL, Status.MISSING, "not used", str(error), "remove it if no training runs")


def _remedy(ending: Ending) -> str:
    if ending is Ending.KEPT:
        return "see the reason; what was found can be set by hand: nvidia-smi -i UUID -pl WATTS, then remove its file"
    return ""


def _cards(undo: ExitStack) -> Callable[[str], Card]:
    """Return what gives a GPU by its UUID; the driver is opened when the first is asked for."""
    opened: list[Nvml] = []

    def card(uuid: str) -> Card:
        if not opened:
            opened.append(undo.enter_context(Nvml(current_drivers().nvml)))
        return opened[0].card(uuid)

    return card
