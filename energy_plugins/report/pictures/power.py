"""Power over time, with what training was doing, the limits in force and what held the clocks down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.quantity import duration
from energy_plugins.measure.report import Report
from energy_plugins.measure.state import NO_THROTTLING, REASONS
from energy_plugins.report.pictures.doing import doing
from energy_plugins.report.pictures.picture import MOST_SHARES, Missing, Picture, Shares, edges, of_one_rank
from energy_plugins.report.pictures.trace import MOST, ROWS_A_TIME, Array, Stretches, Trace, trace_of

NAME: Final = "power"
TITLE: Final = "Power over time"
_CLASSES: Final = {
    "sw_power_cap": "power limit",
    "hw_power_brake_slowdown": "power limit",
    "board_limit": "power limit",
    "sw_thermal_slowdown": "heat",
    "hw_thermal_slowdown": "heat",
}
"""Reasons for low clocks, in the words of the picture; those that are not here are others."""
_OTHER: Final = "another reason"
_MOST_GPUS: Final = 16


@dataclass(frozen=True, eq=False)
class GpuPower:
    """One GPU."""

    name: str
    power_w: Trace
    limit_w: Trace | None
    """The power limit in force; None where it is not known."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PowerPicture(Picture):
    """All GPUs over the run's time, in seconds since it began."""

    duration_s: float
    gpus: tuple[GpuPower, ...]
    doing: Shares
    held_back: Shares | None
    """By what, as shares of readings, mean over the GPUs; None if nothing held them back, or nothing is known."""


def power_picture(report: Report) -> PowerPicture | Missing:
    """Return the picture, or why there is none.

    Raises:
        ColumnError: the columns may not be read.
    """
    names = {device.uuid: f"gpu {device.index}" for device in report.devices}
    gpus = tuple(
        GpuPower(
            name=names.get(uuid, uuid),
            power_w=trace_of(power, "t_s", "power_w", report.duration_s),
            limit_w=_limit(report.state.get(uuid), report.duration_s),
        )
        for uuid, power in list(report.power.items())[:_MOST_GPUS]
    )
    gpus = tuple(gpu for gpu in gpus if np.isfinite(gpu.power_w.mean).any())
    if not gpus:
        return Missing(name=NAME, title=TITLE, why="no power samples were kept")
    caption = "What each GPU drew"
    if any(gpu.power_w.low is not None for gpu in gpus):
        each = duration(report.duration_s / len(gpus[0].power_w.at))
        caption += f": the line is the mean of {each}, the band reaches from the lowest to the highest sample in it"
    else:
        caption += ", each sample of the sensor"
    held_back = _held_back(report)
    strips = "Below, how that time was spent" + (", and what held the clocks down." if held_back else ".")
    left_out = len(report.power) - _MOST_GPUS
    more = f" {left_out} more GPUs are not drawn." if left_out > 0 else ""
    return PowerPicture(
        name=NAME,
        title=TITLE,
        caption=f"{caption}. {strips}{more}{of_one_rank(report)}",
        duration_s=report.duration_s,
        gpus=gpus,
        doing=doing(report),
        held_back=held_back,
    )


def _limit(state: Columns | None, end_s: float) -> Trace | None:
    """Return the limit in force, where several readings make a point the lowest of them; else the one asked for."""
    if state is None:
        return None
    for column in ("enforced_limit_w", "requested_limit_w"):
        trace = trace_of(state, "t_s", column, end_s)
        if np.isfinite(trace.mean).any():
            return _held(replace(trace, mean=trace.lowest, low=None, high=None))
    return None


def _held(trace: Trace) -> Trace:
    """Return a line that keeps its value until the next one, from the first value that is known."""
    known = np.isfinite(trace.mean)
    at, values = trace.at[known], trace.mean[known]
    changed = np.flatnonzero(np.diff(values, prepend=np.nan, append=np.nan) != 0)
    kept = np.unique(np.concatenate([changed[changed < len(at)], [len(at) - 1]]))
    return Trace(at[kept], values[kept])


def _held_back(report: Report) -> Shares | None:
    readings = max((state.rows for state in report.state.values()), default=0)
    if not readings or not 0 < report.duration_s < MOST:
        return None
    count = min(readings, MOST_SHARES)
    found: dict[str, list[Stretches]] = {}
    for state in report.state.values():
        held = {name: Stretches(report.duration_s, count) for name in (*dict.fromkeys(_CLASSES.values()), _OTHER)}
        for rows in state.windows(ROWS_A_TIME, ("t_s", "clock_reasons")):
            known = rows["clock_reasons"] >= 0
            for name, stretches in held.items():
                stretches.add(rows["t_s"][known], (rows["clock_reasons"][known] & _bits(name)) != 0)
        for name, stretches in held.items():
            found.setdefault(name, []).append(stretches)
    shares = [(name, np.array([one.mean for one in each])) for name, each in found.items()]
    drawn = tuple((name, np.nan_to_num(_mean(each))) for name, each in shares if np.nansum(each) > 0)
    return Shares(edges(report.duration_s, count), drawn) if drawn else None


def _bits(name: str) -> int:
    """Return the bits of a class of reasons."""
    return sum(
        bit for bit, reason in REASONS.items() if reason not in NO_THROTTLING and _CLASSES.get(reason, _OTHER) == name
    )


def _mean(each: Array) -> Array:
    """Return the mean over the rows that have a value, NaN where none has one."""
    known = np.isfinite(each)
    count = known.sum(axis=0)
    total = np.where(known, each, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(each.shape[1:], np.nan), where=count > 0))
