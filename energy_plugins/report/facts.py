"""What a page says in words and tables: the figures at its top, the GPUs, the cost of measuring, what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from energy_plugins.measure.quantity import duration, percent, quantity
from energy_plugins.measure.report import Report
from energy_plugins.measure.state import NO_THROTTLING
from energy_plugins.report.tables import Table, with_bound
from energy_plugins.units import j_to_wh

_SAID_ELSEWHERE: Final = ("cpu_estimate_j",)


@dataclass(frozen=True)
class Tile:
    """A figure at the top of a page."""

    label: str
    value: str
    note: str = ""


def tiles(report: Report) -> tuple[Tile, ...]:
    """Return the figures that come first; what was not measured says why."""
    work = report.work
    found = [_energy(report), _duration(report)]
    if report.avg_power_w is not None:
        found.append(Tile("mean power", quantity(report.avg_power_w, "W")))
    if work.steps:
        amounts = ((work.samples, "samples"), (work.tokens, "tokens"))
        found.append(
            Tile("steps", f"{work.steps:,}", ", ".join(f"{n:,} {noun}" for n, noun in amounts if n is not None))
        )
    if report.joules_per_sample is not None:
        found.append(Tile("per sample", quantity(report.joules_per_sample, "J")))
    if report.tokens_per_j is not None:
        found.append(Tile("tokens per joule", f"{report.tokens_per_j:.4g}"))
    ranks = report.ranks
    if ranks is not None and ranks.world_size > 1 and ranks.total_j is not None:
        joules = with_bound(ranks.total_j, ranks.error_bound_j or 0.0)
        found.append(Tile("all ranks", joules, f"{len(ranks.rows)} of {ranks.world_size} ranks, {ranks.gpus} GPUs"))
    host = [(name, joules) for name, joules in (("CPU", report.cpu_j), ("DRAM", report.dram_j)) if joules is not None]
    if host:
        text = ", ".join(f"{name} {quantity(joules, 'J')}" for name, joules in host)
        found.append(Tile("beside the GPUs", text, "of the whole machine, not in the total"))
    return tuple(found)


def _energy(report: Report) -> Tile:
    label = "energy of this rank" if report.rank and not report.rank.alone else "energy"
    if report.total_j is None:
        return Tile(label, "not measured", report.missing.get("total_j", "no reason was recorded"))
    joules = quantity(report.total_j, "J")
    if report.error_bound_j is not None:
        joules = with_bound(report.total_j, report.error_bound_j)
    least = "at least " if "avg_power_w" in report.missing else ""
    scale = f"; the sensor's own scale may be off by {percent(report.sensor_accuracy, 0)}"
    return Tile(label, f"{least}{joules}", f"{quantity(j_to_wh(report.total_j), 'Wh')}, 95 % bound{scale}")


def _duration(report: Report) -> Tile:
    return Tile("duration", duration(report.duration_s), f"readings cover {percent(report.coverage)} of it")


def gpu_table(report: Report) -> Table:
    """Return a row for each GPU: its joules, its sensors, its clocks and what held them down."""
    states = {state.uuid: state for state in report.gpu_states}
    infos = {device.uuid: device for device in report.devices}
    rows = []
    for uuid in {**infos, **report.gpu_j}:
        info, state, joules = infos.get(uuid), states.get(uuid), report.gpu_j.get(uuid)
        limits: tuple[str, ...] = ()
        clock = heat = held = "-"
        if state is not None:
            clock = "-" if state.sm_clock_mhz is None else f"{state.sm_clock_mhz:.0f} MHz"
            heat = "-" if state.max_temperature_c is None else f"{state.max_temperature_c:.0f} °C"
            limits = tuple("" if w is None else f"{w:.0f}" for w in (state.min_limit_w, state.max_limit_w))
            held = _held(state.throttled, dict(state.reasons))
        limit = " to ".join(dict.fromkeys(text for text in limits if text))
        rows.append(
            (
                "GPU" if info is None else f"{info.index}: {info.name}",
                "not measured" if joules is None else quantity(joules, "J"),
                f"{limit} W" if limit else "-",
                clock,
                heat,
                held,
                "-" if info is None else ", ".join(info.sensors),
                "-" if info is None else info.others.company.value,
            )
        )
    heading = ("GPU", "energy", "power limit", "SM clock", "hottest", "held back", "sensors", "others on it")
    return Table(heading, tuple(rows))


def _held(throttled: float | None, reasons: dict[str, float]) -> str:
    if throttled is None:
        return "-"
    names = ", ".join(name for name, share in reasons.items() if name not in NO_THROTTLING and share > 0)
    return f"{percent(throttled)} of the time ({names})" if names else percent(throttled)


def cost_table(report: Report) -> Table:
    """Return what measuring cost, as it was measured in this very run."""
    seen, run_s = report.observer, report.duration_s

    def share(seconds: float) -> str:
        return percent(seconds / run_s, 3) if run_s > 0 else ""

    lost = f"{seen.dropped:,} samples or marks LOST" if seen.dropped else "nothing"
    rows = [
        ("sampling thread", quantity(seen.thread_cpu_s, "s"), share(seen.thread_cpu_s), "CPU time, in the background"),
        ("in the driver", quantity(seen.driver_call_s, "s"), share(seen.driver_call_s), "part of the row above"),
        ("joules from samples", quantity(seen.collect_s, "s"), share(seen.collect_s), "CPU time, in the background"),
        (
            "training thread",
            quantity(seen.mark_s, "s"),
            share(seen.mark_s),
            f"{seen.marks:,} marks, {seen.events:,} of them with an event on the GPU",
        ),
        ("telling other ranks", quantity(seen.ranks_s, "s"), share(seen.ranks_s), "CPU time, in the background"),
        ("lost on the way", lost, "", "because a buffer was full"),
    ]
    return Table(("what", "time", "share of the run", "remark"), tuple(rows))


def missing_table(report: Report) -> Table:
    """Return what was not measured, and why; what has one reason stands in one row."""
    names: dict[str, list[str]] = {}
    for name, why in report.missing.items():
        if name not in _SAID_ELSEWHERE:
            names.setdefault(why, []).append(name)
    return Table(("not measured", "why"), tuple((", ".join(some), why) for why, some in names.items()))
