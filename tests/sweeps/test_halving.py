"""Successive halving by joules, through Optuna: what is pruned when, in any storage, and for whom it holds back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest
from sweeping import Simulated, journal, sqlite
from test_pruning import Model, fit

from energy_plugins.errors import ConfigError
from energy_plugins.optuna import EnergyPruningCallback, EnergySuccessiveHalvingPruner
from energy_plugins.optuna.attributes import REPORTED_J, RUNG, TOTAL_J, TRIAL
from energy_plugins.testing import Constant

Told = Sequence[tuple[float, float]]
"""Joules drawn and metric, report by report."""
STORAGES: dict[str, Callable[[Path], object]] = {"memory": lambda _: None, "sqlite": sqlite, "journal": journal}


def study_of(
    pruner: EnergySuccessiveHalvingPruner, storage: object = None, direction: str = "minimize"
) -> optuna.Study:
    return optuna.create_study(storage=storage, pruner=pruner, direction=direction)  # type: ignore[arg-type]


def trained(study: optuna.Study, told: Told) -> tuple[optuna.trial.FrozenTrial, bool]:
    """Return a trial that drew and reported this, and whether it was pruned before the end."""
    trial = study.ask()
    trial.set_user_attr(TRIAL, float(trial.number))
    for step, (energy_j, value) in enumerate(told):
        trial.set_user_attr(TOTAL_J, energy_j)
        trial.report(value, step)
        if trial.should_prune():
            return study.tell(trial, state=optuna.trial.TrialState.PRUNED), True
    return study.tell(trial, told[-1][1]), False


def even(epoch_j: float, fall: float, epochs: int = 10) -> Told:
    """A metric that falls by as much with every epoch."""
    return [(epoch_j * epoch, 10.0 - fall * epoch) for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize("kind", STORAGES)
def test_a_cheap_trial_is_kept_that_has_less_progress_in_an_epoch(kind: str, tmp_path: Path) -> None:
    study = study_of(EnergySuccessiveHalvingPruner(first_rung_j=25.0), STORAGES[kind](tmp_path))
    first, pruned = trained(study, even(epoch_j=10.0, fall=1.0))
    assert not pruned
    assert first.user_attrs[f"{RUNG}0"] == pytest.approx(7.5)
    assert first.user_attrs[f"{RUNG}1"] == pytest.approx(5.0)
    assert first.user_attrs[REPORTED_J] == pytest.approx(100.0)
    cheap, pruned = trained(study, even(epoch_j=5.0, fall=0.6, epochs=20))
    assert not pruned
    assert cheap.user_attrs[f"{RUNG}0"] == pytest.approx(7.0)
    dear, pruned = trained(study, even(epoch_j=20.0, fall=1.2))
    assert pruned
    assert dear.last_step == 1  # at 40 J, past the rung at 25 J
    assert dear.user_attrs[f"{RUNG}0"] == pytest.approx(8.5)


def test_by_epochs_it_is_the_other_way_round() -> None:
    """What `test_a_cheap_trial...` keeps, halving in epochs prunes, and the other way round."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=2)
    study = optuna.create_study(pruner=pruner)
    assert [trained(study, told)[1] for told in (even(10.0, 1.0), even(5.0, 0.6, 20), even(20.0, 1.2))] == [
        False,
        True,
        False,
    ]


def test_more_is_better_where_the_study_says_so() -> None:
    study = study_of(EnergySuccessiveHalvingPruner(first_rung_j=25.0), direction="maximize")
    assert not trained(study, [(10.0, 0.1), (30.0, 0.5)])[1]
    assert trained(study, [(10.0, 0.1), (30.0, 0.4)])[1]
    assert not trained(study, [(10.0, 0.1), (30.0, 0.6)])[1]


