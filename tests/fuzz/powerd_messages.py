"""Coverage-guided fuzzing of what the helper does with messages: `powerd_fuzz.py` runs it as a process of its own.

Whatever is sent, after each message nothing but the sender's own GPU has changed, its limit is one that the site
allows, and the answer is a line of JSON; after each session all is as it was found.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["energy_plugins.powerd", "json"]):
    from energy_plugins.powerd.config import Config, Grant, Range
    from energy_plugins.powerd.journal import Journal
    from energy_plugins.powerd.leases import Leases
    from energy_plugins.powerd.nvml import Nvml
    from energy_plugins.powerd.peers import Peer, own_namespaces, process_of
    from energy_plugins.powerd.policy import Site
    from energy_plugins.powerd.protocol import MOST_BYTES
    from energy_plugins.powerd.server import Handler

from energy_plugins.testing import simulated_gpus

OURS, OTHERS, GRANTED = range(3)
FOUND_MW, MIN_MW, MAX_MW = 700_000, 300_000, 600_000
STEP_S = 0.25
STRANGER = 10_001


class Target:
    """Three GPUs: one of the sender's, one of somebody else's, one of nobody's that the site grants."""

    def __init__(self, folder: Path, undo: ExitStack, messages: int, out: Path) -> None:
        simulation = undo.enter_context(simulated_gpus(count=3, virtual=True))
        self.uuids = [gpu.uuid for gpu in simulation.gpus]
        simulation.gpus[OURS].launch(ops=1)
        compute_as_stranger(simulation.gpus[OTHERS].launch)
        self.journal = folder
        self.nvml = Nvml(Path(simulation.nvml_path))
        config = Config(
            nvml=Path(simulation.nvml_path),
            journal=folder,
            lease_s=15.0,
            sets_per_minute=600.0,
            ranges=(Range(MIN_MW / 1e3, MAX_MW / 1e3),),
            grants=(Grant(gpus=frozenset({self.uuids[GRANTED]}), uids=frozenset({os.getuid()})),),
        )
        self.log_lines = 0
        gpus = frozenset(self.uuids)
        self.leases = Leases(Site(config, own_namespaces()), self.nvml, Journal(folder), self.log, gpus)
        self.handler = Handler(self.leases, self.log)
        self.peer = Peer(process_of(os.getpid()), os.getuid(), frozenset())
        self.now_s = 0.0
        self.sessions = 0
        self.messages = messages
        self.out = out
        self.counts: dict[str, int] = {}
        self.began_s = time.monotonic()

    def log(self, line: str) -> None:
        assert line.isascii(), line
        self.log_lines += 1

    def session(self, data: bytes) -> None:
        """Say the lines of ``data`` on one connection, and hang up."""
        self.sessions += 1
        for raw in data.split(b"\n"):
            # {0}, {1}, {2} stand for the GPUs: no mutation would find a UUID.
            line = raw
            for number, uuid in enumerate(self.uuids):
                line = line.replace(b"{%d}" % number, uuid.encode())
            self.say(line[:MOST_BYTES])
        self.leases.drop(self.sessions, "hung up", self.now_s)
        assert [self.nvml.limit_mw(uuid) for uuid in self.uuids] == [FOUND_MW] * 3
        assert not list(self.journal.glob("*.json"))
        if sum(self.counts.values()) >= self.messages:
            self.end()

    def say(self, line: bytes) -> None:
        self.now_s += STEP_S
        answer = self.handler.answer(self.sessions, self.peer, line, self.now_s)
        assert answer.endswith(b"\n")
        assert answer.count(b"\n") == 1
        told = json.loads(answer)
        what = "done" if told["ok"] else told["error"]
        self.counts[what] = self.counts.get(what, 0) + 1
        self.leases.tick(self.now_s)
        assert self.nvml.limit_mw(self.uuids[OTHERS]) == FOUND_MW
        for number in (OURS, GRANTED):
            limit_mw = self.nvml.limit_mw(self.uuids[number])
            assert limit_mw == FOUND_MW or MIN_MW <= limit_mw <= MAX_MW

    def end(self) -> None:
        """Write what was seen, and leave: libFuzzer would not."""
        seconds = time.monotonic() - self.began_s
        figures = {"messages": sum(self.counts.values()), "sessions": self.sessions, "seconds": seconds}
        self.out.write_text(json.dumps({**figures, "log_lines": self.log_lines, "answers": self.counts}))
        sys.stdout.flush()
        os._exit(0)


def compute_as_stranger(launch: object) -> None:
    """Leave a process of another user that computes until this one ends."""
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        assert callable(launch)
        launch(ops=1)
        os.close(ready)
        os.write(tell, b".")
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)
    os.read(ready, 1)


def main() -> None:
    """``powerd_messages.py MESSAGES OUT [libFuzzer's arguments]``."""
    messages, out = int(sys.argv[1]), Path(sys.argv[2])
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        target = Target(folder, undo, messages, out)
        atheris.Setup([sys.argv[0], *sys.argv[3:]], target.session)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
