"""SIMULATED: what a power limit costs the training thread in a step in which nothing changes.

    python benchmarks/limit_step.py         some seconds; exits with 1 if a bar is missed

A limit is fixed, or searched for: what is timed is `Monitor.after_step`, which every plugin calls once a step, with the
limiter between two looks. The GPU is simulated; none is asked anything there.
"""

from __future__ import annotations

import sys
import timeit
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _common import Bar, finish, say

from energy_plugins.config import EnergyConfig, PowerLimitConfig, ReportConfig
from energy_plugins.measure.forecast import Limits, Position
from energy_plugins.measure.rank_part import Rank
from energy_plugins.testing import H200, Constant, simulated_gpus
from energy_plugins.training.limits.timing import Timing
from energy_plugins.training.monitor import Monitor

LOOPS = 100
STEPS = 10_000


def loops(limit: PowerLimitConfig) -> list[float]:
    """Return what a step took in each of many loops (s), while the limiter waits for a step that never comes."""
    waits = Timing(first_steps=2 * LOOPS * STEPS)
    with TemporaryDirectory() as folder, simulated_gpus(Constant(300)):
        monitor = Monitor(EnergyConfig(report=ReportConfig(folder=folder, table=False), power_limit=limit))
        monitor.timing = waits
        monitor.start(
            who=Rank(),
            parent=Path(folder),
            devices=None,
            facts={},
            outlook=lambda: (Limits(), Position(epochs=0, batches=0, optimizer_steps=0)),
        )
        monitor.limit_power(Rank(), lambda own: own, lambda: "")
        try:
            return [seconds / STEPS for seconds in timeit.repeat(monitor.after_step, number=STEPS, repeat=LOOPS)]
        finally:
            monitor.finish()


def main() -> int:
    """Measure, print, write, and return 1 if a bar is missed."""
    took_s = {
        "fixed": np.array(loops(PowerLimitConfig(enabled=True, fixed=450))),
        "searched": np.array(loops(PowerLimitConfig(enabled=True))),
    }
    say("SIMULATED")
    for name, each_s in took_s.items():
        slowest_us = float(each_s.max()) * 1e6
        say(f"{name}: {np.median(each_s) * 1e6:.3f} us a step, {slowest_us:.3f} us in the slowest of {LOOPS} loops")
    bars = [
        Bar(f"a step, limit {name}, slowest of {LOOPS} loops (us)", float(each_s.max()) * 1e6, at_most=20.0, show=".2f")
        for name, each_s in took_s.items()
    ]
    figures = {
        name: {"median_us": float(np.median(each_s)) * 1e6, "slowest_loop_us": float(each_s.max()) * 1e6}
        for name, each_s in took_s.items()
    }
    raw = {"loops": {f"{name}_s": each_s for name, each_s in took_s.items()}}
    return finish("limit_step", gpus=[H200.name], figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
