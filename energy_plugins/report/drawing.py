"""Pictures drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from energy_plugins.measure.quantity import percent, quantity
from energy_plugins.report.extras import needed
from energy_plugins.report.pictures.picture import GPU_COLOURS, Picture, Shares, colour_of
from energy_plugins.report.pictures.power import PowerPicture
from energy_plugins.report.pictures.ranks import RankPicture
from energy_plugins.report.pictures.search import SearchPicture
from energy_plugins.report.pictures.steps import StepPicture
from energy_plugins.report.pictures.where import WherePicture
from energy_plugins.report.readable import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALL: Final = 8
_STRAGGLER: Final = "#b3261e"
_TIMES: Final = ((2 * 86400.0, 86400.0, "days"), (7200.0, 3600.0, "h"), (600.0, 60.0, "min"))
"""From which length on time is drawn in larger units."""


def draw(picture: Picture, figure: Figure) -> None:
    """Draw ``picture`` on an empty figure."""
    match picture:
        case PowerPicture():
            _power(picture, figure)
        case StepPicture():
            _steps(picture, figure)
        case WherePicture():
            _where(picture, figure)
        case RankPicture():
            _ranks(picture, figure)
        case SearchPicture():
            _search(picture, figure)


def _power(picture: PowerPicture, figure: Figure) -> None:
    strips = [shares for shares in (picture.doing, picture.held_back) if shares and shares.by_name]
    heights = [1.0, *([0.12] * len(strips))]
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    scale, unit = next(((s, name) for least, s, name in _TIMES if picture.duration_s >= least), (1.0, "s"))
    for place, gpu in enumerate(picture.gpus):
        colour, trace = GPU_COLOURS[place % len(GPU_COLOURS)], gpu.power_w
        at = trace.at / scale
        axes[0].plot(at, trace.mean, color=colour, linewidth=0.8, label=_name(gpu.name))
        if trace.low is not None and trace.high is not None:
            axes[0].fill_between(at, trace.low, trace.high, color=colour, alpha=0.25, linewidth=0)
        if gpu.limit_w is not None:
            limit = gpu.limit_w
            ends = np.append(limit.at, picture.duration_s) / scale
            label = "limit in force" if place == 0 else None
            values = np.append(limit.mean, limit.mean[-1])
            axes[0].step(ends, values, where="post", color=colour, linestyle="--", linewidth=0.8, label=label)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("power (W)")
    axes[0].legend(fontsize=_SMALL, loc="lower right")
    for one, shares in zip(axes[1:], strips, strict=True):
        _strip(one, shares, scale)
        one.set_ylabel("time" if shares is picture.doing else "held by", fontsize=_SMALL, rotation=0, ha="right")
    axes[-1].set_xlabel(f"time ({unit})")
    axes[-1].set_xlim(0.0, picture.duration_s / scale)


def _strip(axes: Axes, shares: Shares, scale: float) -> None:
    below = np.zeros(len(shares.edges_s) - 1)
    for place, (name, share) in enumerate(shares.by_name):
        colour = colour_of(name, place)
        axes.stairs(below + share, shares.edges_s / scale, baseline=below, fill=True, color=colour, label=_name(name))
        below = below + share
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks([])
    axes.legend(fontsize=6, ncols=len(shares.by_name), loc="upper left", bbox_to_anchor=(0.0, 1.9), frameon=False)


def _steps(picture: StepPicture, figure: Figure) -> None:
    axes, trace, bound = figure.subplots(), picture.energy_j, picture.error_bound_j
    if trace.low is not None and trace.high is not None:
        label = "least to most"
        axes.fill_between(trace.at, trace.low, trace.high, color="#56b4e9", alpha=0.35, linewidth=0, label=label)
    label = "95 % error bound"
    axes.fill_between(
        trace.at, trace.mean - bound, trace.mean + bound, color="#e69f00", alpha=0.5, linewidth=0, label=label
    )
    axes.plot(trace.at, trace.mean, color="#0072b2", linewidth=0.8, label="mean" if trace.low is not None else "step")
    axes.set_xlabel("step")
    axes.set_ylabel("energy (J)")
    axes.legend(fontsize=_SMALL)


def _where(picture: WherePicture, figure: Figure) -> None:
    axes = figure.subplots()
    bars = [*picture.work, *picture.waste]
    gap = 0.6 if picture.waste else 0.0
    places = [place + (gap if place >= len(picture.work) else 0.0) for place in range(len(bars))]
    for place, bar in zip(places, bars, strict=True):
        axes.barh(place, bar.energy_j, height=0.7, color=colour_of(bar.name), xerr=bar.error_bound_j)
        text = f" {quantity(bar.energy_j, 'J')}  {percent(bar.share)}"
        axes.text(bar.energy_j + (bar.error_bound_j or 0.0), place, text, va="center", fontsize=_SMALL)
    names = [*(one.name for one in picture.work), *(f"of which {one.name}" for one in picture.waste)]
    axes.set_yticks(places, [_name(name) for name in names], fontsize=_SMALL)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.25 * max(bar.energy_j + (bar.error_bound_j or 0.0) for bar in bars))
    axes.set_xlabel("energy")
    axes.xaxis.set_major_formatter(needed("matplotlib.ticker", "a PNG").EngFormatter("J"))


def _ranks(picture: RankPicture, figure: Figure) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    place = np.arange(len(picture.bars))
    waits = {
        "peer wait": [bar.peer_wait_j or 0.0 for bar in picture.bars],
        "data wait": [bar.data_wait_j or 0.0 for bar in picture.bars],
        "stall": [bar.stall_j or 0.0 for bar in picture.bars],
    }
    worked = np.array([bar.energy_j or 0.0 for bar in picture.bars]) - np.sum([*waits.values()], axis=0)
    bottom = np.maximum(worked, 0.0)  # waits are estimates
    above.bar(place, bottom, color="#0072b2", label="at work")
    for name, joules in waits.items():
        if any(joules):
            above.bar(place, joules, bottom=bottom, color=colour_of(name), label=name)
            bottom = bottom + joules
    above.set_ylabel("energy (J)")
    above.legend(fontsize=_SMALL)
    colours = [_STRAGGLER if bar.straggles else "#56b4e9" for bar in picture.bars]
    seconds = [np.nan if bar.backward_s is None else bar.backward_s for bar in picture.bars]
    below.bar(place, seconds, color=colours, yerr=[bar.backward_spread_s for bar in picture.bars])
    below.set_ylabel("backward (s)")
    if len(picture.bars) <= 32:
        below.set_xticks(place, [f"{bar.rank}{' (late)' if bar.straggles else ''}" for bar in picture.bars])
    below.set_xlabel("rank")


def _search(picture: SearchPicture, figure: Figure) -> None:
    axes = figure.subplots()
    at = [one.setting for one in picture.means]
    lines = (
        (
            "energy of a step",
            "#0072b2",
            "o",
            [one.energy for one in picture.means],
            [one.energy for one in picture.windows],
        ),
        ("time of a step", "#d55e00", "s", [one.time for one in picture.means], [one.time for one in picture.windows]),
    )
    for name, colour, marker, means, windows in lines:
        axes.plot(at, 100 * np.array(means), color=colour, marker=marker, markersize=4, label=name)
        settings = [one.setting for one in picture.windows]
        axes.scatter(settings, 100 * np.array(windows), color=colour, marker=marker, s=6, alpha=0.4)
    axes.axvline(picture.found, color="#59636e", linestyle=":", label="found")
    if picture.chosen is not None and picture.chosen != picture.found:
        axes.axvline(picture.chosen, color="#1b1f24", label="chosen")
    if picture.logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xlabel(picture.setting)
    axes.set_ylabel("against the one found (%)")
    axes.legend(fontsize=_SMALL)


def _name(text: str) -> str:
    """Return a name in which matplotlib finds no formula, and that it does not hide."""
    return readable(text).replace("$", r"\$").lstrip("_")
