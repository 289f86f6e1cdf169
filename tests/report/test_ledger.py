"""A ledger holds each run once, with its latest heartbeat, whoever imports what, how often and in which order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ledgering import ended_process, entry, spooled

from energy_plugins.measure.ledger_entry import GpuEntry, LedgerEntry, ProcessEntry, Status
from energy_plugins.measure.spool import own_process
from energy_plugins.report.ledger import Ledger
from energy_plugins.report.ledger.importing import put, supersedes

pytest_plugins = ["ledger_fixtures"]

Sql = Callable[..., list[tuple[object, ...]]]


def import_(url: str, spool: Path, *, remove: bool = False) -> tuple[int, int, tuple[str, ...]]:
    with Ledger(url) as ledger:
        done = ledger.import_spool(spool, remove=remove)
    return done.new, done.updated, done.troubles


def statuses(url: str) -> dict[str, str]:
    with Ledger(url) as ledger:
        return {run.run_id: run.status.value for run in ledger.runs()}


def test_what_is_imported_is_what_was_written(url: str, tmp_path: Path) -> None:
    gpus = (GpuEntry(uuid="GPU-1", name="NVIDIA H200", energy_j=1.5), GpuEntry(uuid="GPU-2", name="B", energy_j=None))
    one = entry("one", 1.5, gpus=gpus, name="café ☕ 'x'; DROP TABLE energy_runs; --", tokens=2**63 - 1)
    assert import_(url, spooled(tmp_path / "spool", one)) == (1, 0, ())
    with Ledger(url) as ledger:
        (run,) = ledger.runs()
    assert (run.name, run.gpus, run.tokens, run.energy_j) == (one.name, gpus, 2**63 - 1, 1.5)
    assert (run.project, run.model, run.user, run.nodes) == ("vision", "ResNet", "alice", ("node7",))


def test_importing_again_changes_nothing(url: str, tmp_path: Path) -> None:
    spool = spooled(tmp_path / "spool", *(entry(f"run-{n}") for n in range(450)))  # more than fit into one transaction
    assert import_(url, spool) == (450, 0, ())
    assert import_(url, spool) == (0, 0, ())
    assert import_(url, spool, remove=True) == (0, 0, ())
    assert len(statuses(url)) == 450


def test_a_spool_that_is_not_there_is_empty(url: str, tmp_path: Path) -> None:
    assert import_(url, tmp_path / "nowhere") == (0, 0, ())
    assert statuses(url) == {}


def beats() -> list[LedgerEntry]:
    """A run's life as importers may have seen it."""
    running = entry("run", 1.0, status=Status.RUNNING, beat=1)
    return [
        running,
        replace(running, beat=2, energy_j=2.0, gpus=()),
        replace(running, beat=2, energy_j=2.0, gpus=(), status=Status.SILENT),
        entry("run", 3.0, beat=3),
    ]


