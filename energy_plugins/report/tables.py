"""The numbers behind a picture, for those who cannot see it or want to copy them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from energy_plugins.measure.quantity import bounded, percent, quantity
from energy_plugins.report.pictures.picture import Picture
from energy_plugins.report.pictures.power import PowerPicture
from energy_plugins.report.pictures.ranks import RankPicture
from energy_plugins.report.pictures.search import SearchPicture
from energy_plugins.report.pictures.steps import StepPicture
from energy_plugins.report.pictures.trace import Array, Trace
from energy_plugins.report.pictures.where import Slice, WherePicture

MOST_ROWS: Final = 40
Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text below a heading."""

    heading: Row
    rows: tuple[Row, ...]


def table_of(picture: Picture) -> Table:
    """Return the numbers of a picture; of long lines some `MOST_ROWS` points at equal distances."""
    match picture:
        case WherePicture():
            bars = [*(_slice(one, "") for one in picture.work), *(_slice(one, "of which ") for one in picture.waste)]
            return Table(("what", "energy", "share", "remark"), tuple(bars))
        case PowerPicture():
            rows = [
                (gpu.name, quantity(gpu.power_w.at[place], "s"), *_extremes(gpu.power_w, place, "W"))
                for gpu in picture.gpus
                for place in _some(len(gpu.power_w.at))
            ]
            return Table(("GPU", "time", "mean", "lowest", "highest"), tuple(rows))
        case StepPicture():
            rows = [_step(picture, place) for place in _some(len(picture.energy_j.at))]
            return Table(("step", "mean", "lowest", "highest", "error bound"), tuple(rows))
        case RankPicture():
            return Table(
                ("rank", "node", "energy", "data wait", "other stall", "peer wait", "backward", "remark"),
                tuple(
                    (
                        str(bar.rank),
                        bar.node,
                        *(_known(joules, "J") for joules in (bar.energy_j, bar.data_wait_j, bar.stall_j)),
                        _known(bar.peer_wait_j, "J"),
                        _known(bar.backward_s, "s"),
                        "the others wait for it" if bar.straggles else "",
                    )
                    for bar in picture.bars
                ),
            )
        case SearchPicture():
            return Table(
                (picture.setting, "energy of a step", "time of a step", "remark"),
                tuple(
                    (
                        f"{mean.setting:g}",
                        _change(mean.energy),
                        _change(mean.time),
                        "chosen"
                        if mean.setting == picture.chosen
                        else "found"
                        if mean.setting == picture.found
                        else "",
                    )
                    for mean in picture.means
                ),
            )
        case _:
            return Table((), ())


def with_bound(joules: float, bound_j: float) -> str:
    """Return joules and their error bound, as a page writes them."""
    return bounded(joules, bound_j, "J").replace("+/-", "±")


def _slice(one: Slice, prefix: str) -> Row:
    joules = quantity(one.energy_j, "J")
    if one.error_bound_j is not None:
        joules = with_bound(one.energy_j, one.error_bound_j)
    return f"{prefix}{one.name}", joules, percent(one.share), one.note


def _step(picture: StepPicture, place: int) -> Row:
    bound = picture.error_bound_j[place]
    number = f"{picture.energy_j.at[place]:,.0f}"
    return number, *_extremes(picture.energy_j, place, "J"), _known(float(bound), "J")


def _extremes(trace: Trace, place: int, unit: str) -> Row:
    return tuple(_known(float(values[place]), unit) for values in (trace.mean, trace.lowest, trace.highest))


def _some(count: int) -> Sequence[int]:
    places: Array = np.linspace(0, count - 1, min(count, MOST_ROWS))
    return [round(place) for place in places.tolist()]


def _known(value: float | None, unit: str) -> str:
    return "-" if value is None or math.isnan(value) else quantity(value, unit)


def _change(share: float) -> str:
    return f"{100 * share:+.1f} %"