def test_without_a_first_rung_the_first_complete_trial_sets_it() -> None:
    study = study_of(EnergySuccessiveHalvingPruner())
    first, _ = trained(study, even(10.0, 1.0, epochs=8))
    assert not [key for key in first.user_attrs if key.startswith(RUNG)]
    worse, pruned = trained(study, even(10.0, 0.5, epochs=8))
    assert not pruned, "nobody was at a rung before it"
    assert sorted(key for key in worse.user_attrs if key.startswith(RUNG)) == [f"{RUNG}{rung}" for rung in range(4)]
    assert worse.user_attrs[f"{RUNG}0"] == pytest.approx(9.5)  # at 10 J, an eighth of 80 J
    assert trained(study, even(10.0, 0.4, epochs=8))[0].last_step == 0


def test_who_asks_twice_hears_the_same() -> None:
    study = study_of(EnergySuccessiveHalvingPruner(first_rung_j=25.0))
    trained(study, even(10.0, 1.0))
    trial = study.ask()
    trial.set_user_attr(TRIAL, float(trial.number))
    trial.set_user_attr(TOTAL_J, 30.0)
    trial.report(9.0, 0)
    assert [trial.should_prune() for _ in range(3)] == [True] * 3
    trial.set_user_attr(TOTAL_J, 40.0)
    trial.report(1.0, 1)
    assert not trial.should_prune(), "no rung lies between"


def test_what_is_not_measured_is_not_pruned() -> None:
    study = study_of(EnergySuccessiveHalvingPruner(first_rung_j=1.0))
    trained(study, even(10.0, 1.0))
    trial = study.ask()
    for step in range(5):
        trial.report(1e6, step)
        assert not trial.should_prune()
    assert not study.ask().should_prune()


def test_joules_of_a_trial_that_is_tried_again_are_not_its_own() -> None:
    study = study_of(EnergySuccessiveHalvingPruner(first_rung_j=25.0))
    first, _ = trained(study, even(10.0, 1.0))
    study.enqueue_trial({}, user_attrs=first.user_attrs)
    trial = study.ask()
    trial.report(1e6, 0)
    assert not trial.should_prune()


def test_nan_is_pruned_and_is_nobodys_rival() -> None:
    study = study_of(EnergySuccessiveHalvingPruner(first_rung_j=25.0))
    spoilt, pruned = trained(study, [(10.0, 1.0), (30.0, math.nan)])
    assert pruned
    assert f"{RUNG}0" not in spoilt.user_attrs
    assert not trained(study, even(10.0, 0.1))[1]


@pytest.mark.parametrize("first_rung_j", [0.0, -5.0, math.nan, math.inf])
def test_a_rung_that_cannot_be(first_rung_j: float) -> None:
    with pytest.raises(ConfigError, match="first rung"):
        EnergySuccessiveHalvingPruner(first_rung_j)


def test_a_factor_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="reduction_factor is 1"):
        EnergySuccessiveHalvingPruner(10.0, reduction_factor=1)


def test_several_objectives_have_no_best() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ConfigError, match="2 objectives"):
        EnergySuccessiveHalvingPruner(10.0).prune(study, study.ask()._get_latest_trial())


def test_joules_that_a_callback_measures_count(simulated: Simulated, tmp_path: Path) -> None:
    simulated(Constant(300.0))
    study = study_of(EnergySuccessiveHalvingPruner(first_rung_j=150.0), sqlite(tmp_path))

    def objective(trial: optuna.Trial) -> float:
        loss = 1.0 + trial.number
        fit(tmp_path, Model([loss], step_s=0.25), EnergyPruningCallback(trial, "val_loss"), 4)
        return loss

    study.optimize(objective, n_trials=2)
    kept, pruned = study.trials
    assert kept.state == optuna.trial.TrialState.COMPLETE
    assert kept.user_attrs[f"{RUNG}0"] == pytest.approx(1.0)
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert pruned.user_attrs[f"{RUNG}0"] == pytest.approx(2.0)
    assert pruned.user_attrs[TOTAL_J] > 150.0
