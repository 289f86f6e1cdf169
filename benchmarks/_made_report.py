"""A training that never ran, as a report of any length: made by arithmetic, so it says SIMULATED."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.limit_part import LimitPart, TriedLimit
from energy_plugins.measure.rank_folders import with_ranks
from energy_plugins.measure.rank_part import Backward, GpuPart, Rank, RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import DeviceInfo, GpuState, KindTotal, Observer, Work

KINDS = ("unattributed", "run", "step", "data_wait", "forward", "backward", "optimizer", "validate", "checkpoint")
_SAMPLE_S = 0.02
_MARKED_EVERY = 50
_VALIDATED_EVERY = 400
_WAIT = 0.15
"""Share of a step that it waits for its batch."""
_PHASES = {"forward": (0.15, 0.45), "backward": (0.45, 0.95), "optimizer": (0.95, 1.0)}
_POWER_W = {"data_wait": 140.0, "work": 610.0, "validate": 420.0, "checkpoint": 130.0}
_LIMITS_W = (700.0, 640.0, 580.0, 520.0, 460.0, 400.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Made:
    """What to make."""

    steps: int = 2400
    step_s: float = 0.2
    gpus: int = 1
    ranks: int = 1
    name: str = "made-up training"
    searched: bool = True


def made_report(made: Made) -> Report:
    """Return the report; its columns are in memory."""
    rng = np.random.default_rng(7)
    start_s, end_s, pauses = _steps(made)
    duration_s = float(end_s[-1]) + 2.0
    spans = _spans(start_s, end_s, pauses)
    length_s = end_s - start_s
    step_j = length_s * (_WAIT * _POWER_W["data_wait"] + (1 - _WAIT) * _POWER_W["work"])
    step_j = made.gpus * step_j * rng.normal(1.0, 0.02, len(step_j))
    waits_j = made.gpus * length_s * _WAIT * _POWER_W["data_wait"]
    steps = Columns.of(
        {
            "index": np.arange(made.steps),
            "start_s": start_s,
            "end_s": end_s,
            "energy_j": step_j,
            "error_bound_j": 0.03 * step_j,
            "coverage": np.ones(made.steps),
            "samples": np.full(made.steps, 32),
            "tokens": np.full(made.steps, -1),
            "data_wait_j": waits_j,
            "stall_j": waits_j * 1.2,
        }
    )
    kinds = _kinds(steps, spans, duration_s)
    total_j = sum(kind.energy_j or 0.0 for kind in kinds)
    uuids = [f"GPU-0000000{gpu}-made-up0-0000-000000000000" for gpu in range(made.gpus)]
    report = Report(
        run_id="20261122-120000-0000",
        name=made.name,
        node="node7",
        started="2026-11-22T12:00:00+00:00",
        duration_s=duration_s,
        complete=True,
        simulated=True,
        total_j=total_j,
        gpu_j=dict.fromkeys(uuids, total_j / made.gpus),
        error_bound_j=0.004 * total_j,
        coverage=0.999,
        idle_j=80.0 * made.gpus * duration_s,
        stall_j=float(steps["stall_j"].sum()),
        data_wait_j=float(waits_j.sum()),
        underfilled_j=0.03 * total_j,
        underfilled_how="power below idle + 25 % of the way to the limit; measured idle power",
        missing={"cpu_j": "no energy counter of a CPU", "peer_wait_j": "one process has no peers"},
        steps=steps,
        spans=spans,
        span_kinds=KINDS,
        kinds=kinds,
        power={uuid: _power(duration_s, steps, spans, rng) for uuid in uuids},
        state={uuid: _state(duration_s) for uuid in uuids},
        gpu_states=tuple(_gpu_state(uuid, duration_s) for uuid in uuids),
        work=Work(steps=made.steps, samples=32 * made.steps),
        observer=Observer(
            thread_cpu_s=0.0014 * duration_s,
            driver_call_s=0.0012 * duration_s,
            mark_s=4e-6 * made.steps,
            collect_s=0.001 * duration_s,
            marks=4 * made.steps,
            events=made.steps,
        ),
        devices=tuple(
            DeviceInfo(uuid=uuid, name="SIMULATED H200", index=gpu, driver="580.159", sensors=("power samples",))
            for gpu, uuid in enumerate(uuids)
        ),
        versions={"energy_plugins": "0.1.0"},
        config={"num_workers": 0, "precision": "bf16-mixed"},
        power_limit=_search() if made.searched else None,
    )
    return _with_ranks(report, made.ranks) if made.ranks > 1 else report


def _steps(made: Made) -> tuple[Floats, Floats, Floats]:
    """Return the steps' ends, and where validation begins, which takes 6 steps' time, and a checkpoint 2."""
    number = np.arange(made.steps, dtype=np.float64)
    pause = np.floor(number / _VALIDATED_EVERY) * 8.0
    start_s = 1.0 + (number + pause) * made.step_s
    last = number[_VALIDATED_EVERY - 1 :: _VALIDATED_EVERY].astype(int)
    end_s = start_s + made.step_s
    return start_s, end_s, end_s[last]


def _spans(start_s: Floats, end_s: Floats, pauses: Floats) -> Columns:
    length_s = end_s - start_s
    step_s = float(length_s[0])
    parts = [("data_wait", start_s, start_s + _WAIT * length_s, _POWER_W["data_wait"])]
    for kind, (begin, end) in _PHASES.items():
        marked = slice(None, None, _MARKED_EVERY)
        from_s = start_s[marked] + begin * length_s[marked]
        parts.append((kind, from_s, start_s[marked] + end * length_s[marked], _POWER_W["work"]))
    parts.append(("validate", pauses, pauses + 6.0 * step_s, _POWER_W["validate"]))
    parts.append(("checkpoint", pauses + 6.0 * step_s, pauses + 8.0 * step_s, _POWER_W["checkpoint"]))
    codes = [np.full(len(begin), KINDS.index(name), np.int16) for name, begin, _, _ in parts]
    begin_s = np.concatenate([begin for _, begin, _, _ in parts])
    stop_s = np.concatenate([end for _, _, end, _ in parts])
    energy_j = np.concatenate([(end - begin) * power_w for _, begin, end, power_w in parts])
    order = np.argsort(stop_s, kind="stable")
    return Columns.of(
        {
            "kind": np.concatenate(codes)[order],
            "start_s": begin_s[order],
            "end_s": stop_s[order],
            "energy_j": energy_j[order],
            "error_bound_j": 0.05 * energy_j[order],
            "coverage": np.ones(len(order)),
        }
    )


def _kinds(steps: Columns, spans: Columns, duration_s: float) -> tuple[KindTotal, ...]:
    seconds = dict.fromkeys(KINDS, 0.0)
    joules = dict(seconds)
    for code, name in enumerate(KINDS):
        chosen = spans["kind"] == code
        seconds[name] = float((spans["end_s"] - spans["start_s"])[chosen].sum())
        joules[name] = float(spans["energy_j"][chosen].sum())
    inner = ("data_wait", "forward", "backward", "optimizer")
    seconds["step"] = float((steps["end_s"] - steps["start_s"]).sum()) - sum(seconds[name] for name in inner)
    joules["step"] = float(steps["energy_j"].sum()) - sum(joules[name] for name in inner)
    seconds["unattributed"] = max(duration_s - sum(seconds.values()), 0.0)
    joules["unattributed"] = 90.0 * seconds["unattributed"]
    return tuple(
        KindTotal(
            kind=name,
            count=1,
            duration_s=seconds[name],
            energy_j=joules[name],
            error_bound_j=0.01 * joules[name],
            coverage=1.0,
        )
        for name in KINDS
        if seconds[name] > 0
    )


def _power(duration_s: float, steps: Columns, spans: Columns, rng: np.random.Generator) -> Columns:
    t_s = np.arange(_SAMPLE_S, duration_s, _SAMPLE_S)
    step = np.searchsorted(steps["start_s"], t_s, side="right") - 1
    inside = (step >= 0) & (t_s < steps["end_s"][step])
    power_w = np.where(inside, _POWER_W["work"], 90.0)
    for name in ("data_wait", "validate", "checkpoint"):
        chosen = spans["kind"] == KINDS.index(name)
        begin_s, end_s = spans["start_s"][chosen], spans["end_s"][chosen]
        if len(begin_s):
            at = np.searchsorted(begin_s, t_s, side="right") - 1
            power_w[(at >= 0) & (t_s < end_s[at])] = _POWER_W[name]
    return Columns.of({"t_s": t_s, "power_w": power_w + rng.normal(0.0, 8.0, len(t_s))})


def _state(duration_s: float) -> Columns:
    t_s = np.arange(0.5, duration_s, 1.0)
    searching = (t_s > 0.1 * duration_s) & (t_s < 0.3 * duration_s)
    limit_w = np.where(searching, 640.0 - 60.0 * (np.floor(t_s / 10.0) % 4), 700.0)
    limit_w = np.where(t_s >= 0.3 * duration_s, 580.0, limit_w)
    reasons = np.where(limit_w < 620.0, 0x4, np.where(t_s > 0.9 * duration_s, 0x20, 0x0))
    columns = {
        "sm_clock_mhz": np.full(len(t_s), 1755.0),
        "temperature_c": np.full(len(t_s), 61.0),
        "enforced_limit_w": limit_w,
        "requested_limit_w": limit_w,
        "utilisation": np.full(len(t_s), 0.93),
    }
    return Columns.of({"t_s": t_s, **columns, "clock_reasons": reasons.astype(np.int64)})


def _gpu_state(uuid: str, duration_s: float) -> GpuState:
    return GpuState(
        uuid=uuid,
        readings=int(duration_s),
        sm_clock_mhz=1755.0,
        max_temperature_c=61.0,
        utilisation=0.93,
        min_limit_w=460.0,
        max_limit_w=700.0,
        requested_limit_w=620.0,
        default_limit_w=700.0,
        throttled=0.7,
        reasons={"sw_power_cap": 0.65, "sw_thermal_slowdown": 0.05},
    )


def _search() -> LimitPart:
    """Return a search whose valley is at 520 W, with a drift of 2 % over its windows."""
    order = [limit for one in _LIMITS_W for limit in ((700.0, one) if one != 700.0 else (one,))]
    tried = tuple(
        TriedLimit(
            limit=limit,
            seconds=12.0,
            step_time_s=0.2 * (1.0 + 0.9 * max((560.0 - limit) / 560.0, 0.0) ** 2) * (1.0 + 0.001 * place),
            step_energy_j=108.0 * (0.84 + 0.16 * ((limit - 500.0) / 200.0) ** 2) * (1.0 + 0.002 * place),
            drawn_w=min(limit, 610.0),
        )
        for place, limit in enumerate([*order, 520.0, 700.0])
    )
    return LimitPart(
        asked="least energy with steps at most 3 % longer",
        back_end="NVML",
        found=700.0,
        chosen=520.0,
        source="search",
        expected_saving=0.148,
        expected_slowdown=0.011,
        confidence=0.97,
        binding=True,
        drawn_w=519.0,
        searches=1,
        search_s=156.0,
        tried=tried,
        put_back="the limit is 700 W again, as it was found",
    )


def _with_ranks(report: Report, count: int) -> Report:
    """Return the report with ``count`` ranks, of which the last but one is 12 % slower."""
    report = replace(report, rank=Rank(rank=0, world_size=count, boot_id="b"))
    slow = count - 2
    parts = [
        replace(
            RankPart.of(report, Rank(rank=rank, world_size=count, boot_id="b" if rank < 8 else "c")),
            gpus=(GpuPart(uuid=f"GPU-{rank}", energy_j=report.total_j, error_bound_j=report.error_bound_j),),
            backward=Backward(
                steps=report.work.steps // _MARKED_EVERY,
                seconds=0.10 if rank == slow else 0.112 + 0.001 * np.sin(rank).item(),
                spread_s=0.0004,
                energy_j=60.0,
            ),
        )
        for rank in range(count)
    ]
    return with_ranks(report, Ranks.merge(parts, count))
