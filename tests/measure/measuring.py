"""What the tests of measuring share: marks by hand, samples of a known power, and steps in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.response import Response
from energy_plugins.measure.spans import KindCodes
from energy_plugins.testing import Simulation

Simulated: TypeAlias = Callable[..., Simulation]
Pieces: TypeAlias = Sequence[tuple[int, float]]
"""``(from_ns, power_w)``, in order."""

MS = 1_000_000
SECOND = 1_000_000_000
RUN, STEP, WAIT = KindCodes.RUN, KindCodes.STEP, KindCodes.DATA_WAIT

_MARKS = [("host_ns", "i8"), ("gpu_ns", "i8"), ("code", "u2"), ("begin", "u1"), ("samples", "i8"), ("tokens", "i8")]
_POWER = [("t_ns", "i8"), ("power_w", "f8")]
_COUNTER = [("before_ns", "i8"), ("after_ns", "i8"), ("energy_j", "f8"), ("edge", "u1")]

POWER_W = 300.0
"""Of the simulated GPUs of most tests."""
SAMPLES, COUNTER = "nvmlDeviceGetSamples", "nvmlDeviceGetTotalEnergyConsumption"
"""The calls that measuring rests on where a GPU has both."""


def begin(code: int, host_ns: int, gpu_ns: int = -1) -> tuple[int, ...]:
    return host_ns, gpu_ns, code, 1, -1, -1


def end(code: int, host_ns: int, gpu_ns: int = -1, *, samples: int = -1, tokens: int = -1) -> tuple[int, ...]:
    return host_ns, gpu_ns, code, 0, samples, tokens


def log(*rows: tuple[int, ...]) -> NDArray[np.void]:
    """Return marks as the native log hands them out."""
    return np.array(list(rows), _MARKS)


def power_rows(t_ns: NDArray[np.int64], power_w: NDArray[np.float64]) -> NDArray[np.void]:
    """Return samples as the sampler's ring hands them out."""
    rows = np.empty(len(t_ns), _POWER)
    rows["t_ns"], rows["power_w"] = t_ns, power_w
    return rows


def counter_rows(*rows: tuple[int, int, float, int]) -> NDArray[np.void]:
    """Return counter readings as the sampler's ring hands them out."""
    return np.array(list(rows), _COUNTER)


def energy_j(pieces: Pieces, start_ns: int, end_ns: int) -> float:
    """Return the true energy of a piecewise constant power; the first piece also rules the time before it."""
    bounds = [-(2**62), *(from_ns for from_ns, _ in pieces[1:]), 2**62]
    overlaps_ns = (max(0, min(until_ns, end_ns) - max(from_ns, start_ns)) for from_ns, until_ns in pairwise(bounds))
    return sum(overlap_ns * 1e-9 * power_w for overlap_ns, (_, power_w) in zip(overlaps_ns, pieces, strict=True))


def sense(pieces: Pieces, t_ns: NDArray[np.int64], response: Response) -> NDArray[np.float64]:
    """Return what a first-order sensor shows at ``t_ns``, in closed form from piece to piece."""
    lag_ns, dead_ns = response.lag_s * 1e9, round(response.dead_time_s * 1e9)
    shown = []
    for seen_ns in (t_ns - dead_ns).tolist():
        value = pieces[0][1]
        for number, (from_ns, power_w) in enumerate(pieces):
            until_ns = pieces[number + 1][0] if number + 1 < len(pieces) else seen_ns
            if seen_ns <= from_ns:
                break
            value = power_w + (value - power_w) * math.exp(-(min(until_ns, seen_ns) - from_ns) / lag_ns)
        shown.append(value)
    return np.array(shown)


def lasted_s(steps: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return how long each step took; in virtual time a driver call inside it makes it longer."""
    return np.asarray(steps["end_s"] - steps["start_s"])


def until(simulation: Simulation, t_ns: int) -> None:
    """Advance virtual time to ``t_ns``; driver calls may have moved it there already."""
    simulation.advance(max(t_ns - simulation.clock.now_ns(), 0) * 1e-9)
