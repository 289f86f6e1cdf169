"""SIMULATED: how long the training thread is held up while a call of the driver hangs for ever.

    python benchmarks/hung_driver.py        three minutes; exits with 1 if a bar is missed

A loop marks steps, looks at the live figures after every tenth as plugins do that log, and notes how long each took. In
half of the rounds, in random order, a call of the (simulated) driver hangs from the start of the loop on; in some there
is no meter at all, which tells what the machine itself does to such a loop. A delay is what a step took beyond the
loop's median. Steps in which the kernel took the processor away from a thread that was willing to run (an involuntary
context switch) say little of the meter, which can only make a thread wait: they are left out of the bars, and counted,
with the longest delay among them. A step without a meter is almost nothing, so fewer of those are met.
"""

from __future__ import annotations

import gc
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from _common import Bar, Table, bootstrap, finish, print_table, progress
from numpy.typing import NDArray

from energy_plugins import EnergyMeter
from energy_plugins.testing import H200, Constant, Hang, simulated_gpus

CALLS = ("nvmlDeviceGetSamples", "nvmlDeviceGetTotalEnergyConsumption")
ROUNDS = 10
"""Of each kind."""
LOOP_S = 2.0
PAUSE_S = 0.0002
"""Between two steps; a training computes meanwhile, and does not hold Python's lock."""
LOGGED_EVERY = 10
"""Steps; what trainers log at by default is rarer."""
SEED = 2026

Delays = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What one loop saw."""

    kind: str
    delays_s: Delays
    preempted_s: Delays
    """Of steps in which the thread lost the processor."""
    start_s: float
    stop_s: float

    @property
    def longest_s(self) -> float:
        """The longest delay."""
        return float(self.delays_s.max())


def switches() -> int:
    """Return how often this thread has lost the processor against its will."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def looped(meter: EnergyMeter | None) -> tuple[Delays, Delays]:
    """Mark steps for a while; return by how much each was longer than the median: the others, and the preempted."""
    taken_ns: list[int] = []
    preempted_ns: list[int] = []
    end_ns = time.perf_counter_ns() + round(LOOP_S * 1e9)
    number = 0
    gc.disable()
    try:
        while time.perf_counter_ns() < end_ns:
            before = switches()
            began_ns = time.perf_counter_ns()
            with meter.step() if meter is not None else nullcontext():
                pass
            number += 1
            if meter is not None and number % LOGGED_EVERY == 0:
                meter.latest()
                meter.drawn_j()
            step_ns = time.perf_counter_ns() - began_ns
            (taken_ns if switches() == before else preempted_ns).append(step_ns)
            time.sleep(PAUSE_S)
    finally:
        gc.enable()
    usual_ns = np.median(taken_ns)
    delays_s, preempted_s = (np.maximum(np.array(steps) - usual_ns, 0.0) * 1e-9 for steps in (taken_ns, preempted_ns))
    return delays_s, preempted_s


def play(kind: str) -> Round:
    """Return one round: ``kind`` is a call that hangs, "no hang" or "no meter"."""
    with warnings.catch_warnings(), simulated_gpus(Constant(300.0)) as simulation:
        warnings.simplefilter("ignore")
        if kind == "no meter":
            return Round(kind, *looped(None), 0.0, 0.0)
        began_s = time.perf_counter()
        meter = EnergyMeter().start()
        start_s = time.perf_counter() - began_s
        if kind in CALLS:
            simulation.gpus[0].inject(Hang(kind, math.inf))
        delays_s, preempted_s = looped(meter)
        began_s = time.perf_counter()
        meter.stop()
        return Round(kind, delays_s, preempted_s, start_s, time.perf_counter() - began_s)


def hung_start() -> float:
    """Return how long start() takes where the driver does not even open."""
    with warnings.catch_warnings(), simulated_gpus(faults=[Hang("nvmlInit_v2", math.inf)]):
        warnings.simplefilter("ignore")
        began_s = time.perf_counter()
        with EnergyMeter():
            return time.perf_counter() - began_s


