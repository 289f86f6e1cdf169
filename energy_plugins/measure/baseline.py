"""The idle baseline: what GPUs draw while nothing runs on them, measured when asked and remembered for each node."""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pynvml

from energy_plugins.errors import BusyError, DeviceError
from energy_plugins.measure.baseline_store import IdlePower, remember
from energy_plugins.measure.devices import Gpu, shut_down_after
from energy_plugins.measure.drivers import Clock, current_drivers
from energy_plugins.measure.neighbours import look_at
from energy_plugins.measure.options import Options
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import Company
from energy_plugins.measure.run import Run

SHORTEST_S = 2.0
"""Shorter ones rest on too few readings to tell idling from work."""
_LEAST_COVERAGE = 0.9
_BUSY_PERCENT = 5
"""Utilisation from which a GPU is at work: an idle one shows 0."""
_MOST_SPREAD = 0.15
"""Largest distance between the 5th and 95th percentile of an idle GPU's power samples, as a share of their median.

It was 6 % on an H200 before its work began (benchmarks/results/h200_lightning_report); work moves power far more."""


@dataclass(frozen=True)
class Baseline:
    """Idle power of some GPUs of a node."""

    node: str
    gpus: tuple[IdlePower, ...]

    @property
    def idle_w(self) -> Mapping[str, float]:
        """Idle power in watts by GPU UUID."""
        return {gpu.uuid: gpu.power_w for gpu in self.gpus}


def measure_baseline(seconds: float, devices: Sequence[int | str | Gpu] | None) -> Baseline:
    """Measure and remember the idle power of ``devices``; see `EnergyMeter.baseline`."""
    if not SHORTEST_S <= seconds < math.inf:
        raise ValueError(f"a baseline takes at least {SHORTEST_S} seconds, got {seconds!r}")
    options = Options(name="baseline", devices=devices)
    run = Run(options, options.ask())
    try:
        _refuse_company(run.own)
        busiest = _watch(run.own, seconds, current_drivers().clock)
    finally:
        report = run.finish()
    _refuse_work(report, busiest)
    baseline = Baseline(platform.node(), tuple(_idle(report, run.own)))
    try:
        remember(baseline.gpus)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"energy: the baseline is not remembered: {error}", RuntimeWarning, stacklevel=3)
    return baseline


def _refuse_company(uuids: Sequence[str]) -> None:
    if not uuids:
        raise DeviceError("there is no whole GPU here whose idle power could be measured")
    for uuid, look in look_at(uuids).items():
        if look.ours:
            raise BusyError(
                f"this process computes on GPU {uuid} itself: measure the baseline before CUDA is used, "
                "or in a process of its own"
            )
        if look.hidden:
            raise BusyError(f"GPU {uuid} is not idle: a process that is not visible from here computes on it")
        for process in look.strangers:
            raise BusyError(f"GPU {uuid} is not idle: process {process.pid} ({process.name}) computes on it")


def _watch(uuids: Sequence[str], seconds: float, clock: Clock) -> dict[str, int]:
    """Let ``seconds`` pass and return the highest utilisation seen of each GPU, in per cent."""
    busiest = dict.fromkeys(uuids, 0)
    end_ns = clock.now_ns() + round(seconds * 1e9)
    while (left_s := (end_ns - clock.now_ns()) * 1e-9) > 0:
        clock.sleep(min(left_s, 1.0))
        for uuid, percent in _utilisation(uuids):
            busiest[uuid] = max(busiest[uuid], percent)
    return busiest


def _utilisation(uuids: Sequence[str]) -> Iterator[tuple[str, int]]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return  # the power samples tell as well
    with shut_down_after():
        for uuid in uuids:
            try:
                rates = pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByUUID(uuid))
            except pynvml.NVMLError:
                continue
            yield uuid, int(rates.gpu)


def _refuse_work(report: Report, busiest: Mapping[str, int]) -> None:
    for device in report.devices:
        if device.others.company is Company.SOME:
            process = device.others.processes[0]
            raise BusyError(f"GPU {device.uuid} is not idle: process {process.pid} ({process.name}) computes on it")
    for uuid, percent in busiest.items():
        if percent >= _BUSY_PERCENT:
            raise BusyError(f"GPU {uuid} is not idle: its utilisation was {percent} %")
        power_w = report.power[uuid]["power_w"]
        if not len(power_w):
            continue
        low_w, middle_w, high_w = np.percentile(power_w, [5, 50, 95])
        if high_w - low_w > _MOST_SPREAD * middle_w:
            raise BusyError(f"GPU {uuid} is not idle: its power went from {low_w:.0f} to {high_w:.0f} W")


def _idle(report: Report, uuids: Sequence[str]) -> Iterator[IdlePower]:
    drivers = {device.uuid: device.driver for device in report.devices}
    for uuid in uuids:
        joules = report.gpu_j[uuid]
        if joules is None or report.coverage < _LEAST_COVERAGE:
            why = report.missing.get("total_j") or "; ".join(report.warnings) or "readings cover too little of the time"
            raise DeviceError(f"the idle power of GPU {uuid} was not measured: {why}")
        yield IdlePower(
            uuid=uuid,
            power_w=joules / report.duration_s,
            error_bound_w=(report.error_bound_j or 0.0) / report.duration_s,
            measured=report.started,
            seconds=report.duration_s,
            driver=drivers[uuid],
        )
