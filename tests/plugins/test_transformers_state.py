"""What `EnergyCallback` keeps over checkpoints, resumes, copies and pickles."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import GradientState
from outcomes import load, our_warnings
from transformers import Trainer, TrainerCallback
from transformers_training import Logs, Model, make_trainer

from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation
from energy_plugins.transformers import EnergyCallback


class TestState:
    @pytest.mark.parametrize("restore", [False, True])
    def test_resuming_with_and_without_the_flag(self, simulation: Simulation, tmp_path: Path, restore: bool) -> None:
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
        slow = Model(lambda _: simulation.gpus[0].launch(ops=8e14, wait=True))  # a second each, to be known in time
        make_trainer(tmp_path, EnergyCallback(), model=slow, max_steps=3, **saving).train()
        saved = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["stateful_callbacks"]
        earlier_j = saved["EnergyCallback"]["attributes"]["restored"]["total_j"]
        assert earlier_j > 0
        callback, reporter = EnergyCallback(name="mine"), Logs()
        trainer = make_trainer(
            tmp_path, reporter, callback, model=slow, max_steps=6, num_train_epochs=2,
            restore_callback_states_from_checkpoint=restore, **saving,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        report = Report.load(tmp_path / "energy" / "mine-1")  # the settings are those that were given now
        assert callback.report is not None
        assert callback.report.run_id == report.run_id
        assert report.steps.rows == 3
        assert report.config["earlier_j"] == earlier_j
        assert report.total_j is not None
        assert reporter.seen[-1]["train_energy_j"] == pytest.approx(earlier_j + report.total_j)
        kept = [one for one in trainer.callback_handler.callbacks if isinstance(one, EnergyCallback)]
        assert kept == [callback]
        again = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"]
        assert again["EnergyCallback"]["attributes"]["restored"]["total_j"] > earlier_j

    def test_one_that_was_added_later_is_restored_with_its_settings(
        self, simulation: Simulation, tmp_path: Path
    ) -> None:
        def trained(steps: int, resume: bool) -> None:
            trainer = make_trainer(
                tmp_path, max_steps=steps, save_strategy="steps", save_steps=3,
                restore_callback_states_from_checkpoint=True,
            )  # fmt: skip
            trainer.add_callback(EnergyCallback(name="mine"))
            trainer.train(resume_from_checkpoint=resume)

        trained(3, resume=False)
        trained(6, resume=True)
        assert Report.load(tmp_path / "energy" / "mine-2").steps.rows == 3

    def test_a_checkpoint_without_our_state(self, simulation: Simulation, tmp_path: Path) -> None:
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
        make_trainer(tmp_path, max_steps=3, **saving).train()
        make_trainer(tmp_path, EnergyCallback(), max_steps=6, **saving).train(resume_from_checkpoint=True)
        assert (tmp_path / "checkpoint-6").exists()
        assert load(tmp_path).config["earlier_j"] == 0

    def test_a_checkpoint_with_the_states_of_two(self, simulation: Simulation, tmp_path: Path) -> None:
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
        make_trainer(tmp_path, EnergyCallback(), max_steps=3, **saving).train()
        file = tmp_path / "checkpoint-3" / "trainer_state.json"
        state = json.loads(file.read_text())
        one = state["stateful_callbacks"]["EnergyCallback"]
        state["stateful_callbacks"]["EnergyCallback"] = [one, one]
        file.write_text(json.dumps(state))
        two: dict[str, Any] = {"restore_callback_states_from_checkpoint": True, "report_to": ["energy"]}
        trainer = make_trainer(tmp_path, EnergyCallback(), max_steps=6, **saving, **two)
        trainer.train(resume_from_checkpoint=True)
        assert load(tmp_path, 2).steps.rows == 3
        assert load(tmp_path, 2).config["earlier_j"] == one["attributes"]["restored"]["total_j"]
        assert not (tmp_path / "energy" / "run-3").exists()

    @pytest.mark.parametrize("broken", [None, [], {}, {"attributes": []}, {"attributes": {"restored": {"joules": 1}}}])
    def test_the_state_of_another_version_does_not_stop_a_resume(
        self, simulation: Simulation, tmp_path: Path, broken: Any
    ) -> None:
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
        make_trainer(tmp_path, max_steps=1, **saving).train()
        file = tmp_path / "checkpoint-1" / "trainer_state.json"
        state = json.loads(file.read_text())
        state["stateful_callbacks"]["EnergyCallback"] = broken
        file.write_text(json.dumps(state))
        trainer = make_trainer(tmp_path, EnergyCallback(), max_steps=2, **saving)
        with our_warnings() as texts:
            trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 2
        assert load(tmp_path).config["earlier_j"] == 0
        assert len(texts) <= 1

    def test_another_training_counts_from_zero(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, EnergyCallback())
        for _ in range(2):
            trainer.train()
        assert trainer.state.log_history[-1]["train_energy_j"] == load(tmp_path, 2).total_j

    def test_copies_are_of_the_settings(self, simulation: Simulation, tmp_path: Path) -> None:
        class Copies(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                assert callback._fits.monitor.run is not None
                assert copy.deepcopy(callback)._fits.monitor.run is None
                copied.append(pickle.loads(pickle.dumps(callback)))  # noqa: S301 - our own bytes

        copied: list[EnergyCallback] = []
        callback = EnergyCallback(name="mine")
        make_trainer(tmp_path, callback, Copies()).train()
        make_trainer(tmp_path, copied[-1]).train()
        assert (tmp_path / "energy" / "mine-2" / "report.json").exists()

    def test_a_trainer_before_its_training_can_be_pickled(self, simulation: Simulation, tmp_path: Path) -> None:
        GradientState._reset_state()  # of other tests' trainers
        trainer = make_trainer(tmp_path, EnergyCallback())
        copied: Trainer = pickle.loads(pickle.dumps(trainer))  # noqa: S301 - our own bytes
        copied.train()
        assert load(tmp_path).steps.rows == 3
