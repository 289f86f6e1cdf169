"""SIMULATED: how soon the limit that was found is back after a trainer is killed, and what a change costs.

    python benchmarks/limit_restore.py         two minutes; exits with 1 if a bar is missed

The GPU is simulated, processes and signals are real. Each of 200 trainers limits the GPU, starts two workers of a data
loader that sleep ten seconds an item, and is killed with SIGKILL; every eighth one with its whole process group. The
limit is read from this process every millisecond until it is what was found. What a real driver takes to set a limit
comes on top: limits of real GPUs are not touched here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np
import pynvml
from _common import Bar, Table, finish, progress, say
from torch.utils.data import DataLoader, Dataset

from energy_plugins import visible_gpus
from energy_plugins.control import PowerLimit
from energy_plugins.testing import H200, Constant, simulated_gpus

TRIALS = 200
GROUP_EVERY = 8
WORKERS = 2
FOUND_W = 650.0
SET_W = 450.0
GIVE_UP_S = 20.0
CHANGES = 200


class Sleepy(Dataset[int]):
    """Items of ten seconds each."""

    def __len__(self) -> int:
        """Enough for all workers."""
        return 100

    def __getitem__(self, index: int) -> int:
        """Sleep."""
        time.sleep(10)
        return index


def train(ready: Connection) -> None:
    """Limit the GPU, start workers, tell that it is so, and wait to be killed."""
    os.setpgid(0, 0)
    with PowerLimit(visible_gpus()[0]).at(watts=SET_W):
        workers = iter(DataLoader(Sleepy(), num_workers=WORKERS))
        ready.send([worker.pid for worker in workers._workers])  # type: ignore[attr-defined]  # noqa: SLF001
        time.sleep(600)


def alive(pid: int) -> bool:
    """Return whether there is such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def kill_one(gpu: object, *, group: bool) -> tuple[float, int]:
    """Return how long after its death a trainer's limit was undone (s), and how many of its workers lived then."""
    fork = multiprocessing.get_context("fork")
    hears, tells = fork.Pipe(duplex=False)
    trainer = fork.Process(target=train, args=(tells,))
    trainer.start()
    assert trainer.pid is not None
    workers: Sequence[int] = hears.recv()
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == SET_W * 1e3
    killed_s = time.monotonic()
    (os.killpg if group else os.kill)(trainer.pid, signal.SIGKILL)
    while pynvml.nvmlDeviceGetPowerManagementLimit(gpu) != FOUND_W * 1e3:
        assert time.monotonic() - killed_s < GIVE_UP_S, "the limit was never put back"
        time.sleep(0.001)
    took_s = time.monotonic() - killed_s
    living = sum(map(alive, workers))
    with suppress(ProcessLookupError):
        os.killpg(trainer.pid, signal.SIGKILL)
    trainer.join()
    trainer.close()
    return took_s, living


def change_costs() -> list[float]:
    """Return what each of some changes of the limit took (s)."""
    with PowerLimit(visible_gpus()[0]).at(watts=SET_W) as limit:
        changes = []
        for change in range(CHANGES):
            began_s = time.perf_counter()
            limit.set(SET_W + change % 2 * 50)
            changes.append(time.perf_counter() - began_s)
    return changes


def main() -> int:
    """Measure, print, write, and return 1 if a bar is missed."""
    with simulated_gpus(Constant(300)):
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceSetPowerManagementLimit(gpu, round(FOUND_W * 1e3))
        groups = [trial % GROUP_EVERY == 0 for trial in range(TRIALS)]
        trials = [kill_one(gpu, group=groups[trial]) for trial in progress("trainers killed", TRIALS)]
        changes = change_costs()
        assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == FOUND_W * 1e3
    took_s = np.array([seconds for seconds, _ in trials])
    living = np.array([living for _, living in trials])
    p50_s, p99_s = np.percentile(took_s, (50, 99)).tolist()
    say("SIMULATED")
    say(f"limit back after death: p50 {p50_s * 1e3:.1f} ms, p99 {p99_s * 1e3:.1f} ms, most {took_s.max() * 1e3:.1f} ms")
    say(f"a change {np.median(changes) * 1e3:.1f} ms")
    bars = (
        Bar("SIGKILL to limit restored, p99 of 200 (s)", p99_s, at_most=2.0, show=".3f"),
        Bar(
            "trials in which workers lived on, of those killed alone",
            float(np.mean(living[~np.array(groups)] > 0)),
            1.0,
        ),
    )
    figures = {
        "restore": {
            "trials": TRIALS,
            "of_whole_groups": sum(groups),
            "workers": WORKERS,
            "p50_ms": p50_s * 1e3,
            "p99_ms": p99_s * 1e3,
            "max_ms": float(took_s.max()) * 1e3,
        },
        "change": {"median_ms": float(np.median(changes)) * 1e3, "p99_ms": float(np.percentile(changes, 99)) * 1e3},
    }
    raw: dict[str, Table] = {"trials": {"seconds": took_s, "group": groups, "workers_alive": living}}
    return finish("limit_restore", gpus=[H200.name], figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
