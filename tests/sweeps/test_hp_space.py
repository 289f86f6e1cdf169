"""A search space of transformers' with what decides the energy, and the power limit of each trial."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
import torch
from searching import Limited, make_trainer
from seen_limit import limit_w
from sweeping import Simulated
from transformers import TrainerCallback

from energy_plugins.errors import BatchError, ConfigError, DeviceError
from energy_plugins.testing import V100
from energy_plugins.transformers import EnergyCallback, energy_hp_space
from energy_plugins.transformers.hp_space import limit_of_trial


def nothing_else(trial: optuna.Trial) -> dict[str, Any]:
    return {}


def a_trial(seed: int = 0) -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()


def test_limits_are_those_that_the_gpu_takes_up_to_the_one_it_has(simulated: Simulated) -> None:
    simulated(profile=V100)
    seen = {energy_hp_space(nothing_else)(a_trial(seed))["power_limit_w"] for seed in range(200)}
    assert max(seen) == V100.max_limit_w
    assert V100.min_limit_w <= min(seen) < V100.min_limit_w + 10


def test_limits_that_are_named_need_no_gpu() -> None:
    space = energy_hp_space(nothing_else, power_limits_w=[300, 450])
    assert {space(a_trial(seed))["power_limit_w"] for seed in range(20)} == {300, 450}


def test_batches_of_all_trials_come_to_the_same_effective_batch() -> None:
    space = energy_hp_space(nothing_else, power_limits_w=[300], effective_batch=24, most=12)
    drawn = [space(a_trial(seed)) for seed in range(100)]
    assert {one["per_device_train_batch_size"] for one in drawn} == {1, 2, 3, 4, 6, 8, 12}
    assert {one["per_device_train_batch_size"] * one["gradient_accumulation_steps"] for one in drawn} == {24}


def test_the_space_of_transformers_is_searched_where_none_is_given() -> None:
    drawn = energy_hp_space(power_limits_w=[300])(a_trial())
    assert drawn.keys() >= {"power_limit_w", "learning_rate", "num_train_epochs", "per_device_train_batch_size"}


def test_what_the_user_searches_has_the_last_word() -> None:
    space = energy_hp_space(lambda _: {"power_limit_w": 200}, power_limits_w=[300])
    assert space(a_trial()) == {"power_limit_w": 200}


def test_ray_draws_from_the_same_space() -> None:
    pytest.importorskip("ray", reason="needs Ray Tune: pip install energy-plugins[ray]")
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.variant_generator import generate_variants

    assert BasicVariantGenerator is not None
    space = energy_hp_space(nothing_else, power_limits_w=[300, 450], effective_batch=24, most=12)(None)
    drawn = [config for _ in range(100) for _, config in generate_variants(space)]
    assert {one["power_limit_w"] for one in drawn} == {300, 450}
    assert {one["per_device_train_batch_size"] for one in drawn} == {1, 2, 3, 4, 6, 8, 12}
    assert {one["per_device_train_batch_size"] * one["gradient_accumulation_steps"] for one in drawn} == {24}


def test_a_space_that_cannot_be_is_refused(simulated: Simulated) -> None:
    simulated()
    with pytest.raises(ConfigError, match="power_limits_w is empty"):
        energy_hp_space(power_limits_w=[])
    with pytest.raises(ConfigError, match="give `space`"):
        energy_hp_space(effective_batch=8)
    with pytest.raises(BatchError):
        energy_hp_space(nothing_else, effective_batch=0)
    with pytest.raises(DeviceError, match="there is no GPU 3"):
        energy_hp_space(nothing_else, gpu=3)(a_trial())


@pytest.mark.parametrize("watts", [math.nan, -1.0, 0])
def test_a_trial_with_no_power_limit_that_could_be_is_refused(watts: float) -> None:
    with pytest.raises(ConfigError, match="fixed"):
        limit_of_trial({"power_limit_w": watts})


class Unlucky(Limited):
    """Fails in the trial that has the lowest limit, and keeps the limits found as each trial begins."""

    before: ClassVar[list[float]] = []

    def __init__(self) -> None:
        super().__init__()
        self.before.append(limit_w())

    def forward(self, x: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        found = super().forward(x)
        if float(found["loss"].detach()) < 350:
            raise ZeroDivisionError
        return found


class Prunes(TrainerCallback):
    """Prunes the trial that has the highest limit, as Optuna's storage would have it."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.trial_params or {}).get("power_limit_w") == 500:
            raise optuna.TrialPruned


def test_each_trial_has_its_limit_which_is_put_back_however_it_ends(simulated: Simulated, tmp_path: Path) -> None:
    simulated()
    found_w = limit_w()
    trainer = make_trainer(tmp_path, EnergyCallback(), Prunes(), model=Unlucky)
    trainer.hyperparameter_search(
        energy_hp_space(nothing_else, power_limits_w=[300, 400, 500]),
        lambda metrics: metrics["eval_loss"],
        3,
        "minimize",
        "optuna",
        sampler=optuna.samplers.GridSampler({"power_limit_w": [300, 400, 500]}, seed=0),
        catch=(ZeroDivisionError,),
        study_name="limits",
        storage=f"sqlite:///{tmp_path}/study.db",
    )

    trials = optuna.load_study(study_name="limits", storage=f"sqlite:///{tmp_path}/study.db").trials
    ends = {trial.params["power_limit_w"]: (trial.state.name, trial.value) for trial in trials}
    assert ends[300] == ("FAIL", None)
    assert ends[400] == ("COMPLETE", 400.0)
    assert ends[500][0] == "PRUNED"
    assert set(Unlucky.before) == {found_w}
    trainer.hp_search_backend = None
    trainer.train()
    assert trainer.state.log_history[-2]["eval_loss"] == found_w
