"""Whether memory stays flat: the process's peak, and what it holds, along a million marked steps on a real GPU.

The steps are paced to about 8,000 a second, which is more than trainings make. Unpaced ones fill the ring of marks
quicker than it is drained, and then drops are measured instead of memory.

    python benchmarks/h200_memory.py [--quick]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _common import Bar, Table, finish, gpu_names, say

from energy_plugins import EnergyMeter

_STEPS = 1_000_000
_SECONDS = 120.0
_PACED_EVERY = 100
_LOOKS = 20
_PAGE_MIB = resource.getpagesize() / 2**20


def resident_mib() -> float:
    """Return how much memory the process holds now (MiB); its peak never falls."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_MIB


def memory(steps: int, seconds: float) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Run ``steps`` marked steps in about ``seconds``; return what the run was, and its memory on the way."""
    tiny = torch.zeros(16, device="cuda")
    peaks: dict[str, list[float]] = {"step": [], "mib": [], "resident_mib": []}
    with EnergyMeter("memory") as meter:
        start = time.monotonic()
        for row in range(steps):
            with meter.step(samples=1):
                tiny.add_(1)
            if row % _PACED_EVERY == 0:
                torch.cuda.synchronize()
                time.sleep(max(start + row * seconds / steps - time.monotonic(), 0.0))
            if row % (steps // _LOOKS) == 0:
                peaks["step"].append(row)
                peaks["mib"].append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
                peaks["resident_mib"].append(resident_mib())
        took_s = time.monotonic() - start
        torch.cuda.synchronize()
        time.sleep(0.3)
    report = meter.report()
    run = {
        "steps": report.work.steps,
        "seconds": took_s,
        "dropped": report.observer.dropped,
        "events": report.observer.events,
        "rows": report.steps.rows,
        "warnings": list(report.warnings),
    }
    return run, peaks


def growth(run: dict[str, Any], peaks: dict[str, list[float]]) -> tuple[dict[str, Any], list[Bar]]:
    """Return the figures and the bar of a run: how much its peak grew in either half (MiB)."""
    mib = peaks["mib"]
    first, second = mib[len(mib) // 2] - mib[0], mib[-1] - mib[len(mib) // 2]
    what = "growth of peak memory over the second half of 1,000,000 steps, MiB"
    figures = {"memory": {**run, "grown_first_half_mib": first, "grown_second_half_mib": second, "peak_mib": mib[-1]}}
    return figures, [Bar(what, second, at_most=16, show=".1f")]


def main() -> int:
    """Run, write the result, print the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the steps")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("h200_memory: skipped, it needs a real GPU and CUDA\n")
        return 0
    brief = 0.25 if options.quick else 1.0
    run, peaks = memory(round(_STEPS * brief), _SECONDS * brief)
    say(f"memory: {run}")
    figures, bars = growth(run, peaks)
    raw: dict[str, Table] = {"peaks": peaks}
    return finish("h200_memory", gpus=gpu_names(), figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
