"""SIMULATED: what one meter costs at its limits: 64 GPUs, and ten million spans.

    python benchmarks/limits.py         three minutes; exits with 1 if a bar is missed

Both run in virtual time. The cost of a driver call is the simulator's, as recorded on an H200; the CPU time of the
sampling thread beside it is real, and so are the memory and the time that a report of ten million spans takes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _common import Bar, finish, print_table, progress

from energy_plugins import EnergyMeter, Report
from energy_plugins.testing import H200, Constant, simulated_gpus

GPUS = (1, 8, 64)
RUN_S = 60.0
SPANS = 10_000_000
SPAN_S = 0.001
LOOKS = 10
POWER_W = 300.0


def many_gpus(count: int) -> dict[str, float]:
    """Return what a minute with ``count`` GPUs took and how exact it was."""
    with simulated_gpus([Constant(POWER_W)] * count, virtual=True, start_s=10) as simulation:
        clock, began_s = simulation.clock, time.perf_counter()
        meter = EnergyMeter().start()
        start_s, start_ns = time.perf_counter() - began_s, clock.now_ns()
        while clock.now_ns() < start_ns + RUN_S * 1e9:
            with meter.step():
                simulation.advance(0.1)
        began_s = time.perf_counter()
        meter.stop()
        stop_s = time.perf_counter() - began_s
    report = meter.report()
    assert report.total_j is not None
    assert report.error_bound_j is not None
    true_j = count * POWER_W * report.duration_s
    return {
        "gpus": count,
        "start_s": start_s,
        "stop_s": stop_s,
        "driver_share": report.observer.driver_call_s / report.duration_s,
        "sampler_share": report.observer.thread_cpu_s / report.duration_s,
        "collector_share": report.observer.collect_s / report.duration_s,
        "error": abs(report.total_j - true_j) / true_j,
        "bound": report.error_bound_j / true_j,
        "coverage": report.coverage,
    }


def resident_bytes() -> int:
    """Return how much memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def many_spans(folder: Path) -> Iterator[int]:
    """Mark ten million spans; yield how much memory the process holds, ten times."""
    with (
        simulated_gpus(Constant(POWER_W), virtual=True, start_s=10) as simulation,
        EnergyMeter(folder=folder) as meter,
    ):
        for _ in progress("million spans", LOOKS):
            for _ in range(SPANS // LOOKS):
                with meter.span("forward"):
                    simulation.advance(SPAN_S)
            yield resident_bytes()


def main() -> int:
    """Measure, print, write, and return 1 if a bar is missed."""
    minutes = [many_gpus(count) for count in GPUS]
    with tempfile.TemporaryDirectory() as place:
        folder, began_s = Path(place, "run"), time.perf_counter()
        sizes = list(many_spans(folder))
        lasted_s = time.perf_counter() - began_s
        began_s, before = time.perf_counter(), resident_bytes()
        report = Report.load(folder)
        energy_j = report.spans["energy_j"]
        load_s, mapped = time.perf_counter() - began_s, isinstance(energy_j.base, np.memmap)
        grown = resident_bytes() - before
        rows, sum_j = report.spans.rows, float(energy_j[report.spans["kind"] > 1].sum())
        disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print("SIMULATED")
    heads = ("GPUs", "start", "stop", "in the driver", "sampler's own", "collector", "error", "bound")
    shares = ("driver_share", "sampler_share", "collector_share", "error", "bound")
    print_table(
        [
            heads,
            *(
                (
                    f"{one['gpus']:.0f}",
                    *(f"{one[key] * 1e3:.0f} ms" for key in ("start_s", "stop_s")),
                    *(f"{one[key]:.3%}" for key in shares),
                )
                for one in minutes
            ),
        ]
    )
    half = sizes[LOOKS // 2 :]
    most = minutes[-1]
    bars = (
        Bar("64 GPUs: error of the total", most["error"], at_most=2e-3),
        Bar("64 GPUs: coverage", most["coverage"], at_least=0.999),
        Bar("64 GPUs: start() (s)", most["start_s"], at_most=1.0, show=".3f"),
        Bar("spans kept", rows - 1, at_least=SPANS, at_most=SPANS, show=".0f"),
        Bar("growth of memory over the second half (bytes)", float(max(half) - half[0]), at_most=4e6, show=".0f"),
        Bar("loading the report (s)", load_s, at_most=0.2, show=".4f"),
        Bar("memory that loading takes (bytes)", float(grown), at_most=8e6, show=".0f"),
        Bar("columns are mapped", float(mapped), at_least=1.0, show=".0f"),
        Bar("joules of all spans over power x time", sum_j / (SPANS * SPAN_S * POWER_W), at_least=0.95, at_most=1.05),
    )
    figures = {
        "gpus": {f"{one['gpus']:.0f}": one for one in minutes},
        "spans": {
            "spans": SPANS,
            "lasted_s": lasted_s,
            "bytes_on_disk": disk,
            "resident_bytes": sizes,
            "grown_mib": (max(half) - half[0]) / 2**20,
            "load_s": load_s,
        },
    }
    raw = {"resident": {"spans": [SPANS // LOOKS * (look + 1) for look in range(LOOKS)], "bytes": sizes}}
    return finish("limits", gpus=[H200.name], figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
