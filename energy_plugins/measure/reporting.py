"""Settled sums become a `Report`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from energy_plugins import __version__, _native
from energy_plugins.measure.attribution import SpanEnergy
from energy_plugins.measure.baseline_store import Remembered
from energy_plugins.measure.collector import Collector
from energy_plugins.measure.columns import Columns
from energy_plugins.measure.cpu import CpuEnergy
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.neighbours import Neighbours
from energy_plugins.measure.power_sensors import COUNTER
from energy_plugins.measure.rank_part import Rank
from energy_plugins.measure.report import OF_THE_WHOLE, Report
from energy_plugins.measure.report_files import activity_folder, power_folder, spans_folder, state_folder, steps_folder
from energy_plugins.measure.report_parts import (
    ACTIVITY_COLUMNS,
    POWER_COLUMNS,
    SPAN_COLUMNS,
    STATE_COLUMNS,
    STEP_COLUMNS,
    Company,
    DeviceInfo,
    KindTotal,
    Observer,
    Work,
)
from energy_plugins.measure.sensors import SensorPlan
from energy_plugins.measure.totals import KindSum, StepSum

_VERSIONED = ("torch", "lightning", "pytorch_lightning", "transformers", "accelerate")

_WORTH_SAYING_S = 0.5

_NOT_YET = {
    "peer_wait_j": "needs the reports of several ranks side by side",
}


_NO_SENSOR = "the driver gives no reading of power or energy"
_NO_SAMPLES = "no power samples arrived"


@dataclass(frozen=True)
class Facts:
    """What a report says of a run that was known when it started."""

    run_id: str
    name: str
    node: str
    started: str
    config: Mapping[str, JSON]
    plan: SensorPlan
    folder: Path
    """Where its columns are."""
    baselines: Remembered
    """Idle power of its GPUs."""
    activity: bool = False
    """Whether the activity lane is on."""
    rank: Rank | None = None


@dataclass(frozen=True)
class State:
    """How far a run has come."""

    end_ns: int
    complete: bool
    names: tuple[str, ...]
    """Kinds of spans by code."""
    marks: _native.MarkStats
    sampler: _native.SamplerStats | None
    cpu: CpuEnergy
    warnings: tuple[str, ...]
    neighbours: Neighbours
    stopped: str
    power_limit: LimitPart | None = None
    ledger_s: float = 0.0
    """CPU time that the ledger's entry took."""
    micro_batch: MicroBatchPart | None = None


