"""What a simulated GPU draws when nothing is launched on it: scripts of power over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

IDLE_W = 120.0
PEAK_W = 700.0


class Load(Protocol):
    """A power script, counted from the moment it is played."""

    def script(self) -> Script:
        """Return the same power as pieces."""


@dataclass(frozen=True)
class Script:
    """Pieces of ``(duration_s, power_w)`` one after the other, from the start again when ``repeat``.

    Without ``repeat`` the last power holds.
    """

    pieces: Sequence[tuple[float, float]]
    repeat: bool = True

    def __post_init__(self) -> None:
        """Refuse what no device could play."""
        if not self.pieces or any(duration_s < 1e-9 for duration_s, _ in self.pieces):
            raise ValueError("a script needs at least one piece, and every piece at least one nanosecond")

    def script(self) -> Script:
        """Return itself."""
        return self


@dataclass(frozen=True)
class Constant:
    """``power_w`` for ever."""

    power_w: float

    def script(self) -> Script:
        """One piece that holds."""
        return Script([(1.0, self.power_w)], repeat=False)


@dataclass(frozen=True)
class Step:
    """``before_w``, and from ``at_s`` on ``after_w``."""

    before_w: float
    after_w: float
    at_s: float

    def script(self) -> Script:
        """Two pieces, of which the second holds."""
        return Script([(self.at_s, self.before_w), (1.0, self.after_w)], repeat=False)


@dataclass(frozen=True)
class Square:
    """A square wave that begins high; ``duty`` is the share of the period at ``high_w``."""

    low_w: float
    high_w: float
    period_s: float
    duty: float = 0.5

    def script(self) -> Script:
        """Two pieces, repeated."""
        high_s = self.period_s * self.duty
        return Script([(high_s, self.high_w), (self.period_s - high_s, self.low_w)])


def random_load(rng: np.random.Generator, duration_s: float) -> Script:
    """Return one random load of about ``duration_s``, drawn from five families, that repeats when it ends.

    The families: constant power; a few random steps; a square wave of 10 to 1000 ms; bursts like those of a training
    (5 to 300 ms each, with overshoot and idle gaps); a random walk.
    """
    family = _FAMILIES[int(rng.integers(len(_FAMILIES)))]
    return Script(family(rng, duration_s))


_Pieces = list[tuple[float, float]]


def _constant(rng: np.random.Generator, duration_s: float) -> _Pieces:
    return [(duration_s, float(rng.uniform(IDLE_W, PEAK_W)))]


def _steps(rng: np.random.Generator, duration_s: float) -> _Pieces:
    count = int(rng.integers(2, 12))
    lengths_s = rng.dirichlet(np.full(count, 2.0)) * duration_s
    return [(max(float(length_s), 1e-3), float(rng.uniform(IDLE_W, PEAK_W))) for length_s in lengths_s]


def _square(rng: np.random.Generator, duration_s: float) -> _Pieces:
    period_s = min(float(np.exp(rng.uniform(np.log(0.01), np.log(1.0)))), duration_s)
    low_w, high_w = sorted(rng.uniform(IDLE_W, PEAK_W, size=2).tolist())
    high_s = period_s * float(rng.uniform(0.2, 0.8))
    return [(high_s, high_w), (period_s - high_s, low_w)]


def _bursts(rng: np.random.Generator, duration_s: float) -> _Pieces:
    burst_s = float(np.exp(rng.uniform(np.log(0.005), np.log(0.3))))
    gap_s = burst_s * float(rng.uniform(0.05, 0.6))
    level_w = float(rng.uniform(250.0, PEAK_W))
    pieces: _Pieces = []
    for _ in range(max(int(duration_s / (burst_s + gap_s)), 1)):
        length_s = burst_s * float(rng.uniform(0.9, 1.1))
        overshoot_s = min(0.002, length_s / 4)
        pieces += [(overshoot_s, level_w * 1.1), (length_s - overshoot_s, level_w * float(rng.uniform(0.97, 1.03)))]
        pieces.append((gap_s * float(rng.uniform(0.5, 2.0)), IDLE_W))
    return pieces


def _walk(rng: np.random.Generator, duration_s: float) -> _Pieces:
    count = max(int(duration_s / 0.01), 1)
    levels_w = np.clip(float(rng.uniform(200.0, 600.0)) + np.cumsum(rng.normal(0.0, 12.0, count)), IDLE_W, PEAK_W)
    return [(0.01, level_w) for level_w in levels_w.tolist()]


_FAMILIES: tuple[Callable[[np.random.Generator, float], _Pieces], ...] = (_constant, _steps, _square, _bursts, _walk)
