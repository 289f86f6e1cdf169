"""The joules in what a Trainer logs, shows and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from outcomes import load
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import default_compute_objective
from transformers_training import Logs, Model, Rows, make_trainer

from energy_plugins.testing import Simulation
from energy_plugins.transformers import EnergyCallback


def train_long(
    simulation: Simulation, folder: Path, *callbacks: TrainerCallback, **settings: Any
) -> tuple[Trainer, Any]:
    """Train long enough for figures."""
    model = Model(lambda _: simulation.gpus[0].launch(ops=2e13, wait=True))
    trainer = make_trainer(folder, *callbacks, model=model, data=Rows(4 * 120), **{"logging_steps": 10} | settings)
    return trainer, trainer.train()


class TestFigures:
    def test_they_reach_reporters_state_and_output(self, simulation: Simulation, tmp_path: Path) -> None:
        reporter = Logs()
        trainer, output = train_long(
            simulation, tmp_path, reporter, EnergyCallback(), eval_strategy="epoch", save_strategy="epoch"
        )
        names = {"total_j", "step_j", "avg_power_w", "samples_per_j", "tokens_per_j", "gpu0/total_j", "gpu0/power_w"}
        logged = [logs for logs in reporter.seen if "loss" in logs]
        figures = {key: value for logs in logged for key, value in logs.items() if key.startswith("energy/")}
        assert {f"energy/{name}" for name in names} <= figures.keys()
        assert {type(value) for value in figures.values()} == {float}
        total_j = load(tmp_path).total_j
        assert output.metrics["train_energy_j"] == reporter.seen[-1]["train_energy_j"] == total_j
        assert total_j is not None
        assert output.metrics["train_energy_kwh"] == pytest.approx(total_j / 3.6e6)
        assert [set(logs) for logs in reporter.seen] == [set(entry) - {"step"} for entry in trainer.state.log_history]
        kept = json.loads((tmp_path / "checkpoint-120" / "trainer_state.json").read_text())["log_history"]
        assert [entry for entry in kept if "loss" in entry][-1]["energy/total_j"] == logged[-1]["energy/total_j"]

    def test_evaluations_get_none(self, simulation: Simulation, tmp_path: Path) -> None:
        reporter = Logs()
        trainer, _ = train_long(
            simulation, tmp_path, EnergyCallback(), reporter, eval_strategy="steps", eval_steps=40, eval_delay=30
        )
        evaluated = [logs for logs in reporter.seen if "eval_loss" in logs]
        assert len(evaluated) == 3
        assert not [key for logs in evaluated for key in logs if "energy" in key]
        assert default_compute_objective(metrics := trainer.evaluate()) == metrics["eval_loss"]

    def test_an_evaluation_by_another_name_gets_none(self, simulation: Simulation, tmp_path: Path) -> None:
        class Evaluates(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                trainer.evaluate(metric_key_prefix="loss")
                trainer.log({"mine": 1.0})

        reporter = Logs()
        trainer = make_trainer(tmp_path, EnergyCallback(), reporter, Evaluates(), data=Rows(12))
        trainer.train()
        assert not [key for logs in reporter.seen[:-1] for key in logs if "energy" in key]
        assert "train_energy_j" in reporter.seen[-1]

    def test_logs_that_look_like_the_last_one(self, simulation: Simulation, tmp_path: Path) -> None:
        class Logging(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                trainer.log({"train_loss": 1.0})

        trainer = make_trainer(
            tmp_path, EnergyCallback(), Logging(), logging_steps=1, include_num_input_tokens_seen="all"
        )
        trainer.train()
        assert sum("train_runtime" in logs for logs in trainer.state.log_history) == 4
        assert load(tmp_path).steps.rows == 3

    def test_not_if_not_asked_for(self, simulation: Simulation, tmp_path: Path) -> None:
        reporter = Logs()
        train_long(simulation, tmp_path, EnergyCallback(log=False), reporter)
        assert not [key for logs in reporter.seen for key in logs if "energy" in key]

    def test_tensorboard(self, simulation: Simulation, tmp_path: Path) -> None:
        event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        train_long(simulation, tmp_path, EnergyCallback(), report_to=["tensorboard"])
        (written,) = {path.parent for path in tmp_path.rglob("events.out.*")}
        seen = event_accumulator.EventAccumulator(str(written)).Reload()
        assert {"train/energy/total_j", "train/train_energy_j"} <= {*seen.Tags()["scalars"]}

    def test_the_progress_bar(self, simulation: Simulation, tmp_path: Path) -> None:
        class Bars(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                (progress,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, ProgressCallback))
                bar: Any = progress.training_bar
                shown.append(bar.postfix)

        shown: list[str | None] = []
        model = Model(lambda _: simulation.gpus[0].launch(ops=2e13, wait=True))
        trainer = make_trainer(
            tmp_path, EnergyCallback(), Bars(), model=model, data=Rows(4 * 120), logging_steps=10, disable_tqdm=False
        )
        trainer.train()
        assert shown[0] is None
        assert str(shown[-1]).endswith((" J", " kJ"))

    def test_one_table_and_where_the_report_is(
        self, simulation: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_trainer(tmp_path, EnergyCallback()).train()
        shown = capsys.readouterr().out
        assert str(load(tmp_path)) in shown
        assert shown.count(f"Report: {tmp_path / 'energy' / 'run-1'}") == 1
