"""A report as a page of plain text: what was drawn, where it went, what was wasted, and how sure all of it is."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from energy_plugins.errors import ColumnError
from energy_plugins.measure.aligned import aligned
from energy_plugins.measure.joint_summary import joint_lines
from energy_plugins.measure.limit_summary import limit_lines
from energy_plugins.measure.micro_batch_summary import micro_batch_lines
from energy_plugins.measure.quantity import age_at, bar, bounded, duration, percent, quantity, shares
from energy_plugins.measure.rank_table import in_short
from energy_plugins.measure.rank_table import rows as rank_rows
from energy_plugins.measure.state import NO_THROTTLING
from energy_plugins.units import j_to_wh

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report
    from energy_plugins.measure.report_parts import KindActivity, KindTotal

WIDTH = 100
_LABEL = 14
_NAME = 28
_UUID = 20
_MOST_WARNINGS = 10
_THROTTLED = 0.01
"""Share of the time from which on throttling is worth a line."""
_OWN = 0.8
"""Share of its readings below which a kind's activity is blurred with that of others."""

_SIMULATED = " SIMULATED: joules of a simulated GPU, no measurement of hardware "
_INCOMPLETE = "the run had not ended when this was written; these are the joules settled until then"
_WASTE = (
    ("stall_j", "stall", "nothing was queued between steps"),
    ("data_wait_j", "data wait", "the part of stall inside the data loader"),
    ("peer_wait_j", "peer wait", "waiting for other ranks"),
    ("underfilled_j", "underfilled", "steps too small to fill the GPU (estimate)"),
    ("idle_j", "idle", "what an idle GPU would have drawn"),
)
_OPTIONAL = ("total_j", "error_bound_j", "cpu_j", "dram_j", *(field for field, _, _ in _WASTE))
_SAID_ELSEWHERE = ("total_j", "cpu_estimate_j")
"""The first line says why there is no total; an estimate is there if it was asked for, or a warning says why not."""


def text_table(report: Report) -> str:
    """Return ``report`` as lines of at most `WIDTH` characters, without a trailing newline."""
    blocks = (
        _title(report),
        [*_energy(report), *_work(report)],
        [
            *_devices(report),
            *_held_back(report),
            *micro_batch_lines(report.micro_batch, _entry),
            *limit_lines(report.power_limit, _entry),
            *joint_lines(report.micro_batch, report.power_limit, _entry),
        ],
        _ranks(report),
        [*_kinds(report), *_bounds(report)],
        _waste(report),
        _phases(report),
        [*_estimate(report), *_observer(report), *_warnings(report), *_missing(report)],
    )
    return "\n\n".join("\n".join(_clip(line, WIDTH).rstrip() for line in block) for block in blocks if block)


def _title(report: Report) -> list[str]:
    name = _clean(report.name) or "unnamed run"
    facts = f"run {_clean(report.run_id)} on {_clean(report.node)}, started {_clean(report.started)}"
    title = f"{name}{facts:>{WIDTH - len(name)}}" if len(name) + len(facts) + 2 <= WIDTH else f"{name}  {facts}"
    banner = [_SIMULATED.center(WIDTH, "=")] if report.simulated else []
    incomplete = ["", *_entry("INCOMPLETE", _INCOMPLETE)] if not report.complete else []
    grown = "" if report.micro_batch is None else report.micro_batch.grown
    changed = ["", *_entry("CHANGED", _clean(grown))] if grown else []
    return [*banner, _clip(title, WIDTH), "-" * WIDTH, *incomplete, *changed]


def _energy(report: Report) -> list[str]:
    total, power = report.total_j, report.avg_power_w
    seen = f"readings cover {percent(report.coverage)} of it"
    if total is None:
        why = _clean(report.missing.get("total_j", "no reason was recorded"))
        return [
            *_entry("energy", f"not measured: {why}"),
            *_entry("duration", f"{duration(report.duration_s)}; {seen}"),
        ]
    bound = report.error_bound_j
    joules = quantity(total, "J") if bound is None else f"{bounded(total, bound, 'J')} (95 %)"
    if "avg_power_w" in report.missing:
        joules = f"at least {joules}"
    mean = "" if power is None else f" at {quantity(power, 'W')} on average"
    accuracy = (
        f"beside that bound, the sensor's own scale may be off by about {percent(report.sensor_accuracy, 0)}: "
        "one factor for all joules of a card, so it cancels between runs on one card, not between cards"
    )
    return [
        *_entry("energy", f"{joules} = {quantity(j_to_wh(total), 'Wh')}"),
        *_entry("duration", f"{duration(report.duration_s)}{mean}; {seen}"),
        *_entry("accuracy", accuracy),
        *_above_idle(report),
    ]


def _above_idle(report: Report) -> list[str]:
    if report.idle_j is None or report.above_idle_j is None:
        return []
    known = [device for device in report.devices if device.idle_w is not None]
    idle_w = sum(device.idle_w or 0.0 for device in known)
    ages = sorted({age for device in known if (age := age_at(device.idle_measured, report.started))})
    when = f"; idle power measured {' and '.join(ages)} before" if ages else ""
    how = f" ({quantity(idle_w, 'W')}{when})" if known else ""
    return _entry("above idle", f"{quantity(report.above_idle_j, 'J')} more than idle GPUs would have drawn{how}")


