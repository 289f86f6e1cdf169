"""Whether the sensor plans agree on a real GPU, and what its polled readings are.

One run under four meters at once, each with another power sensor: the driver's sample buffer, polled instant power,
polled average power, and the energy counter alone. The same steps are marked in all of them; the joules of the last
three must agree with those of the first within both bounds: step by step, all of each kind of work together, and the
whole run, which is marked too, because the windows of four meters do not open and close at one instant.

Beside it: how often the driver's polled readings come to a new value, and of what window they are the mean, found by
least squares against the sample buffer of the same time.

    python benchmarks/h200_sensors.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import pynvml
import torch
from _common import Bar, Table, finish, gpu_names, say
from h200_accuracy import Pacer, kinds
from numpy.typing import NDArray

from energy_plugins import EnergyMeter, Report
from energy_plugins.measure.power_sensors import AVERAGE, COUNTER, INSTANT, SAMPLE_BUFFER
from energy_plugins.measure.spans import Kind

PLANS = (SAMPLE_BUFFER, INSTANT, AVERAGE, COUNTER)
WHOLE = "whole"
"""Span around all that is marked."""
_FIELDS = {"instant power": 186, "average power": 185}
_LOOK_S = 0.001
_WINDOWS_S = np.array([0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5])
_AGES_S = np.arange(-0.02, 0.121, 0.005)


class Watch:
    """Looks at the polled readings a thousand times a second, in a thread of its own."""

    def __init__(self) -> None:
        self.changes: dict[str, list[tuple[float, float]]] = {name: [] for name in (*_FIELDS, "power usage")}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        last: dict[str, float] = {}
        while not self._stop.is_set():
            now_s = time.monotonic_ns() * 1e-9
            fields = pynvml.nvmlDeviceGetFieldValues(handle, list(_FIELDS.values()))
            seen = {name: field.value.uiVal * 1e-3 for name, field in zip(_FIELDS, fields, strict=True)}
            seen["power usage"] = pynvml.nvmlDeviceGetPowerUsage(handle) * 1e-3
            for name, power_w in seen.items():
                if last.get(name, power_w) != power_w:
                    self.changes[name].append((now_s, power_w))
            last = seen
            time.sleep(_LOOK_S)
        pynvml.nvmlShutdown()


def run(seconds: float) -> tuple[dict[str, Report], dict[str, int]]:
    """Train steps of two kinds in stretches, with idling between, under all meters; return reports and start times."""
    rng = random.Random(3)
    works = kinds()
    pacer = Pacer()
    meters = {plan.name: EnergyMeter(plan.name, power_sensor=plan.name) for plan in PLANS}
    with ExitStack() as stack:
        for meter in meters.values():
            stack.enter_context(meter)
        for meter in meters.values():
            stack.enter_context(meter.span(WHOLE))
        starts = {name: meter.run.start_ns for name, meter in meters.items() if meter.run is not None}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            names = rng.choice([("copy",), ("matmul",), ("copy", "matmul")])
            step_s = rng.choice([0.015, 0.03, 0.08, 0.25])
            until = time.monotonic() + rng.uniform(1.0, 5.0)
            while time.monotonic() < until:
                name = rng.choice(names)
                work, piece_ms = works[name]
                with ExitStack() as step:
                    for meter in meters.values():
                        step.enter_context(meter.step(samples=1))
                    with ExitStack() as spans:
                        for meter in meters.values():
                            spans.enter_context(meter.span(name))
                        for _ in range(max(round(step_s * rng.uniform(0.9, 1.1) / (piece_ms * 1e-3)), 1)):
                            work()
                pacer.step()
            torch.cuda.synchronize()
            time.sleep(rng.uniform(0.0, 1.0))
    return {name: meter.report() for name, meter in meters.items()}, starts


def sums_apart(report: Report, reference: Report) -> dict[str, dict[str, float]]:
    """Return, for each kind of work and the run as a whole, how far two meters' joules are apart, and both bounds."""
    others = {phase.kind: phase for phase in reference.phases}
    apart = {}
    for phase in report.phases:
        other = others.get(phase.kind)
        if phase.kind == Kind.RUN.value or other is None or phase.energy_j is None or other.energy_j is None:
            continue
        bounds_j = (phase.error_bound_j or 0.0) + (other.error_bound_j or 0.0)
        apart[phase.kind] = {
            "energy_j": phase.energy_j,
            "reference_j": other.energy_j,
            "apart_j": phase.energy_j - other.energy_j,
            "both_bounds_j": bounds_j,
            "of_both_bounds": abs(phase.energy_j - other.energy_j) / max(bounds_j, 1e-9),
        }
    return apart


