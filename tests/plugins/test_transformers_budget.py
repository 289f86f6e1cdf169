"""What `EnergyCallback` says of the rest of a training, and how it ends one whose energy budget is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outcomes import load
from transformers import Trainer, TrainerCallback
from transformers_training import Logs, Model, Rows, make_trainer

from energy_plugins.testing import Constant, Simulation, simulated_gpus
from energy_plugins.transformers import EnergyCallback

POWER_W = 360.0
STEP_S = 0.5
STEP_J = POWER_W * STEP_S
KWH = 3.6e6


@pytest.fixture
def virtual() -> Iterator[Simulation]:
    """Give a GPU of a steady power, in virtual time, of which every step takes half a second."""
    with simulated_gpus(Constant(POWER_W), virtual=True, start_s=10) as simulation:
        yield simulation


def trained(
    simulation: Simulation, folder: Path, *callbacks: TrainerCallback, resume: bool = False, **settings: Any
) -> Trainer:
    """Train for up to 200 steps."""
    model = Model(lambda _: simulation.advance(STEP_S))
    defaults: dict[str, Any] = {"max_steps": 200, "per_device_train_batch_size": 1, "logging_steps": 10}
    trainer = make_trainer(folder, *callbacks, model=model, data=Rows(100, batch_size=1), **(defaults | settings))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def budget(steps: float) -> EnergyCallback:
    return EnergyCallback(table=False, energy_budget_kwh=steps * STEP_J / KWH)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_forecast_is_logged_and_right(virtual: Simulation, tmp_path: Path, accumulated: int) -> None:
    reporter = Logs()
    trained(virtual, tmp_path, EnergyCallback(table=False), reporter, gradient_accumulation_steps=accumulated)
    known = [logs for logs in reporter.seen if "energy/forecast_kwh" in logs]
    assert len(known) >= 15
    for logs in known:
        assert logs["energy/forecast_kwh"] * KWH == pytest.approx(200 * STEP_J * accumulated, rel=0.02)
        assert logs["energy/forecast_s"] < 200 * STEP_S * accumulated
    assert known[-1]["energy/forecast_s"] == pytest.approx(0, abs=0.1)


@pytest.mark.filterwarnings("ignore:energy. this fit will need")
class TestBudget:
    def test_a_spent_budget_ends_the_training_with_a_checkpoint(
        self, virtual: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer = trained(virtual, tmp_path, budget(50), save_strategy="steps", save_steps=500)
        stopped = trainer.state.global_step
        assert 50 <= stopped <= 53
        assert (tmp_path / f"checkpoint-{stopped}" / "trainer_state.json").exists()
        report = load(tmp_path)
        assert "budget" in report.stopped
        assert report.steps.rows == stopped
        assert f"ends the training after step {stopped}" in capsys.readouterr().out

    def test_what_was_drawn_before_a_resume_counts(self, virtual: Simulation, tmp_path: Path) -> None:
        trained(virtual, tmp_path, EnergyCallback(table=False), max_steps=30, save_strategy="steps", save_steps=30)
        trainer = trained(virtual, tmp_path, budget(50), resume=True)
        assert 50 <= trainer.state.global_step <= 54
        again = trained(virtual, tmp_path, budget(50), resume=True)
        assert again.state.global_step == trainer.state.global_step + 1  # the trainer looks after its first batch
        assert load(tmp_path, 3).stopped

    def test_a_budget_that_suffices_changes_nothing(self, virtual: Simulation, tmp_path: Path) -> None:
        trainer = trained(virtual, tmp_path, budget(300), max_steps=100)
        assert trainer.state.global_step == 100
        assert load(tmp_path).stopped == ""
        assert not list(tmp_path.glob("checkpoint-*"))

    def test_attempts_that_did_not_fit_count(self, virtual: Simulation, tmp_path: Path) -> None:
        class Grows(Model):
            """Takes 20 steps to find that its batch does not fit."""

            def forward(self, input_ids: Any, return_loss: bool = True) -> dict[str, Any]:
                if len(input_ids) > 1 and self.steps >= 20:
                    raise RuntimeError("CUDA out of memory.")
                return super().forward(input_ids, return_loss)

        model = Grows(lambda _: virtual.advance(STEP_S))
        trainer = make_trainer(
            tmp_path, budget(50), model=model, data=Rows(400, batch_size=1), per_device_train_batch_size=2,
            auto_find_batch_size=True,
        )  # fmt: skip
        trainer.train()
        assert load(tmp_path, 2).config["wasted_j"] == pytest.approx(20 * STEP_J, rel=0.05)
        assert 30 <= trainer.state.global_step <= 33
        assert model.steps == trainer.state.global_step + 20

    def test_its_state_is_in_the_checkpoint(self, virtual: Simulation, tmp_path: Path) -> None:
        trainer = trained(virtual, tmp_path, budget(50))
        file = tmp_path / f"checkpoint-{trainer.state.global_step}" / "trainer_state.json"
        kept = json.loads(file.read_text())["stateful_callbacks"]["EnergyCallback"]["attributes"]["restored"]
        assert kept["fit_j"] >= 50 * STEP_J
