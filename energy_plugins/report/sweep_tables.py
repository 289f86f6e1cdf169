"""What a sweep's page says in figures and tables."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from energy_plugins.measure.quantity import duration, percent, quantity
from energy_plugins.report.facts import Tile
from energy_plugins.report.pictures.sweep_ends import BOUGHT_NOTHING, WORDS
from energy_plugins.report.pictures.sweep_front import FrontPicture, FrontTrial, params_text
from energy_plugins.report.pictures.sweep_parameters import Panel, ParametersPicture
from energy_plugins.report.tables import Row, Table, table_of
from energy_plugins.units import j_to_kwh

if TYPE_CHECKING:
    from energy_plugins.report.pictures.picture import Picture
    from energy_plugins.report.sweep import Sweep, SweepTrial


def sweep_tiles(sweep: Sweep) -> tuple[Tile, ...]:
    """Return the figures that come first."""
    states = sweep.by_state()
    ends = ", ".join(f"{count} {WORDS.get(state, state)}" for state, (count, _) in states.items())
    found = [_energy(sweep), Tile("trials", f"{len(sweep.trials):,}", ends)]
    lost_j = math.fsum(states[state][1] for state in BOUGHT_NOTHING if state in states)
    share = percent(lost_j / sweep.energy_j) if sweep.energy_j > 0 else ""
    found.append(Tile("on pruned and failed trials", quantity(lost_j, "J"), f"{share} of all" if share else ""))
    front, knee, least = sweep.front(), sweep.knee(), sweep.to_target()
    if front:
        found.append(_tile("best metric", front[-1], sweep.metric))
    if knee is not None:
        found.append(_tile("knee of the front", knee, sweep.metric))
    if least is not None and least.to_target_j is not None:
        found.append(Tile("least energy to the target", quantity(least.to_target_j, "J"), f"trial {least.number}"))
    return tuple(found)


def trials_table(sweep: Sweep) -> Table:
    """Return a row for each trial."""
    front, knee = {trial.number for trial in sweep.front()}, sweep.knee()

    def remark(trial: SweepTrial) -> str:
        said = ["on the front"] if trial.number in front else []
        said += ["the knee"] if knee is not None and trial.number == knee.number else []
        said += ["shared its GPU: its joules are those of others, too"] if trial.shared else []
        return ", ".join(said)

    heading = ("trial", "ended", sweep.metric, "energy", "took", "mean power", "to the target", "remark", "set")
    return Table(
        heading,
        tuple(
            (
                str(trial.number),
                WORDS.get(trial.state, trial.state),
                "-" if trial.value is None else f"{trial.value:.6g}",
                _known(trial.energy_j, "J"),
                "-" if trial.duration_s is None else duration(trial.duration_s),
                _known(_power_w(trial), "W"),
                _known(trial.to_target_j, "J"),
                remark(trial),
                params_text(trial.params.items()),
            )
            for trial in sweep.trials
        ),
    )


def numbers_of(picture: Picture) -> Table:
    """Return the numbers behind a picture of a sweep."""
    match picture:
        case FrontPicture():
            heading: Row = ("trial of the front", picture.metric, "energy", "remark", "set")
            return Table(heading, tuple(_front(trial) for trial in picture.trials if trial.on_front))
        case ParametersPicture():
            heading = ("hyperparameter", "importance for energy", "mean energy")
            return Table(heading, tuple(map(_panel, picture.panels)))
        case _:
            return table_of(picture)


def _front(trial: FrontTrial) -> Row:
    knee = "the knee" if trial.is_knee else ""
    return str(trial.number), f"{trial.value:.6g}", quantity(trial.energy_j, "J"), knee, trial.params


def _panel(panel: Panel) -> Row:
    """Return what trials drew in the mean at each value, or in the lower and the upper half of values."""
    parts: dict[str, list[float]] = defaultdict(list)
    middle = panel.trials[(len(panel.trials) - 1) // 2].at
    for trial in panel.trials:
        if panel.categories:
            parts[panel.categories[round(trial.at)]].append(trial.energy_j)
        else:
            parts[f"{'up to' if trial.at <= middle else 'above'} {middle:.4g}"].append(trial.energy_j)
    means = (f"{name}: {quantity(math.fsum(joules) / len(joules), 'J')}" for name, joules in parts.items())
    return panel.name, "not known" if panel.share is None else percent(panel.share), ", ".join(means)


def _energy(sweep: Sweep) -> Tile:
    drawn = f"{j_to_kwh(sweep.energy_j):.4g} kWh"
    if sweep.budget_j is None:
        return Tile("energy of all trials", quantity(sweep.energy_j, "J"), drawn)
    share = percent(sweep.energy_j / sweep.budget_j)
    budget = f"{share} of the budget of {j_to_kwh(sweep.budget_j):.4g} kWh"
    return Tile("energy of all trials", quantity(sweep.energy_j, "J"), f"{drawn}, {budget}")


def _tile(label: str, trial: SweepTrial, metric: str) -> Tile:
    return Tile(label, f"trial {trial.number}", f"{metric} {trial.value:.6g}, {_known(trial.energy_j, 'J')}")


def _power_w(trial: SweepTrial) -> float | None:
    if trial.energy_j is None or not trial.duration_s:
        return None
    return trial.energy_j / trial.duration_s


def _known(value: float | None, unit: str) -> str:
    return "-" if value is None else quantity(value, unit)
