"""By how much two sides of a comparison differ, from a handful of runs: what to hold against what.

The logarithm of what a run drew is the sum of its side, its place, its round and a slope times its start temperature.
Sides, places and rounds are fixed effects, so only runs at the same place and in the same round are held against each
other wherever there are such. Where no place saw both sides its offset cannot be told from the difference: then it is
a random effect of assumed spread, which widens the interval. The slope always is one: a few runs tell little of it.

Which effects are fixed depends on which runs there are, never on what they drew: to look at that, too, would make
chance differences look real.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from energy_plugins.report.comparison.linear_model import Floats, Model

PLACE_SPREAD: Final = 0.10 / math.sqrt(3)
"""Standard deviation of a place's offset: that of any value up to 10 % either way. Identical nodes differ by constant
offsets (arXiv:2403.08151), and sensors by some 5 % (arXiv:2312.02741)."""
SLOPE_SPREAD: Final = 0.0025
"""Standard deviation of what a degree at the start changes of what a run draws.

An assumption, half a per cent a degree at most: leakage grows with temperature, and nobody has published one number."""
TEMPERATURE_MATTERS_C: Final = 2.0
"""Start temperatures that differ by less are as good as equal: they are read in whole degrees."""
_NOTHING = 1e-6
"""What is left of effects that cancel, by rounding."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """Which run is what; each a sequence with a value for each run."""

    side: Sequence[int]
    place: Sequence[str]
    """Its node and GPUs."""
    round: Sequence[str]
    """Runs that were made one after the other, as a pair for example; empty for a run that belongs to no round."""
    start_c: Sequence[float | None]
    """Temperature of its GPUs when it began."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference of logarithms, and the interval in which it lies; None where it cannot be told."""

    log: float
    low: float | None
    high: float | None
    degrees: int
    """Of freedom: runs less what was fitted."""
    corrected_for: tuple[str, ...]
    """Some of "place", "round" and "start temperature"."""
    places_confounded: bool
    """Whether offsets of places cannot be told from it, so that the interval allows for them."""


def difference(logs: Floats, design: Design, side: int, base: int, confidence: float) -> Difference:
    """Return by how much ``side`` differs from ``base``, all runs together.

    Args:
        logs: natural logarithms of what is compared, one for each run.
        design: which run is what; both sides have runs.
        side: which side.
        base: the side that it is held against.
        confidence: with which the interval holds, such as 0.95.
    """
    rounds, places, start = _indicators(design.round), _indicators(design.place), _centred(design.start_c)
    places = places if places.shape[1] > 1 else places[:, :0]
    for with_places, with_rounds in product((True, False), repeat=2):
        fitted = {"place": places[:, : None if with_places else 0], "round": rounds[:, : None if with_rounds else 0]}
        model = _model(design, side, base, fitted, np.hstack([PLACE_SPREAD * places, SLOPE_SPREAD * start]))
        if model.can_tell:
            break
    weights, half = model.weights, model.half(logs, confidence)
    log = float(weights @ logs)
    corrected = {**fitted, "start temperature": start}
    return Difference(
        log=log,
        low=None if half is None else log - half,
        high=None if half is None else log + half,
        degrees=model.degrees,
        corrected_for=tuple(name for name, columns in corrected.items() if columns.size),
        places_confounded=bool(np.linalg.norm(weights @ places) > _NOTHING),
    )


def _model(design: Design, side: int, base: int, fitted: Mapping[str, Floats], random: Floats) -> Model:
    names = sorted(set(design.side))
    sides = np.array([[float(one == name) for name in names] for one in design.side])
    fixed = np.hstack([sides, *fitted.values()])
    wanted = np.zeros(fixed.shape[1])
    wanted[names.index(side)], wanted[names.index(base)] = 1.0, -1.0
    same_size = len(names) == 2 and len({design.side.count(name) for name in names}) == 1
    return Model(fixed=fixed, random=random, wanted=wanted, equal=same_size or bool(fitted["round"].size))


def _indicators(names: Sequence[str]) -> Floats:
    """Return a column for each name but the empty one, 1 where a run has it."""
    levels = sorted(set(names) - {""})
    return np.array([[float(one == level) for level in levels] for one in names], dtype=np.float64)


def _centred(start_c: Sequence[float | None]) -> Floats:
    """Return start temperatures less their mean as a column; no column where one is unknown or all are alike."""
    known = [one for one in start_c if one is not None]
    if len(known) < len(start_c) or max(known) - min(known) < TEMPERATURE_MATTERS_C:
        return np.empty((len(start_c), 0))
    return np.array([[one - math.fsum(known) / len(known)] for one in known], dtype=np.float64)
