"""Trials of a sweep by metric and energy: those that no other beats, and the knee of that front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from energy_plugins.report.pictures.picture import Missing, Picture, counted

if TYPE_CHECKING:
    from energy_plugins.report.sweep import Sweep, SweepTrial

NAME: Final = "front"
TITLE: Final = "Metric against energy"
MOST_TRIALS: Final = 1500
"""Drawn one by one: beside the front, trials at equal distances in energy stand for the others."""
_WIDE: Final = 50.0
_SKEWED: Final = 5.0
"""Values of which the largest is so many times the smallest, and the median, are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class FrontTrial:
    """One point."""

    number: int
    energy_j: float
    value: float
    on_front: bool
    is_knee: bool
    params: str


@dataclass(frozen=True, eq=False, kw_only=True)
class FrontPicture(Picture):
    """Trials, the cheapest first."""

    metric: str
    maximize: bool
    logarithmic_energy: bool
    logarithmic_value: bool
    trials: tuple[FrontTrial, ...]


def front_picture(sweep: Sweep) -> FrontPicture | Missing:
    """Return the picture, or why there is none."""
    candidates = sorted(sweep.candidates, key=lambda trial: (trial.energy_j or 0.0, trial.number))
    if not candidates:
        return Missing(name=NAME, title=TITLE, why="no trial has both a metric and joules of its own")
    front, knee = {trial.number for trial in sweep.front()}, sweep.knee()
    drawn = _some(candidates, front)
    left_out = len(candidates) - len(drawn)
    return FrontPicture(
        name=NAME,
        title=TITLE,
        caption=_caption(sweep, knee, left_out),
        metric=sweep.metric,
        maximize=sweep.maximize,
        logarithmic_energy=is_wide(trial.energy_j or 0.0 for trial in drawn),
        logarithmic_value=is_wide(trial.value or 0.0 for trial in drawn),
        trials=tuple(
            FrontTrial(
                number=trial.number,
                energy_j=trial.energy_j or 0.0,
                value=trial.value or 0.0,
                on_front=trial.number in front,
                is_knee=knee is not None and trial.number == knee.number,
                params=params_text(trial.params.items()),
            )
            for trial in drawn
        ),
    )


def is_wide(values: Iterable[float]) -> bool:
    """Tell whether values need a logarithmic axis, and can have one."""
    found = sorted(values)
    least, median, most = found[0], found[len(found) // 2], found[-1]
    return least > 0 and most > _WIDE * least and most > _SKEWED * median


def params_text(params: Iterable[tuple[str, object]]) -> str:
    """Return hyperparameters as ``width=64, rate=0.001``."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in params)


def value_text(value: object) -> str:
    """Return a hyperparameter's value with at most four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _caption(sweep: Sweep, knee: SweepTrial | None, left_out: int) -> str:
    better = "higher" if sweep.maximize else "lower"
    where = (
        f" Its knee is trial {knee.number}: beyond it, more joules begin to buy less."
        if knee is not None
        else " It has no knee: it takes three trials that bend towards less."
    )
    others = f" {counted(left_out, 'trial')} beside the front are not drawn." if left_out else ""
    return (
        f"Complete trials that shared no GPU; {better} is better. The line is the Pareto front: trials that no other "
        f"beats in both.{where}{others}"
    )


def _some(trials: Sequence[SweepTrial], always: set[int]) -> list[SweepTrial]:
    """Return at most about `MOST_TRIALS`, the front among them."""
    if len(trials) <= MOST_TRIALS:
        return list(trials)
    every = math.ceil(len(trials) / MOST_TRIALS)
    return [trial for place, trial in enumerate(trials) if trial.number in always or place % every == 0]
