"""How right the joules are on a real GPU.

Two kinds of steps told apart, totals against the counter, the sensor's response.

Two kinds of step (10-40 ms each, different power) run interleaved at random in one run; the joules of each kind are
compared with runs of that kind alone, whose power comes from the energy counter read by another process between two of
its refreshes.

    python benchmarks/h200_accuracy.py [--quick]
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import Bar, finish, gpu_names, say

from energy_plugins import EnergyMeter
from energy_plugins.measure.response import Response, Segments, occupancy

Work = Callable[[], None]

WATCHER = """
import sys, time, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
for _ in sys.stdin:
    last, last_ns = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.monotonic_ns()
    while True:
        began_ns = time.monotonic_ns()
        now = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        if now != last:
            print((last_ns + time.monotonic_ns()) // 2, now / 1e3, flush=True)
            break
        last_ns = began_ns
"""
"""Another process: for each line it is sent, the next refresh of the counter, as time (ns) and joules."""


class Watcher:
    """The other process that reads the counter."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WATCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self) -> None:
        """Ask for the next refresh."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def answer(self) -> tuple[int, float]:
        """Wait for it."""
        assert self._process.stdout is not None
        t_ns, joules = self._process.stdout.readline().split()
        return int(t_ns), float(joules)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def kinds() -> dict[str, tuple[Work, float]]:
    """Return two kinds of work below the power limit, and the milliseconds that one piece takes."""
    source = torch.randn(1 << 26, device="cuda")
    target = torch.empty_like(source)
    small = torch.randn(1536, 1536, device="cuda")
    product = torch.empty_like(small)

    def copy() -> None:
        target.copy_(source)

    def matmul() -> None:
        torch.mm(small, small, out=product)

    return {work.__name__: (work, _milliseconds(work)) for work in (copy, matmul)}


def _milliseconds(work: Work, pieces: int = 300) -> float:
    for _ in range(50):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(pieces):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end) / pieces)


class Pacer:
    """Keeps the host a few steps ahead of the GPU, as a training loop with a logging step does."""

    def __init__(self, ahead: int = 4) -> None:
        self._ahead = ahead
        self._events: list[torch.cuda.Event] = []

    def step(self) -> None:
        """Wait for the step some steps back."""
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._events.append(event)
        if len(self._events) > self._ahead:
            self._events.pop(0).synchronize()


def alone(work: Work, ms: float, seconds: float, watcher: Watcher, rng: random.Random) -> float:
    """Return the power (W) of one kind of step alone, by the other process's counter readings."""
    pacer = Pacer()
    marks: list[tuple[int, float]] = []
    for length, asked in ((1.5, True), (seconds, True), (0.5, False)):
        end = time.monotonic() + length
        while time.monotonic() < end:
            for _ in range(max(1, round(rng.uniform(10, 40) / ms))):
                work()
            pacer.step()
        if asked:
            watcher.ask()
            stop = time.monotonic() + 0.4
            while time.monotonic() < stop:
                for _ in range(max(1, round(20 / ms))):
                    work()
                pacer.step()
            marks.append(watcher.answer())
    torch.cuda.synchronize()
    (t0, e0), (t1, e1) = marks
    return (e1 - e0) / ((t1 - t0) * 1e-9)


def mixed(works: dict[str, tuple[Work, float]], seconds: float, watcher: Watcher, seed: int) -> dict[str, Any]:
    """Run both kinds interleaved at random.

    Return joules per GPU second of each kind, and the total against the counter.
    """
    rng = random.Random(seed)
    pacer = Pacer()
    for _ in range(100):
        for work, _ in works.values():
            work()
    meter = EnergyMeter("two kinds")
    meter.start()
    watcher.ask()
    watched: list[tuple[int, float]] = []
    end = time.monotonic() + seconds
    asked = False
    while time.monotonic() < end:
        kind = rng.choice(list(works))
        work, ms = works[kind]
        with meter.span(kind):
            for _ in range(max(1, round(rng.uniform(10, 40) / ms))):
                work()
        pacer.step()
        if not asked and time.monotonic() > end - 0.5:
            watched.append(watcher.answer())
            watcher.ask()
            asked = True
    watched.append(watcher.answer())
    torch.cuda.synchronize()
    start_ns = meter.run.start_ns if meter.run else 0
    meter.stop()
    report = meter.report()
    spans = report.spans
    names = np.array(report.span_kinds)[spans["kind"]]
    result: dict[str, Any] = {}
    for kind in works:
        rows = names == kind
        seconds_of = spans["end_s"][rows] - spans["start_s"][rows]
        energy = spans["energy_j"][rows]
        result[kind] = {
            "spans": int(rows.sum()),
            "power_w": float(energy.sum() / seconds_of.sum()),
            "median_span_ms": float(np.median(seconds_of) * 1e3),
            "median_bound": float(np.median(spans["error_bound_j"][rows] / energy)),
        }
    (t0, e0), (t1, e1) = watched
    power = next(iter(report.power.values()))
    result["total_j"], result["duration_s"] = report.total_j, report.duration_s
    result["counter"] = {"energy_j": e1 - e0, "seconds": (t1 - t0) * 1e-9}
    result["power_w_between_refreshes"] = (e1 - e0) / ((t1 - t0) * 1e-9)
    result["warnings"] = list(report.warnings)
    result["samples"] = {"t_s": power["t_s"].tolist(), "power_w": power["power_w"].tolist()}
    result["span_rows"] = {name: spans[name].tolist() for name in ("kind", "start_s", "end_s", "energy_j")}
    result["start_ns"] = start_ns
    return result


def totals(watcher: Watcher, windows: int, works: dict[str, tuple[Work, float]]) -> list[dict[str, Any]]:
    """Return meter totals of short windows under an uneven load against the counter.

    Both readings are taken where the counter refreshes, outside the window.
    """
    rng = random.Random(3)
    rows = []
    for _ in range(windows):
        seconds = rng.uniform(2, 5)
        pacer = Pacer()
        kind = rng.choice([*works, "both", "idle"])
        watcher.ask()
        first = watcher.answer()
        meter = EnergyMeter("window")
        meter.start()
        opened = time.monotonic_ns()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if kind == "idle":
                time.sleep(0.02)
                continue
            work, ms = works[kind if kind in works else rng.choice(list(works))]
            for _ in range(max(1, round(rng.uniform(5, 60) / ms))):
                work()
            pacer.step()
            if kind == "both" and rng.random() < 0.3:
                torch.cuda.synchronize()
                time.sleep(rng.uniform(0, 0.05))
        torch.cuda.synchronize()
        closed = time.monotonic_ns()
        meter.stop()
        watcher.ask()
        last = watcher.answer()
        report = meter.report()
        assert report.total_j is not None
        assert report.error_bound_j is not None
        rows.append(
            {
                "kind": kind,
                "seconds": (closed - opened) * 1e-9,
                "total_j": report.total_j,
                "error_bound_j": report.error_bound_j,
                "counter_j": last[1] - first[1],
                "lead_s": (opened - first[0]) * 1e-9,
                "tail_s": (last[0] - closed) * 1e-9,
            }
        )
    return rows


def response(seconds: float) -> dict[str, Any]:
    """Return the dead time and lag of the sample buffer, fitted to a random on/off load of known times."""
    rng = random.Random(1)
    matrix = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    with EnergyMeter("response") as meter:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with meter.span("on"):
                stop = time.monotonic() + rng.uniform(0.003, 0.06)
                while time.monotonic() < stop:
                    for _ in range(4):
                        matrix @ matrix
                    torch.cuda.synchronize()
            with meter.span("off"):
                time.sleep(rng.uniform(0.003, 0.06))
    report = meter.report()
    spans, power = report.spans, next(iter(report.power.values()))
    names = np.array(report.span_kinds)[spans["kind"]]
    on = names == "on"
    edges = np.sort(np.concatenate([[-1.0], spans["start_s"][on], spans["end_s"][on], [report.duration_s + 1]]))
    segments = Segments((edges * 1e9).astype(np.int64), np.arange(len(edges) - 1) % 2)
    t_ns, power_w = (power["t_s"] * 1e9).astype(np.int64), power["power_w"]
    inside = (t_ns > 5e8) & (t_ns < (report.duration_s - 0.3) * 1e9)
    fits = []
    for dead_ms in range(9):
        for lag_ms in range(3, 22):
            shares = occupancy(Response(dead_ms * 1e-3, lag_ms * 1e-3), t_ns[inside], segments, 2)
            level, *_ = np.linalg.lstsq(shares, power_w[inside], rcond=None)
            misfit = float(np.std(power_w[inside] - shares @ level))
            fits.append((misfit, dead_ms, lag_ms, level.tolist()))
    fits.sort()
    return {
        "best": fits[:6],
        "samples": int(inside.sum()),
        "spread_w": float(np.std(power_w[inside])),
        "intervals_ms": np.percentile(np.diff(power["t_s"]) * 1e3, [1, 10, 50, 90, 99]).tolist(),
    }


def main() -> int:
    """Run everything, write the result, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("h200_accuracy: skipped, it needs a real GPU and CUDA\n")
        return 0
    brief = 0.25 if options.quick else 1.0
    watcher = Watcher()
    works = kinds()
    say(f"kinds: { {name: round(ms, 3) for name, (_, ms) in works.items()} } ms a piece")
    rng = random.Random(0)
    apart: dict[str, list[float]] = {name: [] for name in works}
    order = list(works)
    result: dict[str, Any] = {}
    for name in order:
        apart[name].append(alone(*works[name], 12 * brief, watcher, rng))
    result["mixed"] = mixed(works, 60 * brief, watcher, seed=2)
    for name in reversed(order):
        apart[name].append(alone(*works[name], 12 * brief, watcher, rng))
    result["alone_w"] = apart
    result["kinds"] = {}
    bars: list[Bar] = []
    for name in order:
        reference = float(np.mean(apart[name]))
        error = result["mixed"][name]["power_w"] / reference - 1
        result["kinds"][name] = {"alone_w": reference, "mixed_w": result["mixed"][name]["power_w"], "error": error}
        bars.append(Bar(f"joules of {name} steps, mixed against alone", error, at_least=-0.02, at_most=0.02))
        say(f"{name}: alone {apart[name]} W, mixed {result['mixed'][name]['power_w']:.1f} W: {error:+.2%}")
    whole = result["mixed"]
    mean_w = whole["total_j"] / whole["duration_s"]
    say(
        f"mixed total: {whole['total_j']:.0f} J in {whole['duration_s']:.2f} s = {mean_w:.2f} W; "
        f"counter {whole['power_w_between_refreshes']:.2f} W"
    )
    result["response"] = response(30 * brief)
    say(f"response: {result['response']['best'][:3]}")
    result["totals"] = totals(watcher, round(16 * brief), works)
    # Between the counter's refreshes and the window's ends the GPU idles.
    idle_w = float(np.mean([row["total_j"] / row["seconds"] for row in result["totals"] if row["kind"] == "idle"]))
    for row in result["totals"]:
        expected = row["counter_j"] - (row["lead_s"] + row["tail_s"]) * idle_w
        row["expected_j"] = expected
        say(
            f"window {row['kind']} {row['seconds']:.2f} s: {row['total_j']:.1f} +- {row['error_bound_j']:.1f} "
            f"J, expected about {expected:.1f} J ({row['total_j'] / expected - 1:+.2%})"
        )
    watcher.close()
    inside = float(
        np.mean([abs(row["total_j"] - row["expected_j"]) <= row["error_bound_j"] for row in result["totals"]])
    )
    worst = max(abs(row["total_j"] / row["expected_j"] - 1) for row in result["totals"])
    result["totals_summary"] = {"windows": len(result["totals"]), "within_bound": inside, "worst_error": worst}
    bars.append(Bar("worst total of a window of 2-5 s against the counter", worst, at_most=0.02))
    raw = {"mixed_samples": whole.pop("samples"), "mixed_spans": whole.pop("span_rows")}
    return finish("h200_accuracy", gpus=gpu_names(), figures=result, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
