"""Where the joules of a sweep went, by how its trials ended: those of pruned and failed ones bought no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from energy_plugins.report.pictures.picture import Missing, counted
from energy_plugins.report.pictures.where import Slice, WherePicture

if TYPE_CHECKING:
    from energy_plugins.report.sweep import Sweep

NAME: Final = "ends"
TITLE: Final = "Joules by how trials ended"
WORDS: Final = {"fail": "failed"}
"""Of Optuna's states, those that a page calls otherwise."""
BOUGHT_NOTHING: Final = ("pruned", "fail")


def ends_picture(sweep: Sweep) -> WherePicture | Missing:
    """Return the picture, or why there is none."""
    if not sweep.energy_j > 0:
        return Missing(name=NAME, title=TITLE, why="no trial has joules")
    return WherePicture(
        name=NAME,
        title=TITLE,
        caption="What all trials drew. Pruned and failed ones left no model; what was saved by ending them early is "
        "not in here.",
        work=tuple(
            Slice(WORDS.get(state, state), energy_j, None, energy_j / sweep.energy_j, counted(count, "trial"))
            for state, (count, energy_j) in sweep.by_state().items()
        ),
        waste=(),
    )
