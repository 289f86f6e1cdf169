"""What all pictures have in common, and the colours in which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from energy_plugins.measure.report import Report
from energy_plugins.report.pictures.trace import Array

MOST_SHARES: Final = 300
"""Stretches of time of which a strip tells the shares: as narrow as can still be told apart on a screen."""

COLOURS: Final = {
    "forward": "#56b4e9",
    "backward": "#0072b2",
    "optimizer": "#cc79a7",
    "step": "#4c8eda",
    "rest of steps": "#4c8eda",
    "data wait": "#e69f00",
    "stall": "#d55e00",
    "peer wait": "#b33f62",
    "underfilled": "#c9a227",
    "validation": "#009e73",
    "test": "#5fbf9f",
    "prediction": "#5fbf9f",
    "checkpoint": "#8f6bb3",
    "idle": "#8a8f98",
    "outside of steps": "#a7adb5",
    "power limit": "#9aa83a",
    "heat": "#c0392b",
    "another reason": "#8f6bb3",
    "complete": "#009e73",
    "pruned": "#e69f00",
    "failed": "#d55e00",
    "running": "#56b4e9",
}
"""By what is drawn, after Okabe and Ito's palette, which people who see few colours can tell apart."""
GPU_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8f6bb3", "#c9a227")
"""By place, again and again."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """One picture: what it is called and what it shows."""

    name: str
    """Of its files, and its place in a page."""
    title: str
    caption: str
    """What is drawn, and what a point of it stands for."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A picture that there is nothing to draw of."""

    name: str
    title: str
    why: str


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of what is going on, in equal stretches of time."""

    edges_s: Array
    by_name: tuple[tuple[str, Array], ...]
    """What it is, and its share of each stretch, 0 to 1; NaN where nothing is known."""


def colour_of(name: str, place: int = 0) -> str:
    """Return the colour of what is called ``name``; what has none gets one by its place."""
    return COLOURS.get(name) or GPU_COLOURS[place % len(GPU_COLOURS)]


def edges(end: float, count: int) -> Array:
    """Return the ends of ``count`` equal stretches from 0 to ``end``."""
    return np.linspace(0.0, end, count + 1)


def counted(count: int, noun: str) -> str:
    """Return ``3 steps``, ``1 step``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def of_one_rank(report: Report) -> str:
    """Return what a caption adds where what is drawn is of this process alone, and there are others."""
    rank = report.rank
    if rank is None or rank.alone:
        return ""
    return f" This is rank {rank.rank} of {rank.world_size} alone."
