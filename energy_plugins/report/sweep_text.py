"""A sweep as a table, and as plain values for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from energy_plugins.measure.aligned import aligned
from energy_plugins.measure.quantity import quantity
from energy_plugins.report.pictures.sweep_front import params_text
from energy_plugins.units import j_to_kwh

if TYPE_CHECKING:
    from energy_plugins.report.sweep import Sweep, SweepTrial


def sweep_lines(sweep: Sweep) -> list[str]:
    """Return the table."""
    spent = f"{quantity(sweep.energy_j, 'J')} ({j_to_kwh(sweep.energy_j):.4g} kWh)"
    budget = "" if sweep.budget_j is None else f" of a budget of {j_to_kwh(sweep.budget_j):.4g} kWh"
    simulated = any(trial.simulated for trial in sweep.trials)
    lines = ["SIMULATED: no measurement of hardware"] if simulated else []
    lines += [f"{sweep.study}: {len(sweep.trials)} trials drew {spent}{budget}", ""]
    rows = [["trials", "count", "energy", "share"]]
    for state, (count, energy_j) in sweep.by_state().items():
        share = energy_j / sweep.energy_j if sweep.energy_j else 0.0
        rows.append([state, str(count), quantity(energy_j, "J"), f"{share:.1%}"])
    lines += aligned(rows, "<>>>")
    lines += ["", *_front(sweep), "", *_importance(sweep)]
    if (best := sweep.to_target()) is not None and best.to_target_j is not None:
        seconds = "" if best.to_target_s is None else f" in {best.to_target_s:.4g} s"
        lines += ["", f"least energy to the target: trial {best.number}, {quantity(best.to_target_j, 'J')}{seconds}"]
    return [line.rstrip() for line in [*lines, *_below(doubts(sweep))]]


def sweep_values(sweep: Sweep) -> dict[str, Any]:
    """Return the same, and every trial, as JSON has it."""
    knee, best = sweep.knee(), sweep.to_target()
    return {
        "study": sweep.study,
        "metric": sweep.metric,
        "direction": "maximize" if sweep.maximize else "minimize",
        "energy_j": sweep.energy_j,
        "budget_j": sweep.budget_j,
        "by_state": {
            state: {"trials": count, "energy_j": energy_j} for state, (count, energy_j) in sweep.by_state().items()
        },
        "front": [trial.number for trial in sweep.front()],
        "knee": None if knee is None else knee.number,
        "least_energy_to_target": None if best is None else best.number,
        "importance": None if sweep.importance is None else dict(sweep.importance),
        "why_no_importance": sweep.why_no_importance or None,
        "trials": [asdict(trial) for trial in sweep.trials],
    }


def _front(sweep: Sweep) -> list[str]:
    front, knee = sweep.front(), sweep.knee()
    if not front:
        return ["no trial has both a metric and joules of its own"]
    rows = [["Pareto front", sweep.metric, "energy", "hyperparameters"]]
    rows += [
        [
            f"trial {trial.number}{' <- knee' if trial is knee else ''}",
            f"{trial.value:.6g}",
            _joules(trial),
            params_text(trial.params.items()),
        ]
        for trial in front
    ]
    return aligned(rows, "<>><")


def _importance(sweep: Sweep) -> list[str]:
    if not sweep.importance:
        return [f"which hyperparameter decides the energy is not known: {sweep.why_no_importance}"]
    rows = [["hyperparameter", "importance for energy"]]
    return aligned(rows + [[name, f"{share:.1%}"] for name, share in sweep.importance.items()], "<>")


def doubts(sweep: Sweep) -> list[str]:
    """Return what is wrong with the joules of some trials."""
    shared = sum(trial.shared for trial in sweep.trials)
    unknown = sum(trial.energy_j is None and trial.state != "waiting" for trial in sweep.trials)
    said = []
    if shared:
        said.append(
            f"{shared} trials shared a GPU with others: their joules cannot be told apart, so they are in no front, "
            "and in the sum more than once"
        )
    if unknown:
        said.append(f"{unknown} trials have no joules, and are in no sum")
    return said


def _below(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def _joules(trial: SweepTrial) -> str:
    return "" if trial.energy_j is None else quantity(trial.energy_j, "J")
