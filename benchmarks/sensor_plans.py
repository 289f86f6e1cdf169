"""SIMULATED: how good the joules are on GPUs that lack sensors, plan by plan, and whether their bounds hold.

    python benchmarks/sensor_plans.py [--quick]        exits with 1 if a bar is missed

Everything runs in virtual time from fixed seeds. The constants of each sensor's error bound
(`energy_plugins.measure.power_sensors`) were calibrated on the random loads of other seeds than the bars are for.
`results/sensor_plans_steps.npz` has what each marked step was off and its bound (`step_rows`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from _common import RESULTS, Bar, finish, progress
from numpy.typing import NDArray
from simulator_accuracy import (
    HELD_OUT_SEED,
    Sensors,
    Windows,
    by_family,
    by_length,
    measure_marked,
    measure_totals,
    measure_windows,
    measured,
    show,
    training,
    windows_of,
)

from energy_plugins.measure import power_sensors
from energy_plugins.measure.spans import Kind
from energy_plugins.testing import (
    A100,
    H200,
    RTX_4090,
    V100,
    Constant,
    Load,
    NoCounter,
    NoSampleBuffer,
    NotSupported,
    Profile,
    Square,
)

CALIBRATION_SEED = 11
LENGTHS_S = (0.02, 0.08, 0.125, 0.3, 1.0, 1.5, 4.0)
STEPS_S = (0.004, 0.02, 0.1, 0.4)
ROW_UNIT = 5e-4
ROW_UNIT_S = 1e-5
"""Of errors and bounds in the rows of steps, which are relative, and of lengths: few digits keep the file small."""
DELAYED = ("QUICK", "INSTANT", "SNAPSHOT", "AVERAGE", "AVERAGE_USAGE")
"""Sensors in `energy_plugins.measure.power_sensors` whose delay is in their error model."""

_NO_FIELDS = NotSupported("nvmlDeviceGetFieldValues")
_NO_INSTANT = NotSupported("NVML_FI_DEV_POWER_INSTANT")
_NO_AVERAGE = NotSupported("NVML_FI_DEV_POWER_AVERAGE")
_NO_USAGE = NotSupported("nvmlDeviceGetPowerUsage")
_POLLED = (NoSampleBuffer(),)

WITH_COUNTER: Mapping[str, Sensors] = {
    "instant power": Sensors(H200, _POLLED),
    "average power": Sensors(H200, _POLLED, power="average power"),
    "power usage, averaged": Sensors(RTX_4090, (*_POLLED, _NO_FIELDS)),
    "power usage, instantaneous": Sensors(A100, (*_POLLED, _NO_FIELDS)),
    "power usage, every 20 ms": Sensors(V100, (*_POLLED, _NO_FIELDS)),
    "energy counter": Sensors(H200, (*_POLLED, _NO_FIELDS, _NO_USAGE)),
}
WITHOUT_COUNTER: Mapping[str, Sensors] = {
    "power samples": Sensors(H200, (NoCounter(),)),
    **{
        name: replace(sensors, faults=(*sensors.faults, NoCounter()))
        for name, sensors in WITH_COUNTER.items()
        if name != "energy counter"
    },
    "average power": Sensors(H200, (*_POLLED, _NO_INSTANT, NoCounter())),
    "instant power": Sensors(H200, (*_POLLED, NoCounter()), power="instant power"),
    "instant power and its average": Sensors(H200, (*_POLLED, NoCounter())),
    "instant power and power usage": Sensors(RTX_4090, (*_POLLED, _NO_AVERAGE, NoCounter())),
}


@contextmanager
def delay_known() -> Iterator[None]:
    """Let the error models hold the delay of each sensor for exact, as that of a simulated one is."""
    sensors = {name: getattr(power_sensors, name) for name in DELAYED}
    exact = {name: replace(sensor, model=replace(sensor.model, timing_s=0.0)) for name, sensor in sensors.items()}
    with patch.multiple(power_sensors, **exact):
        yield


def training_steps(seed: int, runs: int, sensors: Sensors) -> Windows:
    """Return steps like those of a training, marked, one by one."""
    return measure_marked("steps", runs, seed, training, sensors).each.of(Kind.STEP.value)


def step_rows(steps: Windows) -> dict[str, NDArray[np.generic]]:
    """Return what each step was off and its bound, in `ROW_UNIT` of its joules, and whether that held (packed bits)."""
    return {
        "error": np.rint(steps.error / ROW_UNIT).clip(-32768, 32767).astype(np.int16),
        "bound": np.rint(steps.bound / ROW_UNIT).clip(0, 65535).astype(np.uint16),
        "held": np.packbits(steps.contained),
    }


def shared_rows(steps: Windows) -> dict[str, NDArray[np.generic]]:
    """Return which run each step is of and its length, in `ROW_UNIT_S`: every plan measures the same steps."""
    return {
        "run": steps.run.astype(np.uint16),
        "length": np.rint(steps.length_s / ROW_UNIT_S).astype(np.uint32),
    }


SLOW_MS = (250, 500, 1000, 2000)
QUICK_MS = (10, 20, 25, 50, 100, 137, 200)


def plain_loads(gpu: Profile) -> dict[str, Load]:
    """Return loads whose energy is plain to see, but for the sensors that look a part of the time."""
    high_w = 0.98 * gpu.max_limit_w
    levels = {"idle": gpu.idle_w, "steady": high_w, "copy": 0.65 * gpu.max_limit_w}
    return {name: Constant(level_w) for name, level_w in levels.items()} | waves(gpu, SLOW_MS)


def waves(gpu: Profile, periods_ms: Sequence[int]) -> dict[str, Load]:
    """Return square waves between idle and full power."""
    high_w = 0.98 * gpu.max_limit_w
    return {f"wave {period_ms} ms": Square(gpu.idle_w, high_w, period_ms * 1e-3, 0.5) for period_ms in periods_ms}


@dataclass(frozen=True)
class Loaded:
    """Windows of 6 s and more under loads whose energy is plain, and under waves that a sensor may take for another."""

    plain: Windows
    aliasing: Windows


def without_counter(name: str, sensors: Sensors, runs: int) -> Loaded:
    """Return whole windows of 6 to 12 s under each load."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    parts: dict[bool, list[Windows]] = {True: [], False: []}
    loads = [(kind, load, True) for kind, load in plain_loads(sensors.profile).items()]
    loads += [(kind, load, False) for kind, load in waves(sensors.profile, QUICK_MS).items()]
    for run in progress(f"{name}, no counter", runs):
        for kind, load, plain in loads:
            with measured(rng, load, sensors) as (sim, meter, start_ns):
                sim.advance(float(rng.uniform(6.0, 12.0)))
                meter.stop()
                report = meter.report()
                whole = {"start_s": 0.0, "end_s": report.duration_s}
                whole |= {"energy_j": report.total_j or np.nan, "error_bound_j": report.error_bound_j or np.nan}
                columns = {column: np.array([value]) for column, value in whole.items()}
                parts[plain].append(windows_of(sim, columns, start_ns, run, np.array([kind])))
    return Loaded(Windows.join(parts[True]), Windows.join(parts[False]))


