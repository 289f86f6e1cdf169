"""The journal survives crashes and distrusts what it reads."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controlling import DEAD, FOUND_W, PATIENCE_S, SET_W, limit_w, operator_sets, trainer
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins import visible_gpus
from energy_plugins.control import PowerLimit, Standing
from energy_plugins.control.entry import Entry, Knob
from energy_plugins.control.journal import JOURNAL_VARIABLE, Journal, journal_folder
from energy_plugins.control.nvml import Nvml
from energy_plugins.control.owner import Owner
from energy_plugins.control.restore import Ending, decide, replay
from energy_plugins.errors import JournalError
from energy_plugins.testing import Simulation, simulated_gpus

ROOT = Path(__file__).parents[2]
WATTS = st.floats(min_value=0.001, max_value=9e5)
ENTRIES = st.builds(
    Entry,
    uuid=st.from_regex(r"\AGPU-[0-9a-f-]{36}\Z"),
    knob=st.just(Knob.POWER),
    owner=st.builds(Owner, st.integers(0, 2**31), st.integers(0, 2**62), st.text(max_size=40), st.integers(0, 2**32)),
    found=WATTS,
    ours=st.lists(WATTS, max_size=2).map(tuple),
    released=st.booleans(),
)
ENTRY = Entry(uuid="GPU-0", knob=Knob.POWER, owner=DEAD, found=650.0, ours=(450.0,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@given(entry=ENTRIES)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert Entry.read(entry.text().encode(), "a test") == entry


def test_it_is_for_its_owners_eyes_only(folder: Path) -> None:
    mask = os.umask(0)
    try:
        with Journal(folder) as journal, journal.alone("GPU-0"):
            journal.write(ENTRY)
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {"GPU-0.power.json", "GPU-0.lock"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_writing_replaces_and_removing_removes(folder: Path) -> None:
    with Journal(folder) as journal:
        assert (journal.names(), journal.read("GPU-0", Knob.POWER)) == ([], None)
        journal.write(ENTRY)
        (folder / ".GPU-0.power.json").write_text("half of it, by a writer that died")
        journal.write(Entry(uuid="GPU-0", knob=Knob.CLOCKS, owner=DEAD, found=None))
        journal.write(ENTRY)
        assert journal.names() == [("GPU-0", Knob.CLOCKS), ("GPU-0", Knob.POWER)]
        assert journal.read("GPU-0", Knob.POWER) == ENTRY
        for _ in range(2):
            journal.remove(ENTRY)
        assert journal.names() == [("GPU-0", Knob.CLOCKS)]


@pytest.mark.parametrize("what", ["a link", "a pipe", "a folder", "open", "huge", "another's", "another GPU's"])
def test_files_that_are_not_ours_are_not_read(folder: Path, tmp_path: Path, what: str) -> None:
    with Journal(folder) as journal:
        journal.write(ENTRY)
        path = folder / "GPU-0.power.json"
        match what:
            case "a link":
                path.rename(tmp_path / "elsewhere")
                path.symlink_to(tmp_path / "elsewhere")
            case "a pipe":
                path.unlink()
                os.mkfifo(path, 0o600)
            case "a folder":
                path.unlink()
                path.mkdir(mode=0o700)
            case "open":
                path.chmod(0o640)
            case "huge":
                path.write_text(ENTRY.text() + " " * 20_000)
            case "another's":
                if os.geteuid() != 0:
                    pytest.skip("needs root to give it away")
                os.chown(path, 12345, -1)
            case "another GPU's":
                path.rename(folder / "GPU-1.power.json")
        uuid = "GPU-1" if what == "another GPU's" else "GPU-0"
        with pytest.raises(JournalError, match=f"{uuid}.power.json"):
            journal.read(uuid, Knob.POWER)
        assert [kept.ending for kept in replay(journal, no_card)] == [Ending.KEPT]


def no_card(uuid: str) -> Any:
    raise AssertionError(f"GPU {uuid} is touched")


def test_a_folder_that_is_a_link_is_not_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(folder)


def test_looking_makes_no_folder(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Journal(folder, create=False)
    assert not folder.exists()


def test_two_threads_and_two_processes_do_not_change_it_at_once(folder: Path) -> None:
    order: list[str] = []
    fork = multiprocessing.get_context("fork")
    with Journal(folder) as journal:
        got, gets = fork.Pipe(duplex=False)

        def in_another(tell: Any) -> None:
            with Journal(folder) as own, own.alone("GPU-0"):
                tell.send("in")

        def in_a_thread() -> None:
            with journal.alone("GPU-0"):
                order.append("thread")

        with journal.alone("GPU-0"):
            process = fork.Process(target=in_another, args=(gets,))
            process.start()
            thread = threading.Thread(target=in_a_thread)
            thread.start()
            with journal.alone("GPU-1"):
                assert not got.poll(0.3)
            order.append("main")
        assert got.recv() == "in"
        process.join()
        thread.join()
    assert order == ["main", "thread"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["power", "GPU-0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    "version",
    "uuid",
    "knob",
    "owner",
    "found",
    "ours",
    "released",
    "pid",
    "start_ticks",
    "boot_id",
    "pid_namespace",
]


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_nonsense_is_refused(content: bytes) -> None:
    with pytest.raises(JournalError):
        Entry.read(content, "a test")


@pytest.mark.parametrize("content", [b"[" * 15_000, b"9" * 15_000, b'{"version": 1, "version": 2}'])
def test_hostile_nonsense_is_refused(content: bytes) -> None:
    with pytest.raises(JournalError):
        Entry.read(content, "a test")


@given(key=st.sampled_from(KEYS), value=JSON, present_w=st.floats(0, 2000))
def test_whatever_an_entry_says_the_gpu_keeps_to_its_range(key: str, value: Any, present_w: float) -> None:
    values = json.loads(ENTRY.text())
    (values if key in values else values["owner"])[key] = value
    try:
        entry = Entry.read(json.dumps(values).encode(), "a test")
    except JournalError:
        return
    action = decide(entry, present_w, (200.0, 700.0))
    assert action.set_w is None or (200.0 <= action.set_w <= 700.0 and entry.is_ours(present_w))


@given(entry=ENTRIES, present_w=st.floats(0, 2000))
def test_what_to_do(entry: Entry, present_w: float) -> None:
    assert entry.found is not None
    action = decide(entry, present_w, (200.0, 700.0))
    if not 200 <= entry.found <= 700:
        assert (action.ending, action.set_w) == (Ending.KEPT, None)
    elif abs(present_w - entry.found) <= 0.5:
        assert (action.ending, action.set_w) == (Ending.RESTORED, None)
    elif any(abs(present_w - ours) <= 0.5 for ours in entry.ours):
        assert (action.ending, action.set_w) == (Ending.RESTORED, entry.found)
    else:
        assert (action.ending, action.set_w) == (Ending.FOREIGN, None)


@pytest.mark.parametrize("found_w", [1.0, 199.0, 701.0, 90_000.0])
def test_a_limit_out_of_range_is_not_put_back(simulation: Simulation, found_w: float) -> None:
    operator_sets(450)
    (gpu,) = visible_gpus()
    with Journal(simulation.journal) as journal, Nvml(simulation.nvml_path) as nvml:
        journal.write(Entry(uuid=gpu.uuid, knob=Knob.POWER, owner=DEAD, found=found_w, ours=(450.0,)))
        (kept,) = replay(journal, nvml.card)
    assert (kept.ending, limit_w()) == (Ending.KEPT, 450)
    assert "outside this GPU's 200-700 W" in kept.why


def test_a_journal_of_nonsense_stops_no_training(simulation: Simulation) -> None:
    operator_sets(FOUND_W)
    (gpu,) = visible_gpus()
    simulation.journal.mkdir(mode=0o700)
    path = simulation.journal / f"{gpu.uuid}.power.json"
    path.write_text("{}")
    path.chmod(0o600)
    with PowerLimit(gpu).at(watts=450) as limit:
        assert limit.check() is Standing.ADVISED
        assert f"{gpu.uuid}.power.json" in limit.status.why
    assert (limit_w(), path.read_text()) == (FOUND_W, "{}")


def test_a_gpu_that_is_not_there_is_kept(simulation: Simulation) -> None:
    with Journal(simulation.journal) as journal, Nvml(simulation.nvml_path) as nvml:
        journal.write(ENTRY)
        (kept,) = replay(journal, nvml.card)
    assert (kept.ending, kept.uuid) == (Ending.KEPT, "GPU-0")


def test_an_entry_of_another_machine_is_kept(simulation: Simulation) -> None:
    """Machines may share the disk of a journal; a GPU that is not here was set elsewhere, and may be in use there."""
    entry = replace(ENTRY, owner=replace(DEAD, boot_id="of another machine"))
    with Journal(simulation.journal) as journal, Nvml(simulation.nvml_path) as nvml:
        journal.write(entry)
        (kept,) = replay(journal, nvml.card)
        assert (kept.ending, journal.read("GPU-0", Knob.POWER)) == (Ending.KEPT, entry)


def test_what_became_of_an_entry_is_told_once_its_gpu_is_free(simulation: Simulation) -> None:
    with Journal(simulation.journal) as journal, Nvml(simulation.nvml_path) as nvml:
        journal.write(ENTRY)
        for kept in replay(journal, nvml.card):
            with journal.alone(kept.uuid):
                assert kept.ending is Ending.KEPT


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpus() as simulation:
        assert journal_folder() == simulation.journal
    monkeypatch.delenv(JOURNAL_VARIABLE, raising=False)
    if os.geteuid() == 0:
        assert journal_folder() == Path("/run/energy-plugins-journal")
    else:
        assert journal_folder().name == f"energy-plugins-journal-{os.geteuid()}"


def test_on_a_full_disk_nothing_is_changed(simulation: Simulation) -> None:
    body = """
import resource
from energy_plugins.errors import JournalError
with PowerLimit(gpus[0]).at(watts=SET_W) as limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        limit.set(300)
    except JournalError:
        say("ready")
        sys.stdin.readline()
"""
    operator_sets(FOUND_W)
    with trainer(simulation, body) as process:
        assert limit_w() == SET_W
        process.communicate("go\n", timeout=PATIENCE_S)
        assert (process.returncode, limit_w()) == (0, FOUND_W)


def test_the_watchdog_needs_the_standard_library_alone() -> None:
    program = (
        f"import sys; sys.path.append({str(ROOT)!r}); import energy_plugins.control.watchdog; "
        "print(*(name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} <= {"energy_plugins", "__main__"}
    assert not {name for name in done.stdout.split() if name.startswith("energy_plugins.measure")}
