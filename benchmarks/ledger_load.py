"""The ledger under load: runs that are killed at any moment, and importers that are killed, too.

    python benchmarks/ledger_load.py           some minutes; exits with 1 if a bar is missed
    python benchmarks/ledger_load.py --scale 20 --no-result

64 processes at a time run 1,000 runs each, whose entries importers bring into SQLite; then 16 at a time do so for a
PostgreSQL server of our own, from the spools of two nodes. Every third run goes on until it is killed with SIGKILL at
a random moment; each importer is killed every second or so, and another begins. A run tells this process through a pipe
of each heartbeat that is on the disk. In the end each run of which one was told must be in the ledger, once, with the
joules of that heartbeat, or of the next, which may have been written but not told any more. The runs' joules are made
up; processes, signals, files and databases are real.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import select
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from _common import Bar, Kind, finish, say
from _postgres import postgres, postgres_missing

from energy_plugins.errors import LedgerError
from energy_plugins.measure.heartbeat import Heartbeat, SoFar
from energy_plugins.measure.ledger_entry import GpuEntry, LedgerEntry, Status
from energy_plugins.measure.spool import own_process, spool_folder
from energy_plugins.report.ledger import Ledger
from energy_plugins.report.ledger.runs import Run
from energy_plugins.report.ledger.totals import overall

RUNS_EACH = 1000
KILLED_SHARE = 1 / 3
IMPORTERS_A_NODE = 2
IMPORTER_LIVES_S = (0.2, 2.0)
MOST_BEATS = 8
"""Of a run that is to be killed: that happens once some random one of them was told, or its start,"""
LATE_S = 0.005
"""and at a random moment until so long after that."""
_TOLD = struct.Struct("=IIB")
"""Run, heartbeat, and whether it was the last word; written at once, so never in halves."""
_STARTED, _BEAT, _ENDED = 0, 1, 2


@dataclass(frozen=True)
class Load:
    """How many runs of how many processes go into which ledger."""

    name: str
    url: str
    slots: int
    runs_each: int
    nodes: int


@dataclass
class Slot:
    """One process at a time, which makes runs one after the other; where it is killed, the next takes over."""

    number: int
    state_home: Path
    next_run: int = 0
    pid: int = 0
    told: int = -1
    """The pipe that it tells by."""
    kill_after: int | None = None
    """The heartbeat after which it is killed,"""
    kill_at_s: float | None = None
    """and when that is."""


@dataclass
class Truth:
    """What was told of the runs."""

    beats: dict[str, int] = field(default_factory=dict)
    """The last heartbeat that was told, 0 if only that the run began."""
    ended: set[str] = field(default_factory=set)


def run_id(slot: int, run: int) -> str:
    """Return what a run is called."""
    return f"slot{slot:03}-run{run:05}"


def is_victim(slot: int, run: int) -> bool:
    """Tell whether a run goes on until it is killed."""
    return random.Random(f"{slot} {run}").random() < KILLED_SHARE


def gpu_j(run: int, beat: int, gpu: int) -> float:
    """Return what a run has drawn on one of its two GPUs: whole joules, whose sums are exact."""
    return float((run + 1) * 1000 + beat * 7 + gpu)


def energy_j(run: int, beat: int) -> float:
    """Return what a run has drawn."""
    return gpu_j(run, beat, 0) + gpu_j(run, beat, 1)


def work(slot: Slot, runs: int, tell: int) -> None:
    """Make runs, the first of which is the slot's next, and tell of each heartbeat."""
    os.environ["XDG_STATE_HOME"] = str(slot.state_home)
    process = own_process()
    for run in range(slot.next_run, runs):
        gpus = tuple(GpuEntry(uuid=f"GPU-{slot.number}-{gpu}", name="made up", energy_j=None) for gpu in range(2))
        name = run_id(slot.number, run)
        now = "2026-11-22T08:15:00.000+00:00"
        first = LedgerEntry(
            run_id=name,
            training_id=name,
            inside="",
            rank=0,
            world_size=1,
            name="load",
            node=slot.state_home.name,
            user="load",
            project=f"project-{slot.number % 5}",
            model="",
            framework="",
            simulated=False,
            started=now,
            updated=now,
            beat=0,
            status=Status.RUNNING,
            process=process,
            duration_s=0.0,
            energy_j=None,
            missing="",
            gpus=gpus,
            steps=0,
            samples=None,
            tokens=None,
        )
        heartbeat = Heartbeat(first, _complain, threaded=False)
        os.write(tell, _TOLD.pack(run, 0, _STARTED))
        beats = MOST_BEATS if is_victim(slot.number, run) else 1 + run % 3
        for beat in range(1, beats):
            heartbeat.beat(0, _so_far(slot, run, beat))
            os.write(tell, _TOLD.pack(run, beat, _BEAT))
        if is_victim(slot.number, run):
            signal.pause()
        beat = beats
        heartbeat.end(Status.FINISHED if run % 7 else Status.FAILED, _so_far(slot, run, beat))
        os.write(tell, _TOLD.pack(run, beat, _ENDED))