@pytest.mark.parametrize("order", tuple(permutations(range(4))))
def test_the_latest_heartbeat_counts_in_whatever_order_they_come(order: tuple[int, ...], tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        for number in order:
            put(ledger._database, [beats()[number]])
        (run,) = ledger.runs()
    assert (run.status, run.energy_j) == (Status.FINISHED, 3.0)
    assert [gpu.energy_j for gpu in run.gpus] == [3.0]


def test_what_supersedes_what() -> None:
    run, silent, killed, finished = Status.RUNNING, Status.SILENT, Status.KILLED, Status.FINISHED
    assert supersedes((2, run), (1, killed))  # it was believed dead, and was not
    assert supersedes((2, killed), (2, run))
    assert supersedes((2, silent), (2, run))
    assert supersedes((2, killed), (2, silent))
    assert not supersedes((2, run), (2, killed))
    assert not supersedes((2, finished), (2, finished))
    assert not supersedes((1, finished), (2, run))


def test_a_run_is_followed_from_running_to_its_end(url: str, tmp_path: Path) -> None:
    running = entry("run", 1.0, status=Status.RUNNING, beat=1)
    spool = spooled(tmp_path / "spool", running)
    assert import_(url, spool) == (1, 0, ())
    assert import_(url, spool) == (0, 0, ())
    assert statuses(url) == {"run": "running"}
    spooled(spool, replace(running, beat=2, energy_j=2.0))
    assert import_(url, spool) == (0, 1, ())
    spooled(spool, entry("run", 3.0, beat=3, status=Status.FAILED))
    assert import_(url, spool) == (0, 1, ())
    assert statuses(url) == {"run": "failed"}


def test_a_rank_that_hears_of_its_training_after_it_was_imported_belongs_to_it(url: str, tmp_path: Path) -> None:
    """Until then its joules count apart: on a GPU that two ranks measure, twice."""
    zero, one = entry("zero", world_size=2), entry("one", world_size=2, rank=1)
    spool = spooled(tmp_path / "spool", zero, one)
    assert import_(url, spool) == (2, 0, ())
    spooled(spool, replace(one, training_id="zero", beat=one.beat + 1))
    assert import_(url, spool) == (0, 1, ())
    with Ledger(url) as ledger:
        (run,) = ledger.runs()
    assert (run.run_id, run.ranks, run.energy_j) == ("zero", 2, 3.6e6)


@pytest.mark.parametrize(
    ("process", "age_s", "node", "became"),
    [
        (own_process, 0, "here", "running"),
        (own_process, 10**6, "here", "running"),  # stopped for long, perhaps, but alive
        (ended_process, 0, "here", "killed"),
        (lambda: replace(own_process(), start_ticks=1), 0, "here", "killed"),  # its number is another's now
        (lambda: replace(own_process(), boot_id="earlier"), 0, "here", "running"),
        (lambda: replace(own_process(), boot_id="earlier"), 3600, "here", "killed"),
        (lambda: replace(own_process(), boot_id="earlier"), 3600, "elsewhere", "silent"),
        (lambda: replace(own_process(), pid_namespace=1), 0, "here", None),
        (lambda: replace(own_process(), pid_namespace=1), 3600, "here", None),
    ],
)
def test_what_became_of_a_run_without_a_last_word(
    process: Callable[[], ProcessEntry], age_s: float, node: str, became: str | None, tmp_path: Path
) -> None:
    import platform

    updated = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(timespec="milliseconds")
    named = platform.node() if node == "here" else node
    one = entry("run", status=Status.RUNNING, process=process(), updated=updated, node=named)
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    import_(url, spooled(tmp_path / "spool", one))
    # Seen from the first namespace of the machine, one without processes has ended; seen from others nobody knows.
    unseen = {"killed", "running"} if age_s == 0 else {"killed", "silent"}
    assert statuses(url)["run"] in ({became} if became is not None else unseen)


def test_a_discarded_run_is_not_listed_even_if_it_was_seen_running(url: str, tmp_path: Path) -> None:
    spool = spooled(tmp_path / "spool", entry("run", status=Status.RUNNING, beat=1))
    import_(url, spool)
    spooled(spool, entry("run", status=Status.DISCARDED, beat=2))
    assert import_(url, spool) == (0, 1, ())
    assert statuses(url) == {}


def test_removing_takes_what_has_ended_and_what_was_left_over(url: str, tmp_path: Path) -> None:
    spool = spooled(tmp_path / "spool", entry("done"), entry("going", status=Status.RUNNING))
    for name, age_s in ((".going-old", 2 * 86400), (".going-new", 0)):
        (spool / name).touch()
        os.utime(spool / name, (datetime.now(UTC).timestamp() - age_s,) * 2)
    import_(url, spool, remove=True)
    assert sorted(path.name for path in spool.iterdir()) == [".going-new", "going.json"]
    assert statuses(url) == {"done": "finished", "going": "running"}


def spoil(spool: Path) -> dict[str, str]:
    """Put into a spool what is no entry, and return what is to be said of each file."""
    good = entry("good").encode()
    outside = spool.parent / "outside.json"
    outside.write_text(good.replace('"good"', '"link"'))
    (spool / "link.json").symlink_to(outside)
    (spool / "folder.json").mkdir()
    os.mkfifo(spool / "pipe.json")
    texts = {
        "cut.json": (good[:200], "is no JSON"),
        "empty.json": ("", "is no JSON"),
        "huge.json": ("[" * (2 << 20), "too large"),
        "deep.json": ("[" * 100_000, "is no JSON"),
        "newer.json": (json.dumps({**json.loads(good), "spool_version": 99}), "use a newer one"),
        "other.json": (good, "whose file has another name"),
        "killed.json": (entry("killed", status=Status.KILLED).encode(), "which no run says of itself"),
        "open.json": (entry("open").encode(), "may be written by others"),
        "list.json": ("[1, 2]", "must hold an object"),
    }
    for name, (text, _) in texts.items():
        (spool / name).write_text(text)
    (spool / "bytes.json").write_bytes(bytes(range(256)) * 10)
    (spool / "open.json").chmod(0o666)
    (spool / "notes.txt").write_text("nothing to do with it")
    said = {name: complaint for name, (_, complaint) in texts.items()}
    said |= {"link.json": "Too many levels of symbolic links", "folder.json": "is no ordinary file"}
    said |= {"pipe.json": "is no ordinary file", "bytes.json": "is no JSON"}
    if os.geteuid() == 0:
        (spool / "foreign.json").write_text(entry("foreign").encode())
        os.chown(spool / "foreign.json", 65534, 65534)
        said["foreign.json"] = "belongs to user 65534, not to you"
    return said


@pytest.mark.parametrize("remove", [False, True])
def test_hostile_files_are_passed_over_with_a_sentence_and_nothing_is_lost(
    url: str, tmp_path: Path, remove: bool
) -> None:
    spool = spooled(tmp_path / "spool", entry("good"), entry("zebra"))
    said = spoil(spool)
    before = {path.name for path in spool.iterdir()}
    new, _, troubles = import_(url, spool, remove=remove)
    assert new == 2
    assert len(troubles) == len(said)
    for name, complaint in said.items():
        (sentence,) = [text for text in troubles if f"/{name}" in text]
        assert complaint in sentence
    gone = {"good.json", "zebra.json"} if remove else set()
    assert {path.name for path in spool.iterdir()} == before - gone
    assert statuses(url) == {"good": "finished", "zebra": "finished"}


def changed(text: str, random: Random) -> str:
    at = random.randrange(len(text))
    return random.choice([text[:at], text[:at] + chr(random.randrange(0x500)) + text[at + 1 :], text[at:] + text[:at]])


def test_whatever_stands_in_a_file_the_others_are_imported(tmp_path: Path) -> None:
    random, spool = Random(7), spooled(tmp_path / "spool", entry("good"))
    for number in range(500):
        path = spool / f"bad-{number}.json"
        path.write_text(changed(entry(f"bad-{number}").encode(), random))
        path.chmod(0o600)
    new, _, troubles = import_(f"sqlite:///{tmp_path}/ledger.sqlite", spool)
    assert new + len(troubles) == 501
    assert len(troubles) > 300


@pytest.mark.parametrize("text", ["name", "project", "model", "user", "node", "framework", "missing"])
def test_any_text_may_be_long_and_of_any_script(url: str, tmp_path: Path, text: str) -> None:
    changes: dict[str, Any] = {text: "𝕏ش漢" * 66}
    assert import_(url, spooled(tmp_path / "spool", entry(**changes)))[0] == 1