def main() -> int:
    """Measure, print, write, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, on the seed of the calibration")
    parser.add_argument("--only", default="", help="plans whose name contains this")
    options = parser.parse_args()
    part, seed = (0.1, CALIBRATION_SEED) if options.quick else (1.0, HELD_OUT_SEED)
    figures: dict[str, Any] = {"with_counter": {}, "without_counter": {}}
    bars: list[Bar] = []
    raw: dict[str, dict[str, Any]] = {}
    rows: dict[str, Any] = {}
    for name, sensors in WITH_COUNTER.items():
        if options.only not in name:
            continue
        totals = measure_totals(sensors, round(300 * part))
        windows = measure_windows(seed, round(120 * part), sensors)
        steps = training_steps(seed, max(round(30 * part), 3), sensors)
        with delay_known():
            exact = training_steps(seed, max(round(30 * part), 3), sensors)
        show(f"{name}, with the counter: totals of windows of 1.5-8 s", {"all": totals.figures(), **by_family(totals)})
        show("random windows of random loads", {"all": windows.figures(), **by_length(windows, LENGTHS_S)})
        show("training-like steps", {"all": steps.figures(), **by_length(steps, STEPS_S)})
        show("the same, if the sensor's delay is known exactly", {"all": exact.figures()})
        within = float(np.mean(np.abs(totals.error) <= 0.01))
        figures["with_counter"][name] = {
            "totals": {**totals.figures(), "within_1_percent": within, "by_family": by_family(totals)},
            "windows": {**windows.figures(), "by_length": by_length(windows, LENGTHS_S)},
            "steps": {
                **steps.figures(),
                "by_length": by_length(steps, STEPS_S),
                "coverage_interval": steps.coverage_interval(),
                "delay_known": exact.figures(),
            },
        }
        bars.append(Bar(f"{name}: totals within 1 %", within, at_least=0.95))
        bars.append(
            Bar(
                f"{name}: random windows whose bound holds",
                float(windows.contained.mean()),
                at_least=0.95,
                at_most=0.995,
            )
        )
        held = float(steps.contained.mean())
        bars.append(Bar(f"{name}: steps whose bound holds", held, at_least=0.95, at_most=0.995))
        slug = name.replace(",", "").replace(" ", "_")
        raw |= {f"{slug}_totals": totals.table(), f"{slug}_windows": windows.table()}
        shared = shared_rows(steps)
        for column, values in shared.items():
            assert np.array_equal(rows.get(column, values), values), f"{name}: other steps than the plans before"
        rows |= shared
        rows |= {f"{slug}_{column}": values for column, values in step_rows(steps).items()}
    for name, sensors in WITHOUT_COUNTER.items():
        if options.only not in name:
            continue
        loaded = without_counter(name, sensors, max(round(12 * part), 2))
        show(f"{name}, no counter: windows of 6-12 s", by_family(loaded.plain))
        show("waves that it may take for others", by_family(loaded.aliasing))
        figures["without_counter"][name] = {
            "plain": {**loaded.plain.figures(), "by_load": by_family(loaded.plain)},
            "aliasing": {**loaded.aliasing.figures(), "by_load": by_family(loaded.aliasing)},
        }
        worst = float(np.abs(loaded.plain.error).max())
        bars.append(Bar(f"{name}, no counter: largest error, plain loads and waves from 250 ms", worst, at_most=0.03))
        held = float(loaded.aliasing.contained.mean())
        bars.append(Bar(f"{name}, no counter: aliasing waves whose bound holds", held, at_least=1.0))
        slug = name.replace(",", "").replace(" ", "_")
        raw |= {f"{slug}_plain": loaded.plain.table(), f"{slug}_aliasing": loaded.aliasing.table()}
    if options.quick or options.only:
        print()
        for bar in bars:
            print(bar)
        return 0 if all(bar.met for bar in bars) else 1
    np.savez_compressed(RESULTS / "sensor_plans_steps.npz", **rows)
    return finish("sensor_plans", gpus=[H200.name], figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