def _complain(text: str) -> None:
    raise AssertionError(text)


def _so_far(slot: Slot, run: int, beat: int) -> SoFar:
    return SoFar(
        duration_s=float(beat),
        energy_j=energy_j(run, beat),
        gpu_j={f"GPU-{slot.number}-{gpu}": gpu_j(run, beat, gpu) for gpu in range(2)},
        steps=beat,
        samples=None,
        tokens=None,
    )


def import_on(url: str, state_home: Path) -> None:
    """Import one node's spool again and again."""
    os.environ["XDG_STATE_HOME"] = str(state_home)
    while True:
        with Ledger(url) as ledger:
            ledger.import_spool()
        time.sleep(0.3)


def forked(body: Callable[[], None]) -> int:
    """Run ``body`` in a child process and return its pid."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        body()
        code = 0
    finally:
        if code:
            import traceback  # noqa: PLC0415 - only here

            traceback.print_exc()
        os._exit(code)


class Fleet:
    """All processes of one load, and what they told."""

    def __init__(self, load: Load, folder: Path) -> None:
        self.load = load
        self.truth = Truth()
        self.kills = Counter[str]()
        self._homes = [folder / f"node{node}" for node in range(load.nodes)]
        self._slots = {n: Slot(n, self._homes[n % load.nodes]) for n in range(load.slots)}
        self._importers: dict[int, tuple[Path, float]] = {}
        self._random = random.Random(load.name)

    def run(self) -> None:
        """Have all runs made, with importers beside them."""
        for home in self._homes * IMPORTERS_A_NODE:
            self._start_importer(home)
        for slot in self._slots.values():
            self._start(slot)
        said_s = time.monotonic()
        while open_slots := [slot for slot in self._slots.values() if slot.pid]:
            self._look(open_slots)
            if time.monotonic() - said_s > 5:
                said_s = time.monotonic()
                done = sum(slot.next_run for slot in self._slots.values())
                sys.stderr.write(f"{self.load.name}: {done:,} runs, {self.kills['run']:,} of them killed\n")
        for pid in list(self._importers):
            self._kill_importer(pid)

    def finish(self) -> tuple[Run, ...]:
        """Import what is left and return the runs of the ledger."""
        with Ledger(self.load.url) as ledger:
            for home in self._homes:
                os.environ["XDG_STATE_HOME"] = str(home)
                troubles = ledger.import_spool(spool_folder()).troubles
                assert not troubles, troubles
            return ledger.runs()

    def _look(self, slots: list[Slot]) -> None:
        waiter = select.poll()
        by_pipe = {slot.told: slot for slot in slots}
        for pipe in by_pipe:
            waiter.register(pipe, select.POLLIN)
        for pipe, _ in waiter.poll(2):
            self._hear(by_pipe[pipe])
        now_s = time.monotonic()
        for slot in slots:
            if slot.pid and slot.kill_at_s is not None and now_s >= slot.kill_at_s:
                os.kill(slot.pid, signal.SIGKILL)
                slot.kill_at_s = None
        for pid, (home, until_s) in list(self._importers.items()):
            if now_s >= until_s:
                self._kill_importer(pid)
                self._start_importer(home)

    def _hear(self, slot: Slot) -> None:
        data = os.read(slot.told, _TOLD.size * 512)
        if not data:
            self._ended(slot)
            return
        for run, beat, what in _TOLD.iter_unpack(data):
            name = run_id(slot.number, run)
            self.truth.beats[name] = beat
            slot.next_run = run + 1
            if what == _ENDED:
                self.truth.ended.add(name)
            elif what == _STARTED and is_victim(slot.number, run):
                slot.kill_after = self._random.randrange(MOST_BEATS)
            if beat == slot.kill_after:
                slot.kill_at_s, slot.kill_after = time.monotonic() + self._random.uniform(0, LATE_S), None

    def _ended(self, slot: Slot) -> None:
        """Note the end of a process, of which everything was heard, and start the next."""
        _, status = os.waitpid(slot.pid, 0)
        os.close(slot.told)
        slot.pid = 0
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, -signal.SIGKILL}, code
        self.kills["run"] += code != 0
        if slot.next_run < self.load.runs_each:
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        slot.told, tell = os.pipe()
        slot.pid = forked(lambda: work(slot, self.load.runs_each, tell))
        os.close(tell)

    def _start_importer(self, home: Path) -> None:
        until_s = time.monotonic() + self._random.uniform(*IMPORTER_LIVES_S)
        self._importers[forked(lambda: import_on(self.load.url, home))] = home, until_s

    def _kill_importer(self, pid: int) -> None:
        del self._importers[pid]
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "an importer failed"
        self.kills["importer"] += 1


def judge(truth: Truth, runs: tuple[Run, ...], runs_each: int, slots: int) -> dict[str, float]:
    """Return how many runs are not in the ledger as they should be, and by how much its total is off."""
    found = {run.run_id: run for run in runs}
    numbers = {run_id(slot, run): run for slot in range(slots) for run in range(runs_each)}
    lost = [name for name, beat in truth.beats.items() if beat and name not in found]
    wrong = []
    expected_j = 0.0
    for name, run in found.items():
        told, number = truth.beats[name], numbers[name]
        possible = {energy_j(number, beat): beat for beat in (told, told + 1)}
        if name in truth.ended:
            possible = {energy_j(number, told): told}
        beat = possible.get(run.energy_j or -1.0)
        status = (Status.FINISHED if number % 7 else Status.FAILED) if name in truth.ended else Status.KILLED
        gpus_j = [gpu_j(number, beat or 0, gpu) for gpu in range(2)]
        if beat is None or run.status is not status or [gpu.energy_j for gpu in run.gpus] != gpus_j:
            wrong.append(name)
        expected_j += energy_j(number, beat or 0)
    return {
        "runs": len(numbers),
        "in_ledger": len(runs),
        "never_told": len(numbers) - sum(beat > 0 for beat in truth.beats.values()),
        "lost": len(lost),
        "twice": len(runs) - len(found),
        "wrong": len(wrong),
        "total_j": overall(runs).energy_j,
        "total_off_j": abs(overall(runs).energy_j - expected_j),
    }


def loaded(load: Load, folder: Path) -> dict[str, float]:
    """Return what came of a load."""
    began_s = time.monotonic()
    fleet = Fleet(load, folder)
    fleet.run()
    made_s = time.monotonic() - began_s
    figures = judge(fleet.truth, fleet.finish(), load.runs_each, load.slots)
    figures |= {"runs_killed": fleet.kills["run"], "importers_killed": fleet.kills["importer"]}
    figures |= {"seconds": made_s, "runs_per_s": figures["runs"] / made_s}
    say(f"{load.name}: {figures}")
    return figures


def on_sqlite(folder: Path, scale: int) -> dict[str, float]:
    """Load SQLite, and have it look for damage."""
    path = folder / "ledger.sqlite"
    figures = loaded(Load("sqlite", f"sqlite:///{path}", 64, RUNS_EACH // scale, 1), folder)
    with sqlite3.connect(path) as connection:
        figures["damaged"] = float(connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)])
    return figures


def on_postgres(folder: Path, scale: int) -> dict[str, float]:
    """Load a PostgreSQL server."""
    with postgres() as url:
        return loaded(Load("postgresql", url, 16, RUNS_EACH // scale, 2), folder)


def main() -> int:
    """Run both loads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=int, default=1, help="only one in so many runs")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--no-result", action="store_true", help="write no result file")
    asked = parser.parse_args()
    if missing := postgres_missing() if asked.only != "sqlite" else "":
        say(f"skipped: {missing}")
        return 0
    gc.freeze()  # children share our memory: what the collector touches it would copy
    results = {}
    for name, load in (("sqlite", on_sqlite), ("postgresql", on_postgres)):
        if asked.only in {None, name}:
            folder = Path(tempfile.mkdtemp(prefix="energy-load-"))
            try:
                results[name] = load(folder, asked.scale)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    bars = [
        Bar(f"{name}: {what}", figures[key], at_most=0, show=".0f")
        for name, figures in results.items()
        for key, what in (
            ("lost", "runs lost that had a heartbeat"),
            ("twice", "runs that are there twice"),
            ("wrong", "runs with wrong joules or a wrong end"),
            ("total_off_j", "joules by which the total is off"),
            ("damaged", "damage that SQLite finds"),
        )
        if key in figures
    ]
    bars += [
        Bar(f"{name}: share of runs killed", figures["runs_killed"] / figures["runs"], at_least=0.25)
        for name, figures in results.items()
    ]
    if asked.no_result:
        say("\n".join(map(str, bars)))
        return 0 if all(bar.met for bar in bars) else 1
    return finish("ledger_load", gpus=[], figures=results, bars=bars, raw={}, kind=Kind.MEASURED)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LedgerError as error:
        sys.exit(str(error))
