"""Trainings on all GPUs of a machine by energy-launch: the ranks' reports against the counters read by another process.

The script that is launched, _ranks_training.py, knows nothing of energy-plugins. It trains by data parallelism with a
loop of its own under accelerate, with a transformers Trainer and with a Lightning Trainer, one after the other.
Meanwhile this process, which has no CUDA context, reads each GPU's energy counter by nvidia-ml-py. What a rank reports
of its GPU is compared with what that GPU's counter rose by in the rank's window.

    python benchmarks/h200_ranks.py [--seconds 40] [--dry]

``--dry`` tries the whole path on the CPU with two simulated GPUs, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pynvml
from _common import RESULTS, Bar, finish, gpu_names, print_table, say
from numpy.typing import NDArray

from energy_plugins import Report, visible_gpus
from energy_plugins.testing import Simulation, simulated_gpus

_SCRIPT = Path(__file__).with_name("_ranks_training.py")
_WAYS = ("accelerate", "transformers", "lightning")
_ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: {ranks}
mixed_precision: '{precision}'
"""
_READ_EVERY_S = 0.25
_PATIENCE_S = 100.0
"""For a training to start and to end."""


class Counters:
    """Reads the energy counter of each GPU, with the wall clock beside it."""

    def __init__(self, uuids: list[str]) -> None:
        pynvml.nvmlInit()
        self._handles = {uuid: pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
        self._rows: dict[str, list[tuple[float, float]]] = {uuid: [] for uuid in uuids}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(_READ_EVERY_S):
            for uuid, handle in self._handles.items():
                before_s = time.time()
                energy_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3
                self._rows[uuid].append(((before_s + time.time()) / 2, energy_j))

    def table(self, uuid: str) -> NDArray[np.float64]:
        """Return rows of wall time (s) and joules."""
        return np.array(self._rows[uuid])

    def rise_j(self, uuid: str, start_s: float, end_s: float) -> float:
        """Return what a counter rose by between two times, on a line between its readings."""
        times, joules = self.table(uuid).T
        if not times[0] <= start_s < end_s <= times[-1]:
            raise SystemExit(f"the counter of {uuid} was read for {times[0]}-{times[-1]}, not for {start_s}-{end_s}")
        first, last = np.interp([start_s, end_s], times, joules)
        return float(last - first)


def window(report: Report) -> tuple[float, float]:
    """Return when a run started and ended, by the wall clock (s)."""
    start_s = datetime.fromisoformat(report.started).timestamp()
    return start_s, start_s + report.duration_s


def train(way: str, folder: Path, options: argparse.Namespace, environment: Mapping[str, str]) -> list[Report]:
    """Have a training launched, and return the report of each rank."""
    ranks = options.ranks
    folder.joinpath("accelerate.yaml").write_text(
        _ACCELERATE.format(ranks=ranks, precision="no" if options.dry else "bf16")
    )
    command = [
        sys.executable, "-m", "energy_plugins.cli.launch", "--config_file", str(folder / "accelerate.yaml"),
        "--energy_report_folder", str(folder / way), "--energy_measure_phases_every_n_steps", "10",
        str(_SCRIPT), way, str(folder / f"out-{way}"), str(options.seconds),
    ]  # fmt: skip
    if options.dry:
        environment = {**environment, "ACCELERATE_USE_CPU": "true"}
    with (folder / f"{way}.log").open("w+", encoding="utf-8") as log:
        launched = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = launched.wait(options.seconds + _PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGKILL)  # the ranks, too
            code = launched.wait()
        if code:
            log.seek(0)
            raise SystemExit(f"{way} ended with {code}:\n{log.read()[-6000:]}")
    (run,) = (folder / way).iterdir()
    return [Report.load(run if rank == 0 else run / f"rank-{rank}") for rank in range(ranks)]


def compare(reports: list[Report], counters: Counters) -> dict[str, Any]:
    """Hold the ranks' joules against the counters."""
    rows: list[dict[str, Any]] = []
    for rank, report in enumerate(reports):
        ((uuid, energy_j),) = report.gpu_j.items()
        rise_j = counters.rise_j(uuid, *window(report))
        rows.append({
            "rank": rank, "uuid": uuid, "energy_j": energy_j, "error_bound_j": report.error_bound_j,
            "counter_j": rise_j, "duration_s": report.duration_s, "steps": report.steps.rows,
            "coverage": report.coverage, "warnings": list(report.warnings),
            "ranks_core_share": report.observer.ranks_s / report.duration_s,
        })  # fmt: skip
    together = reports[0].ranks
    total_j, counter_j = sum(row["energy_j"] for row in rows), sum(row["counter_j"] for row in rows)
    return {
        "ranks": rows,
        "total_j": total_j,
        "merged_j": together.total_j if together is not None else None,
        "merged_gpus": together.gpus if together is not None else None,
        "peer_wait_j": together.peer_wait_j if together is not None else None,
        "stragglers": list(together.stragglers) if together is not None else None,
        "counter_j": counter_j,
        "off": total_j / counter_j - 1.0,
    }


def bars_of(way: str, found: Mapping[str, Any], ranks: int) -> list[Bar]:
    """Return what must be reached."""
    merged_j = found["merged_j"] if found["merged_j"] is not None else float("nan")
    steps = [row["steps"] for row in found["ranks"]]
    different = len({row["uuid"] for row in found["ranks"]})
    return [
        Bar(f"{way}: sum of the ranks' reports against the counters", abs(found["off"]), at_most=0.01),
        Bar(
            f"{way}: the merged total against that sum",
            abs(merged_j / found["total_j"] - 1.0),
            at_most=1e-6,
            show=".1e",
        ),
        Bar(f"{way}: GPUs that were measured, each by one rank", different, at_least=ranks, show=".0f"),
        Bar(f"{way}: steps of the rank with the fewest", min(steps), at_least=max(*steps, 1), show=".0f"),
    ]


def main() -> int:
    """Run everything, print it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="on the CPU and simulated GPUs; writes nothing")
    options = parser.parse_args()
    gpus: AbstractContextManager[Simulation | None] = (
        simulated_gpus(count=options.ranks) if options.dry else nullcontext()
    )
    with gpus as simulation, tempfile.TemporaryDirectory() as scratch:
        uuids = [gpu.uuid for gpu in visible_gpus()]
        if len(uuids) < options.ranks:
            sys.stdout.write(f"h200_ranks: skipped, it needs {options.ranks} GPUs and there are {len(uuids)}\n")
            return 0
        return _measure(Path(scratch), options, uuids[: options.ranks], simulation)


def _measure(scratch: Path, options: argparse.Namespace, uuids: list[str], simulation: Simulation | None) -> int:
    environment = {} if simulation is None else simulation.environment()
    with Counters(uuids) as counters:
        reports = {}
        for way in _WAYS:
            reports[way] = train(way, scratch, options, environment)
            say(f"{way}: {reports[way][0].steps.rows} steps in {reports[way][0].duration_s:.0f} s")
        time.sleep(2 * _READ_EVERY_S)
    found = {way: compare(of_ranks, counters) for way, of_ranks in reports.items()}
    rows = [("", "rank", "report", "bound", "counter", "off")]
    rows += [
        (way, str(row["rank"]), f"{row['energy_j']:.1f} J", f"{row['error_bound_j']:.1f} J",
         f"{row['counter_j']:.1f} J", f"{row['energy_j'] / row['counter_j'] - 1:+.2%}")
        for way in _WAYS for row in found[way]["ranks"]
    ]  # fmt: skip
    print_table(rows)
    bars = [bar for way in _WAYS for bar in bars_of(way, found[way], options.ranks)]
    if options.dry:
        say("\n".join(map(str, bars)))
        say("dry: nothing is written, and these figures mean nothing")
        return 0
    (RESULTS / "h200_ranks.txt").write_text(str(reports["accelerate"][0]) + "\n", encoding="utf-8")
    raw = {
        f"counter_{number}": {"wall_s": table[:, 0] - table[0, 0], "energy_j": table[:, 1] - table[0, 1]}
        for number, table in enumerate(counters.table(uuid) for uuid in uuids)
    }
    return finish("h200_ranks", gpus=gpu_names(), figures={"trainings": found}, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