def compose(facts: Facts, collector: Collector, state: State) -> Report:
    """Return the report of what ``collector`` has settled up to ``state.end_ns``; its columns are mapped from disk."""
    plan, totals, end_ns, folder = facts.plan, collector.totals, state.end_ns, facts.folder
    start_ns = collector.settlement.start_ns
    gpus = collector.settlement.window(end_ns)
    whole = _sum(gpus)
    gpu_j = {gpu.uuid: _measured(energy.joules[0]) for gpu, energy in zip(plan.gpus, gpus, strict=True)}
    lanes = collector.lanes.report(state.names, facts.baselines.idle_w)
    devices = _devices(facts, state)
    missing = {**state.cpu.missing, **_NOT_YET, **_waste_missing(totals.steps), **lanes.missing}
    missing |= _devices_missing(devices)
    if facts.rank is not None and facts.rank.rank > 0:
        missing["peer_wait_j"] = "the report of rank 0 has it, where all ranks are side by side"
    if whole is None:
        nothing = plan.nothing_because or _nothing_because(plan)
        missing |= dict.fromkeys(("total_j", "error_bound_j", "data_wait_j", "stall_j"), nothing)
    lost_s = _lost_s(whole, collector)
    if lost_s >= _WORTH_SAYING_S:
        missing |= dict.fromkeys(OF_THE_WHOLE, f"the joules of {lost_s:.1f} s are missing from the total")
    missing |= {
        f"gpu_j {uuid}": _no_reading_because(plan, uuid) for uuid, joules in gpu_j.items() if joules is None and whole
    }
    shared: dict[str, JSON] = {
        uuid: _measured(energy.joules[0])
        for uuid, energy in zip(plan.sampled[len(plan.gpus) :], collector.shared.window(end_ns), strict=True)
    }
    for part in plan.slices:
        gpu_j[part.visible_uuid] = None
        joules = shared[part.uuid]
        drew = "was not measured" if joules is None else f"drew {joules:.6g} J shared by all slices"
        missing[f"gpu_j {part.visible_uuid}"] = f"a MIG slice has no power sensor; its whole GPU, {part.uuid}, {drew}"
    return Report(
        run_id=facts.run_id,
        name=facts.name,
        node=facts.node,
        started=facts.started,
        duration_s=(end_ns - start_ns) * 1e-9,
        complete=state.complete,
        simulated=plan.simulated,
        total_j=whole.joules if whole else None,
        gpu_j=gpu_j,
        cpu_j=state.cpu.cpu_j,
        dram_j=state.cpu.dram_j,
        cpu_domains=state.cpu.domains,
        cpu_estimate_j=state.cpu.estimate_j,
        cpu_estimate_label=state.cpu.estimate_label,
        error_bound_j=whole.bound if whole else None,
        coverage=whole.coverage if whole else 0.0,
        idle_j=_idle_j(devices, (end_ns - start_ns) * 1e-9),
        stall_j=totals.steps.stall_j if "stall_j" not in missing else None,
        data_wait_j=totals.steps.data_wait_j if "data_wait_j" not in missing else None,
        underfilled_j=lanes.underfilled.energy_j,
        underfilled_how=lanes.underfilled.how,
        missing=missing,
        steps=Columns.open(steps_folder(folder), STEP_COLUMNS),
        spans=Columns.open(spans_folder(folder), SPAN_COLUMNS),
        span_kinds=state.names,
        kinds=_kinds(totals.kinds, state.names, measured=whole is not None),
        phases=_kinds(totals.phases, state.names, measured=whole is not None),
        power={uuid: Columns.open(power_folder(folder, uuid), POWER_COLUMNS) for uuid in plan.sampled},
        state={uuid: Columns.open(state_folder(folder, uuid), STATE_COLUMNS) for uuid in plan.sampled},
        gpu_states=lanes.states,
        activity={
            uuid: Columns.open(activity_folder(folder, uuid), ACTIVITY_COLUMNS)
            for uuid in (plan.sampled if facts.activity else ())
        },
        kind_activity=lanes.kinds,
        work=Work(
            steps=totals.steps.steps,
            samples=totals.steps.samples if totals.steps.saw_samples else None,
            tokens=totals.steps.tokens if totals.steps.saw_tokens else None,
        ),
        observer=_observer(collector, state),
        devices=devices,
        versions=_versions(),
        config=facts.config,
        warnings=state.warnings + _unmeasured(whole, (end_ns - start_ns) * 1e-9, collector, plan),
        stopped=state.stopped,
        power_limit=state.power_limit,
        micro_batch=state.micro_batch,
        rank=facts.rank,
        extra={"shared_gpu_j": shared} if shared else {},
    )


def _nothing_because(plan: SensorPlan) -> str:
    if not plan.gpus:
        return "this process has only slices of GPUs"
    if all(gpu.uuid in plan.blind for gpu in plan.gpus):
        return _NO_SENSOR
    return _NO_SAMPLES


def _no_reading_because(plan: SensorPlan, uuid: str) -> str:
    return _NO_SENSOR if uuid in plan.blind else _NO_SAMPLES


@dataclass(frozen=True)
class _Whole:
    joules: float
    bound: float
    coverage: float


def _lost_s(whole: _Whole | None, collector: Collector) -> float:
    """Return of how much of the window nobody tells the joules, a mean over the GPUs."""
    tracks = collector.settlement.tracks
    return sum(track.ledger.lost_s() for track in tracks) / len(tracks) if whole else 0.0


def _unmeasured(whole: _Whole | None, duration_s: float, collector: Collector, plan: SensorPlan) -> tuple[str, ...]:
    unsampled_s = (1.0 - whole.coverage) * duration_s if whole else 0.0
    if unsampled_s < _WORTH_SAYING_S:
        return ()
    unknown_s = _lost_s(whole, collector)
    text = f"{unsampled_s:.1f} s of the window had no power samples"
    if unknown_s < _WORTH_SAYING_S:
        counted = any(COUNTER.name in sensors for sensors in plan.sensors.values())
        teller = "the energy counter" if counted else "the mean power"
        return (f"{text}; {teller} tells their joules, which are in the total",)
    return (f"{text}; the joules of {unknown_s:.1f} s of them are missing from the total",)


