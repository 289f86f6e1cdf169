"""Ranks of a training as real processes. They are forked from one that has imported torch, which takes seconds.

As a program: reads requests from standard input, a line of JSON each, and answers with a line.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from energy_plugins.testing import Simulation

PRELUDE = """
import os, signal, sys, time
import torch.distributed as dist
from energy_plugins import EnergyMeter, Kind
rank, folder = int(os.environ["RANK"]), sys.argv[1]

def train(meter, steps=30, backward_s=0.02):
    for _ in range(steps):
        with meter.step(samples=4), meter.span(Kind.BACKWARD):
            time.sleep(backward_s)
"""


@dataclass(frozen=True)
class Ending:
    """How a rank ended."""

    code: int
    out: str
    err: str


class Launcher:
    """Starts ranks on simulated GPUs, as a launcher would."""

    def __init__(self) -> None:
        from energy_plugins.testing.library import FOLDER  # not where ranks are forked: their environment decides

        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "LD_LIBRARY_PATH": str(FOLDER)},  # which is read when a process starts
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, code: str, folder: Path, simulation: Simulation, ranks: int, variables: Mapping[str, str] | None = None
    ) -> list[Ending]:
        """Run ``code`` in ``ranks`` processes to their ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        port = free_port()
        environments = [
            {
                **simulation.environment(),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                **(variables or {}),
            }
            for rank in range(ranks)
        ]
        request = {"code": PRELUDE + code, "folder": str(folder), "environments": environments}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Ending(*ending) for ending in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        """Let the launcher end."""
        self._process.communicate(timeout=10)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def clean(endings: Sequence[Ending]) -> bool:
    """Tell whether all ended well; if not, the failure shows how."""
    return [(ending.code, ending.err) for ending in endings] == [(0, "")] * len(endings)


def _serve() -> None:
    import torch.distributed  # noqa: F401 - the children have it

    import energy_plugins.distributed
    import energy_plugins.measure.run  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as place:
            files = [
                [Path(place, f"{name}-{rank}").open("w+") for name in ("out", "err")]  # noqa: SIM115 - closed below
                for rank in range(len(request["environments"]))
            ]
            pids = [_fork(request, rank, *pair) for rank, pair in enumerate(files)]
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            endings = []
            for code, pair in zip(codes, files, strict=True):
                endings.append([code, *(Path(file.name).read_text() for file in pair)])
                for file in pair:
                    file.close()
        sys.stdout.write(json.dumps(endings) + "\n")
        sys.stdout.flush()


def _fork(request: Mapping[str, Any], rank: int, out: TextIO, err: TextIO) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.environ.clear()
        os.environ.update(request["environments"][rank])
        sys.argv = ["-c", request["folder"]]
        exec(compile(request["code"], "rank", "exec"), {"__name__": "__main__"})  # noqa: S102 - the test's own
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter itself would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