def _work(report: Report) -> list[str]:
    work = report.work
    done = [_counted(work.steps, "step"), _counted(work.samples, "sample"), _counted(work.tokens, "token")]
    rates = [
        _rate(report.joules_per_sample, "J/sample"),
        _rate(report.samples_per_j, "samples/J"),
        _rate(report.tokens_per_j, "tokens/J"),
    ]
    ended = _entry("stopped", _clean(report.stopped)) if report.stopped else []
    lines = [", ".join(part for part in done if part), ", ".join(part for part in rates if part), _mean_step(report)]
    work_lines = [line for i, text in enumerate(filter(None, lines)) for line in _entry("work" if i == 0 else "", text)]
    return work_lines + ended


def _mean_step(report: Report) -> str:
    try:
        energy_j = report.steps["energy_j"]
        length_s = report.steps["end_s"] - report.steps["start_s"]
    except ColumnError as error:
        return _clean(str(error))
    measured = np.isfinite(energy_j) & np.isfinite(length_s)
    count = int(measured.sum())
    if count == 0:
        return ""
    with np.errstate(over="ignore"):
        joules, seconds = float(energy_j[measured].mean()), float(length_s[measured].mean())
    unseen = report.steps.rows - count
    note = f" ({unseen:,} more not measured)" if unseen else ""
    return f"a step on average {quantity(joules, 'J')} in {quantity(seconds, 's')}{note}"


def _devices(report: Report) -> list[str]:
    infos = {device.uuid: device for device in report.devices}
    labels = {uuid: f"gpu {infos[uuid].index}" if uuid in infos else "gpu" for uuid in {**infos, **report.gpu_j}}
    parts = [(label, uuid, report.gpu_j.get(uuid)) for uuid, label in labels.items()]
    fractions = iter(shares([joules for _, _, joules in parts if joules is not None], report.total_j or math.nan))
    rows = []
    for label, uuid, joules in parts:
        model = f"{_clean(infos[uuid].name)}  " if uuid in infos else ""
        what = f"{model}{_clip(_clean(uuid), _UUID)}"
        if joules is None:
            rows.append((label, "not measured", "", "", what))
        else:
            fraction = next(fractions)
            rows.append((label, quantity(joules, "J"), percent(fraction), bar(fraction), what))
    return aligned([*rows, *_host(report)], "<>><<")


def _host(report: Report) -> list[tuple[str, ...]]:
    """Return rows of what is beside the total, and so no share of it."""
    values = (("cpu", report.cpu_j), ("dram", report.dram_j))
    what = "of the whole machine; not in the total"
    return [(label, quantity(joules, "J"), "", "", what) for label, joules in values if joules is not None]


def _estimate(report: Report) -> list[str]:
    if report.cpu_estimate_j is None:
        return []
    return _entry("cpu estimate", f"{quantity(report.cpu_estimate_j, 'J')}; {_clean(report.cpu_estimate_label)}")


def _held_back(report: Report) -> list[str]:
    """Return what kept the GPUs below their best, if anything did."""
    label = {device.uuid: f"gpu {device.index}" for device in report.devices}
    slowed, limited = [], []
    for state in report.gpu_states:
        gpu = label.get(state.uuid, _clip(_clean(state.uuid), _UUID))
        if state.throttled is not None and state.throttled > _THROTTLED:
            because = sorted(
                (-share, _clean(name)) for name, share in state.reasons.items() if name not in NO_THROTTLING
            )
            reasons = ", ".join(f"{name} {percent(-share, 0)}" for share, name in because)
            clock = "" if state.sm_clock_mhz is None else f", SM clock {state.sm_clock_mhz:.0f} MHz on average"
            slowed.append(f"{gpu} {percent(state.throttled)} of the time ({reasons}){clock}")
        requested_w = None if _was_turned(report) else state.requested_limit_w
        for limit_w, name in ((requested_w, "requested"), (state.default_limit_w, "default")):
            if limit_w is not None and state.min_limit_w is not None and state.min_limit_w < limit_w - 1.0:
                limited.append(f"{gpu} {quantity(state.min_limit_w, 'W')}, below its {name} {quantity(limit_w, 'W')}")
    entries = (("throttled", slowed), ("power limit", limited))
    return [line for name, texts in entries if texts for line in _entry(name, "; ".join(texts))]


def _was_turned(report: Report) -> bool:
    """Return whether the run set limits itself: the lowest in force is then below the mean of those requested."""
    part = report.power_limit
    return part is not None and part.unit == "W" and (bool(part.tried) or part.chosen is not None)


def _bounds(report: Report) -> list[str]:
    known = [kind for kind in report.kind_activity if kind.bound is not None]
    texts = [f"{_clean(kind.kind)} {_clean(kind.bound or '')} ({_busy(kind)})" for kind in known]
    return _entry("limited by", "; ".join(texts)) if texts else []


