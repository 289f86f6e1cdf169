"""Only what the hardware allows is suggested."""

from __future__ import annotations

import optuna
import pytest
from sweeping import Simulated

from energy_plugins.control import PowerLimit
from energy_plugins.errors import BatchError, DeviceError
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.optuna import suggest_micro_batch, suggest_power_limit
from energy_plugins.testing import V100


def test_limits_are_those_that_can_be_set(simulated: Simulated) -> None:
    simulated(profile=V100)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {suggest_power_limit(study.ask(), visible_gpus()[0]) for _ in range(300)}
    found_w = int(V100.max_limit_w)
    assert max(seen) == found_w
    assert min(seen) >= V100.min_limit_w
    assert min(seen) < V100.min_limit_w + 10
    with PowerLimit(visible_gpus()[0]).at(watts=min(seen)) as limit:
        assert limit.range_w[0] <= min(seen)


def test_a_gpu_that_is_not_there_is_named(simulated: Simulated) -> None:
    simulated()
    with pytest.raises(DeviceError, match="there is no GPU 3: 1 are visible"):
        suggest_power_limit(optuna.create_study().ask(), 3)


def test_micro_batches_divide_the_effective_batch() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {suggest_micro_batch(study.ask(), 24, most=12) for _ in range(200)}
    assert seen == {1, 2, 3, 4, 6, 8, 12}
    trial = study.ask()
    suggest_micro_batch(trial, 24)
    suggest_micro_batch(trial, 32)
    assert set(trial.params) == {"micro_batch_of_24", "micro_batch_of_32"}


@pytest.mark.parametrize(("batch", "most"), [(0, None), (-1, None), (True, None), (8, 0)])
def test_a_batch_that_cannot_be_cut_is_refused(batch: int, most: int | None) -> None:
    with pytest.raises(BatchError):
        suggest_micro_batch(optuna.create_study().ask(), batch, most=most)
