"""By how much two sides of a comparison differ, from a handful of runs: what to hold against what.

The logarithm of what a run drew is the sum of its side, its place, its round and a slope times its start temperature.
Sides, places and rounds are fixed effects, so only runs at the same place and in the same round are held against each
other wherever there are such. Where no place saw both sides its offset cannot be told from the difference: then it is
a random effect of known spread, which widens the interval; and so is the slope where runs are too few to tell it.

Of the models in which a difference can be told, the one counts whose interval should be narrowest, judged by which runs
there are and not by what they drew: to look at that, too, would make chance differences look real.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from energy_plugins.report.linear_model import Floats, Model

PLACE_SPREAD: Final = 0.10 / math.sqrt(3)
"""Standard deviation of a place's offset: that of any value up to 10 % either way. Identical nodes differ by constant
offsets (arXiv:2403.08151), and sensors by some 5 % (arXiv:2312.02741)."""
SLOPE_SPREAD: Final = 0.0025
"""Standard deviation of what a degree at the start changes of what a run draws, where the runs do not tell it better.

An assumption, half a per cent a degree at most: leakage grows with temperature, and nobody has published one number."""
TEMPERATURE_MATTERS_C: Final = 2.0
"""Start temperatures that differ by less are as good as equal: they are read in whole degrees."""
_TINY = 1e-9


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
    fitted: tuple[str, ...]
    """What it is corrected for: some of "place", "round" and "start temperature"."""
    allowed_for: tuple[str, ...]
    """What could not be told from it, so that the interval is wider."""


def difference(logs: Floats, design: Design, side: int, base: int, confidence: float) -> Difference:
    """Return by how much ``side`` differs from ``base``, all runs together.

    Args:
        logs: natural logarithms of what is compared, one for each run.
        design: which run is what; both sides have runs.
        side: which side.
        base: the side that it is held against.
        confidence: with which the interval holds, such as 0.95.
    """
    model = min(_models(design, side, base), key=lambda one: one.expected_half(confidence))
    log = float(model.weights @ logs)
    half = model.half(logs, confidence)
    return Difference(
        log=log,
        low=None if half is None else log - half,
        high=None if half is None else log + half,
        degrees=model.degrees,
        fitted=model.fitted,
        allowed_for=model.allowed_for,
    )


def _models(design: Design, side: int, base: int) -> Iterator[Model]:
    """Yield the models in which the difference can be told; rounds are in them wherever that is possible."""
    names = sorted(set(design.side))
    sides = np.array([[float(one == name) for name in names] for one in design.side])
    wanted = np.array([float(name == side) - float(name == base) for name in names])
    places = _indicators(design.place if len(set(design.place)) > 1 else [""] * len(design.place))
    start = _centred(design.start_c)
    for rounds in (_indicators(design.round), sides[:, :0]):
        found = False
        for with_place, with_slope in product((True, False), repeat=2):
            columns = np.hstack([sides, rounds, places[:, : None if with_place else 0], start[:, :with_slope]])
            target = np.concatenate([wanted, np.zeros(columns.shape[1] - len(wanted))])
            weights = np.linalg.pinv(columns.T) @ target
            if not np.allclose(columns.T @ weights, target, atol=1e-6):
                continue
            fitted = (
                ("round", rounds),
                ("place", places[:, : None if with_place else 0]),
                ("start temperature", start[:, :with_slope]),
            )
            model = Model(
                columns=columns,
                weights=weights,
                fitted=tuple(name for name, part in fitted if part.size),
                place_spread=_small_is_nothing(PLACE_SPREAD * float(np.linalg.norm(weights @ places))),
                slope_spread=_small_is_nothing(SLOPE_SPREAD * float(np.linalg.norm(weights @ start))),
            )
            found = found or model.degrees > 0
            yield model
        if found:
            return


def _small_is_nothing(value: float) -> float:
    return value if value > _TINY else 0.0


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