def agreement(reports: dict[str, Report]) -> tuple[dict[str, Any], list[Bar]]:
    """Return how far each plan is from the sample buffer's, in total and step by step."""
    reference = reports[SAMPLE_BUFFER.name]
    figures: dict[str, Any] = {}
    bars = []
    for name, report in reports.items():
        total_j, bound_j = report.total_j or np.nan, report.error_bound_j or np.nan
        figures[name] = {
            "sensors": list(report.devices[0].sensors),
            "total_j": total_j,
            "error_bound_j": bound_j,
            "avg_power_w": total_j / report.duration_s,
            "duration_s": report.duration_s,
            "median_step_bound": float(np.median(report.steps["error_bound_j"] / report.steps["energy_j"])),
            "sampler_core_share": report.observer.thread_cpu_s / report.duration_s,
            "warnings": list(report.warnings),
        }
        if report is reference:
            continue
        step_j, step_bound_j = report.steps["energy_j"], report.steps["error_bound_j"]
        apart_j = np.abs(step_j - reference.steps["energy_j"])
        both_j = step_bound_j + reference.steps["error_bound_j"]
        # The windows do not open and close at one instant: what is compared is what all of them marked.
        marked_j, reference_j = float(step_j.sum()), float(reference.steps["energy_j"].sum())
        steps = {total.kind: total for total in report.phases}["copy"], {t.kind: t for t in reference.phases}["copy"]
        figures[name] |= {
            "steps_within_both_bounds": float(np.mean(apart_j <= both_j)),
            "median_apart": float(np.median(apart_j / reference.steps["energy_j"])),
            "sum_of_steps_apart": marked_j / reference_j - 1,
            "sums": sums_apart(report, reference),
            "copy_apart": (steps[0].energy_j or np.nan) / (steps[1].energy_j or np.nan) - 1,
        }
        bars.append(
            Bar(
                f"{name}: steps that agree within both bounds", figures[name]["steps_within_both_bounds"], at_least=0.95
            )
        )
        bars += [
            Bar(f"{name}: sums of {kind}, apart over both bounds", found["of_both_bounds"], at_most=1.0, show=".2f")
            for kind, found in figures[name]["sums"].items()
        ]
        bars.append(
            Bar(
                f"{name}: sum of all steps against the sample buffer's",
                marked_j / reference_j - 1,
                at_least=-0.01,
                at_most=0.01,
            )
        )
    return figures, bars


def response(
    changes: list[tuple[float, float]], t_s: NDArray[np.float64], power_w: NDArray[np.float64]
) -> dict[str, Any]:
    """Return the refresh period of a reading, and the window and age that explain it best from finer samples."""
    seen_s, value_w = np.array(changes).T
    apart_s = np.diff(seen_s)
    energy_j = np.concatenate([[0.0], np.cumsum(np.diff(t_s) * (power_w[1:] + power_w[:-1]) / 2)])
    inside = (seen_s > t_s[0] + 2.0) & (seen_s < t_s[-1] - 0.2)
    best: dict[str, Any] = {"rms_w": np.inf}
    for window_s in _WINDOWS_S:
        for age_s in _AGES_S:
            ends = seen_s[inside] - age_s
            expected_w = (np.interp(ends, t_s, energy_j) - np.interp(ends - window_s, t_s, energy_j)) / window_s
            rms_w = float(np.sqrt(np.mean((expected_w - value_w[inside]) ** 2)))
            if rms_w < best["rms_w"]:
                best = {"rms_w": rms_w, "window_s": float(window_s), "age_s": float(age_s)}
    settled = apart_s[apart_s > 0.008]
    return {
        **best,
        "changes": len(seen_s),
        "period_median_s": float(np.median(settled)),
        "period_p10_s": float(np.quantile(settled, 0.1)),
        "period_p90_s": float(np.quantile(settled, 0.9)),
    }


def main() -> int:
    """Run, compare, write the result, print the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("h200_sensors: skipped, it needs a real GPU and CUDA\n")
        return 0
    reports, _ = run(options.seconds)
    plans, bars = agreement(reports)
    for name, figures in plans.items():
        say(f"{name}: {figures}")
    with Watch() as watch:
        watched, starts = run(15.0)
    (power,) = watched[SAMPLE_BUFFER.name].power.values()
    delay_s = SAMPLE_BUFFER.response.delay_ns * 1e-9
    t_s = starts[SAMPLE_BUFFER.name] * 1e-9 + power["t_s"] - delay_s
    readings = {name: response(changes, t_s, power["power_w"]) for name, changes in watch.changes.items()}
    for name, figures in readings.items():
        say(f"{name}: {figures}")
    raw: dict[str, Table] = {}
    for plan in PLANS:
        steps = reports[plan.name].steps
        columns = ("start_s", "end_s", "energy_j", "error_bound_j")
        raw[plan.name.replace(" ", "_")] = {column: steps[column] for column in columns}
    for name, changes in watch.changes.items():
        seen = np.array(changes)
        raw[f"changes_{name.replace(' ', '_')}"] = {"t_s": seen[:, 0] - t_s[0], "power_w": seen[:, 1]}
    raw["samples"] = {"t_s": t_s - t_s[0], "power_w": power["power_w"]}
    return finish("h200_sensors", gpus=gpu_names(), figures={"plans": plans, "readings": readings}, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