def _sum(gpus: list[SpanEnergy]) -> _Whole | None:
    joules = np.array([gpu.joules[0] for gpu in gpus])
    if not len(joules) or np.isnan(joules).all():
        return None
    bound = np.sqrt(np.nansum([gpu.error_bound_j[0] ** 2 for gpu in gpus]))
    return _Whole(float(np.nansum(joules)), float(bound), float(np.mean([gpu.coverage[0] for gpu in gpus])))


def _measured(joules: float) -> float | None:
    return None if np.isnan(joules) else float(joules)


def _waste_missing(steps: StepSum) -> dict[str, str]:
    missing = {}
    if not steps.saw_waits:
        missing["data_wait_j"] = "no step marked a data_wait span" if steps.steps else "no steps were marked"
    if not steps.saw_stalls:
        missing["stall_j"] = "needs two steps in a row" if steps.steps else "no steps were marked"
    unseen = "there were some, but nothing of them was measured"
    if steps.lost_waits and steps.data_wait_j == 0:
        missing["data_wait_j"] = unseen
    if steps.lost_stalls and steps.stall_j == 0:
        missing["stall_j"] = unseen
    return missing


def _kinds(sums: Mapping[int, KindSum], names: tuple[str, ...], *, measured: bool) -> tuple[KindTotal, ...]:
    return tuple(
        KindTotal(
            kind=names[code],
            count=entry.count,
            duration_s=entry.duration_ns * 1e-9,
            energy_j=entry.energy_j if measured and entry.measured else None,
            error_bound_j=entry.error_bound_j if measured and entry.measured else None,
            coverage=entry.covered_ns / entry.duration_ns if entry.duration_ns else 0.0,
        )
        for code, entry in sorted(sums.items())
    )


def _observer(collector: Collector, state: State) -> Observer:
    marks, sampler = state.marks, state.sampler
    return Observer(
        thread_cpu_s=sampler.thread_cpu_s if sampler else 0.0,
        driver_call_s=sampler.driver_call_s if sampler else 0.0,
        mark_s=marks.mark_ns * 1e-9,
        collect_s=collector.collect_s + state.neighbours.cpu_s + state.ledger_s,
        dropped=marks.dropped + (sampler.dropped if sampler else 0),
        marks=marks.marks,
        events=marks.events,
    )


def _devices(facts: Facts, state: State) -> tuple[DeviceInfo, ...]:
    plan, idle = facts.plan, facts.baselines.idle
    return tuple(
        DeviceInfo(
            uuid=gpu.visible_uuid,
            name=gpu.name,
            index=gpu.index,
            driver=gpu.driver,
            sensors=plan.sensors.get(gpu.uuid, ()) if gpu.mig is None else (),
            reasons=plan.reasons.get(gpu.uuid, {})
            if gpu.mig is None
            else {"power": "a MIG slice has no sensor of its own"},
            others=state.neighbours.others(gpu.uuid),
            idle_w=idle[gpu.uuid].power_w if gpu.mig is None and gpu.uuid in idle else None,
            idle_measured=idle[gpu.uuid].measured if gpu.mig is None and gpu.uuid in idle else "",
        )
        for gpu in (*plan.gpus, *plan.slices)
    )


def _idle_j(devices: tuple[DeviceInfo, ...], duration_s: float) -> float | None:
    watts = [device.idle_w for device in devices]
    return sum(idle_w * duration_s for idle_w in watts if idle_w is not None) if watts and None not in watts else None


def _devices_missing(devices: tuple[DeviceInfo, ...]) -> dict[str, str]:
    missing = {
        f"others {device.uuid}": device.others.reason for device in devices if device.others.company is Company.UNKNOWN
    }
    without = [device.uuid for device in devices if device.idle_w is None]
    if without or not devices:
        missing["idle_j"] = (
            f"no idle baseline is remembered here for {', '.join(without) or 'any GPU'}: "
            "EnergyMeter.baseline() measures one while nothing runs"
        )
    return missing


def _versions() -> dict[str, str]:
    versions = {
        "energy_plugins": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    for name in _VERSIONED:
        module = sys.modules.get(name)
        if module is not None:
            versions[name] = str(getattr(module, "__version__", "unknown"))
    return versions
