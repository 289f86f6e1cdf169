"""Trainings of transformers' Trainer under a power limit: what it saves, and that the GPU is as it was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from limiting import FOUND_W, SHARE, STEPS, assert_saved, limit_w, limited_gpu, limits_during, part_of, work
from outcomes import load
from transformers import Trainer, TrainerCallback
from transformers_training import Model, Rows, make_trainer

from energy_plugins.config import EnergyArguments
from energy_plugins.measure.report import Report
from energy_plugins.testing import NoPermission
from energy_plugins.transformers import EnergyCallback, PowerLimitCallback


def make(folder: Path, step: Callable[[int], None], *callbacks: TrainerCallback, steps: int = STEPS) -> Trainer:
    return make_trainer(
        folder, *callbacks, model=Model(step), data=Rows(steps), per_device_train_batch_size=1, logging_steps=100
    )


def train(folder: Path, step: Callable[[int], None], *callbacks: TrainerCallback, steps: int = STEPS) -> Report:
    make(folder, step, *callbacks, steps=steps).train()
    return load(folder)


def quiet() -> EnergyCallback:
    return EnergyCallback(table=False, progress_bar=False)


def limiting(**settings: Any) -> PowerLimitCallback:
    return PowerLimitCallback(**{"search_share": SHARE, **settings})


def test_it_saves_energy_keeps_the_slowdown_and_leaves_the_gpu_as_found(tmp_path: Path) -> None:
    reports = []
    for name, callbacks in (("plain", [quiet()]), ("limited", [quiet(), limiting()])):
        with limited_gpu() as simulation:
            reports.append(train(tmp_path / name, work(simulation), *callbacks))
            assert limit_w() == FOUND_W
    plain, limited = reports
    assert_saved(limited, plain)
    assert part_of(limited).put_back == f"the limit is {FOUND_W:g} W again, as it was found"


def test_the_configuration_may_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "energy.yaml").write_text("power_limit: {max_slowdown: 0.03}\nreport: {table: false}\n")
    arguments = EnergyArguments(energy_config=str(tmp_path / "energy.yaml"), energy_power_limit_search_share=SHARE)
    with limited_gpu() as simulation:
        report = train(tmp_path, work(simulation), EnergyCallback.from_arguments(arguments))
    assert part_of(report).source == "search"
    assert part_of(report).binding


@pytest.mark.parametrize("error", [RuntimeError("of the training"), KeyboardInterrupt()])
def test_the_limit_is_put_back_whatever_ends_the_training(tmp_path: Path, error: BaseException) -> None:
    seen: list[float] = []
    with limited_gpu() as simulation:
        do = limits_during(simulation, seen)

        def step(number: int) -> None:
            do(number)
            if seen[-1] != FOUND_W:
                raise error

        with pytest.raises(type(error)):
            train(tmp_path, step, quiet(), limiting())
        assert limit_w() == FOUND_W
    assert part_of(load(tmp_path)).put_back == f"the limit is {FOUND_W:g} W again, as it was found"


@pytest.mark.parametrize("order", ["alone", "after", "before", "added last", "added first"])
def test_wherever_the_callback_stands(tmp_path: Path, order: str) -> None:
    seen: list[float] = []
    given = {"after": [quiet(), limiting(fixed=500)], "before": [limiting(fixed=500), quiet()]}
    with limited_gpu() as simulation:
        callbacks = given.get(order, [limiting(fixed=500)] if order == "alone" else [])
        trainer = make(tmp_path, limits_during(simulation, seen), *callbacks, steps=40)
        for callback in {"added last": given["after"], "added first": given["before"]}.get(order, []):
            trainer.add_callback(callback)
        trainer.train()
        assert limit_w() == FOUND_W
        trainer.train()
        assert limit_w() == FOUND_W
    assert set(seen) == {500}
    logged = [row["energy/power_limit_w"] for row in trainer.state.log_history if "energy/power_limit_w" in row]
    assert set(logged) <= {500}
    for number in (1, 2):
        part = part_of(load(tmp_path, number))
        assert (part.chosen, part.source, part.binding) == (500, "fixed", True)


def test_without_permission_the_training_goes_on_with_advice(tmp_path: Path) -> None:
    seen: list[float] = []
    with limited_gpu() as simulation:
        simulation.gpus[0].inject(NoPermission("nvmlDeviceSetPowerManagementLimit"))
        report = train(tmp_path, limits_during(simulation, seen), quiet(), limiting(), steps=40)
    assert set(seen) == {FOUND_W}
    assert "run as root" in part_of(report).advice