def main() -> int:
    """Measure, print, write, and return 1 if a bar is missed."""
    kinds = np.repeat([*CALLS, "no hang", "no meter"], ROUNDS)
    np.random.default_rng(SEED).shuffle(kinds)
    rounds = [play(str(kinds[number])) for number in progress("rounds", len(kinds))]
    start_s = hung_start()

    def longest(*of: str) -> Delays:
        return np.array([one.longest_s for one in rounds if one.kind in of])

    def preempted(*of: str) -> Delays:
        return np.concatenate([one.preempted_s for one in rounds if one.kind in of])

    def median_of(statistic: Callable[[Delays], float], *of: str) -> float:
        return float(np.median([statistic(one.delays_s) for one in rounds if one.kind in of]))

    hung, free, bare = longest(*CALLS), longest("no hang"), longest("no meter")
    stop_s = max(one.stop_s for one in rounds if one.kind in CALLS)
    rows = [("", "steps", "left out", "median round's longest", "longest of all", "99.9 %")]
    for kind in (*CALLS, "no hang", "no meter"):
        steps = sum(len(one.delays_s) for one in rounds if one.kind == kind)
        high_s = median_of(lambda delays_s: float(np.quantile(delays_s, 0.999)), kind)
        cells = (f"{np.median(longest(kind)) * 1e3:.3f} ms", f"{longest(kind).max() * 1e3:.3f} ms")
        left_out = len(preempted(kind))
        rows.append((kind, str(steps), str(left_out), *cells, f"{high_s * 1e3:.3f} ms"))
    print("SIMULATED")
    print_table(rows)
    bars = (
        Bar("longest delay of a step while a call hangs (s)", float(hung.max()), at_most=1e-3, show=".6f"),
        Bar(
            "median round, less that without a hang (s)",
            float(np.median(hung) - np.median(free)),
            at_most=2e-4,
            show=".6f",
        ),
        Bar("stop() while a call hangs (s)", stop_s, at_most=2.0, show=".3f"),
        Bar("start() where the driver does not open (s)", start_s, at_most=2.5, show=".3f"),
    )
    figures = {
        "longest_delay_ms": {
            name: {
                "median": float(np.median(values)) * 1e3,
                "median_interval": bootstrap(
                    [np.array([value]) for value in values], lambda drawn: float(np.median(drawn)) * 1e3
                ),
                "largest": float(values.max()) * 1e3,
            }
            for name, values in (("hang", hung), ("no_hang", free), ("no_meter", bare))
        },
        "rounds": {
            "each": ROUNDS,
            "hung": len(hung),
            "loop_s": LOOP_S,
            "pause_s": PAUSE_S,
            "logged_every": LOGGED_EVERY,
        },
        "steps": {
            "counted": sum(len(one.delays_s) for one in rounds),
            "counted_hung": sum(len(one.delays_s) for one in rounds if one.kind in CALLS),
            "preempted": {
                name: {"count": len(values), "longest_ms": float(values.max(initial=0.0)) * 1e3}
                for name, values in (
                    ("hang", preempted(*CALLS)),
                    ("no_hang", preempted("no hang")),
                    ("no_meter", preempted("no meter")),
                )
            },
        },
        "stop_s": stop_s,
        "start_s": start_s,
    }
    table: Table = {
        "kind": [one.kind for one in rounds],
        "steps": [len(one.delays_s) for one in rounds],
        "preempted": [len(one.preempted_s) for one in rounds],
        "preempted_longest_s": [float(one.preempted_s.max(initial=0.0)) for one in rounds],
        "longest_s": [one.longest_s for one in rounds],
        "stop_s": [one.stop_s for one in rounds],
    }
    return finish("hung_driver", gpus=[H200.name], figures=figures, bars=bars, raw={"rounds": table})


if __name__ == "__main__":
    sys.exit(main())
