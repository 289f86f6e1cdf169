"""What trials of a sweep drew by each of their hyperparameters, the one that decides most first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from energy_plugins.report.pictures.picture import Missing, Picture, counted
from energy_plugins.report.pictures.sweep_front import MOST_TRIALS, is_wide, value_text
from energy_plugins.report.sweep import COMPLETE

if TYPE_CHECKING:
    from energy_plugins.report.sweep import Sweep, SweepTrial

NAME: Final = "hyperparameters"
TITLE: Final = "Energy by hyperparameter"
_MOST_PANELS: Final = 9
_MOST_CATEGORIES: Final = 30


@dataclass(frozen=True)
class PanelTrial:
    """One point: where it stands on the axis, and what it drew."""

    number: int
    at: float
    energy_j: float


@dataclass(frozen=True)
class Panel:
    """One hyperparameter."""

    name: str
    share: float | None
    """Its importance for a trial's energy, of all hyperparameters' 1; None is not known."""
    categories: tuple[str, ...]
    """Values in the order of the axis, where they are no numbers."""
    logarithmic: bool
    trials: tuple[PanelTrial, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class ParametersPicture(Picture):
    """A small picture for each hyperparameter."""

    panels: tuple[Panel, ...]
    logarithmic_energy: bool


def parameters_picture(sweep: Sweep) -> ParametersPicture | Missing:
    """Return the picture, or why there is none."""
    trials = [
        trial for trial in sweep.trials if trial.state == COMPLETE and not trial.shared and (trial.energy_j or 0.0) > 0
    ][-MOST_TRIALS:]
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    if not names:
        return Missing(name=NAME, title=TITLE, why="no complete trial has hyperparameters and joules of its own")
    shares = sweep.importance or {}
    ordered = sorted(names, key=lambda name: -shares.get(name, 0.0))
    left_out = len(ordered) - _MOST_PANELS
    how = (
        "Percentages are its importance: its share in what trials' energy differs by, and together they are 100 %."
        if shares
        else f"Which of them decides is not known: {sweep.why_no_importance}."
    )
    others = f" {counted(left_out, 'hyperparameter')} that decide less are not drawn." if left_out > 0 else ""
    return ParametersPicture(
        name=NAME,
        title=TITLE,
        caption=f"Complete trials that shared no GPU, by one hyperparameter each. {how}{others}",
        panels=tuple(_panel(name, shares.get(name), trials) for name in ordered[:_MOST_PANELS]),
        logarithmic_energy=is_wide(trial.energy_j or 0.0 for trial in trials),
    )


def _panel(name: str, share: float | None, trials: Sequence[SweepTrial]) -> Panel:
    values = [trial.params[name] for trial in trials if name in trial.params]
    having = [trial for trial in trials if name in trial.params]
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    numeric = len(numbers) == len(values)
    categories = () if numeric else tuple(dict.fromkeys(map(value_text, values)))[:_MOST_CATEGORIES]
    places = numbers if numeric else [_place(value, categories) for value in values]
    return Panel(
        name=name,
        share=share,
        categories=categories,
        logarithmic=numeric and is_wide(numbers),
        trials=tuple(
            PanelTrial(number=trial.number, at=at, energy_j=trial.energy_j or 0.0)
            for trial, at in sorted(zip(having, places, strict=True), key=lambda pair: (pair[1], pair[0].number))
            if at >= 0 or numeric
        ),
    )


def _place(value: object, categories: Sequence[str]) -> float:
    """Return a value's place on its axis, -1 for one of so many that it is not drawn."""
    text = value_text(value)
    return float(categories.index(text)) if text in categories else -1.0
