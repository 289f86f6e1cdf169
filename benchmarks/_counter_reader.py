"""One GPU's energy counter, read by a process of its own that knows nothing of energy-plugins.

    python benchmarks/_counter_reader.py UUID SECONDS

reads the counter every SECONDS through nvidia-ml-py. For each line that it is sent it answers with a line of JSON, all
its readings so far: [wall time in s, joules]. It ends with its input.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import pynvml
from numpy.typing import NDArray


class CounterReader:
    """That process, to be used with ``with``; all that is heard of it comes through its pipes."""

    def __init__(self, uuid: str, every_s: float, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), uuid, str(every_s)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._patience_s = 4 * every_s
        self.readings()  # it has begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # its input may not end: forked DataLoader workers that still run hold the pipe, too
        self._process.communicate()

    def readings(self) -> NDArray[np.float64]:
        """Return the readings at which the counter had moved on: rows of wall time (s) and joules."""
        time.sleep(self._patience_s)  # what happened until now has been counted and read then
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("readings\n")
        process.stdin.flush()
        rows = np.array(json.loads(process.stdout.readline()))
        return np.asarray(rows[np.flatnonzero(np.diff(rows[:, 1], prepend=-1.0))], dtype=np.float64)


def rise_j(readings: NDArray[np.float64], start_s: float, end_s: float) -> float:
    """Return what a counter rose by between two wall times (s), on a line between its readings.

    Raises:
        ValueError: it was not read for so long.
    """
    times, joules = readings.T
    if not times[0] <= start_s < end_s <= times[-1]:
        raise ValueError(f"the counter was read from {times[0]} to {times[-1]}, and not from {start_s} to {end_s}")
    first, last = np.interp([start_s, end_s], times, joules)
    return float(last - first)


def main() -> None:
    """Read until the input ends."""
    uuid, every_s = sys.argv[1], float(sys.argv[2])
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    rows: list[tuple[float, float]] = []
    while True:
        before_s = time.time()
        energy_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3
        rows.append(((before_s + time.time()) / 2, energy_j))
        asked, _, _ = select.select([sys.stdin], [], [], every_s)
        if asked:
            if not sys.stdin.readline():
                return
            print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