def _busy(kind: KindActivity) -> str:
    parts = (("SM", kind.sm), ("tensor", kind.tensor), ("DRAM", kind.dram))
    shown = [f"{name} {percent(share, 0)}" for name, share in parts if share is not None]
    mixed = [] if kind.own >= _OWN else ["readings shared with other kinds"]
    return ", ".join(shown + mixed)


def _ranks(report: Report) -> list[str]:
    if report.ranks is None:
        return []
    said = [
        line for i, text in enumerate(in_short(report.ranks)) for line in _entry("" if i else "ALL RANKS", _clean(text))
    ]
    table = [[_clean(cell) for cell in row] for row in rank_rows(report.ranks)]
    return [*said, *aligned(table, "><<>>>><")]


def _kinds(report: Report) -> list[str]:
    if not report.kinds:
        return []
    measured = [kind.energy_j for kind in report.kinds if kind.energy_j is not None]
    fractions = iter(shares(measured, report.total_j or math.nan))
    rows = [("where it went", "energy", "share", "", "time", "covered")]
    for kind in report.kinds:
        share = None if kind.energy_j is None else next(fractions)
        cells = ("", "") if share is None else (percent(share), bar(share))
        rows.append((_kind_name(kind), _kind_energy(kind), *cells, duration(kind.duration_s), percent(kind.coverage)))
    return aligned(rows, "<>><>>")


def _phases(report: Report) -> list[str]:
    if not report.phases:
        return []
    rows = [("whole spans", "energy", "count", "each", "time", "covered")]
    for kind in report.phases:
        each = "" if kind.energy_j is None or not kind.count else quantity(kind.energy_j / kind.count, "J")
        time = duration(kind.duration_s)
        rows.append((_kind_name(kind), _kind_energy(kind), f"{kind.count:,}", each, time, percent(kind.coverage)))
    return aligned(rows, "<>>>>>")


def _kind_name(kind: KindTotal) -> str:
    return f"  {_clip(_clean(kind.kind), _NAME)}"


def _kind_energy(kind: KindTotal) -> str:
    if kind.energy_j is None:
        return "not measured"
    return (
        quantity(kind.energy_j, "J") if kind.error_bound_j is None else bounded(kind.energy_j, kind.error_bound_j, "J")
    )


def _waste(report: Report) -> list[str]:
    rows = [("of which", "energy", "share", "", "")]
    for field, label, meaning in _WASTE:
        joules: float | None = getattr(report, field)
        if joules is not None:
            fraction = joules / report.total_j if report.total_j else math.nan
            rows.append((f"  {label}", quantity(joules, "J"), percent(fraction), bar(fraction), meaning))
    return aligned(rows, "<>><<") if len(rows) > 1 else []


def _observer(report: Report) -> list[str]:
    observer = report.observer
    background_s = observer.thread_cpu_s + observer.collect_s
    core = f"{percent(background_s / report.duration_s, 2)} of a core" if report.duration_s > 0 else "the CPU"
    each = f", {quantity(observer.mark_s / observer.marks, 's')} each" if observer.marks else ""
    lost = f"{observer.dropped:,} samples or marks LOST" if observer.dropped else "nothing lost"
    background = f"{core} in the background ({quantity(background_s, 's')}"
    driver = f"{quantity(observer.driver_call_s, 's')} of it in the driver)"
    training = f"training thread {quantity(observer.mark_s, 's')} ({_counted(observer.marks, 'mark')}{each})"
    ranks = f"; other ranks {quantity(observer.ranks_s, 's')}" if observer.ranks_s else ""
    return _entry("measuring", f"{background}, {driver}; {training}{ranks}; {lost}")


def _warnings(report: Report) -> list[str]:
    shown = [_clean(warning) for warning in report.warnings[:_MOST_WARNINGS]]
    if more := len(report.warnings) - len(shown):
        shown.append(f"and {more:,} more in report.json")
    return [line for i, text in enumerate(shown) for line in _entry("WARNINGS" if i == 0 else "", f"- {text}")]


def _missing(report: Report) -> list[str]:
    unexplained = {name: "no reason was recorded" for name in _OPTIONAL if getattr(report, name) is None}
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in {**unexplained, **report.missing}.items():
        if name in _SAID_ELSEWHERE:
            continue
        names_by_reason.setdefault(_clean(reason), []).append(_clean(name))
    entries = [f"{', '.join(names)}: {reason}" for reason, names in names_by_reason.items()]
    return [line for i, text in enumerate(entries) for line in _entry("not measured" if i == 0 else "", text)]


def _entry(label: str, text: str) -> list[str]:
    indent = " " * _LABEL
    return textwrap.wrap(text, WIDTH, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=indent) or [label]


def _counted(count: int | None, noun: str) -> str:
    return "" if count is None else f"{count:,} {noun}{'' if count == 1 else 's'}"


def _rate(value: float | None, unit: str) -> str:
    return "" if value is None else quantity(value, unit)


def _clean(text: str) -> str:
    """Return ``text`` on one line, with nothing in it that a terminal would act on."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
