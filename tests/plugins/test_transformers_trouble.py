"""Trainings that fail, are tried again or are pruned: each leaves its report, and none of them fails through us."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import counts, load, our_warnings
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback
from transformers_training import Model, Rows, make_trainer

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation
from energy_plugins.transformers import EnergyCallback


class DoesNotFit(Model):
    """Fits a GPU's memory with batches of up to five."""

    def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        found = super().forward(input_ids)
        if len(input_ids) > 5:
            raise RuntimeError("CUDA out of memory.")
        return found


def break_once(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Have the next call of a method of a meter fail."""
    works = getattr(EnergyMeter, method)

    def fail(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(EnergyMeter, method, works)
        raise RuntimeError("the meter broke")

    monkeypatch.setattr(EnergyMeter, method, fail)


def attempted(folder: Path, callback: EnergyCallback, model: Model, *others: TrainerCallback) -> dict[str, Any]:
    """Train with batches of 8, 7, 6 and 5, where the meter breaks once; return the metrics and what is left."""
    trainer = make_trainer(
        folder, callback, *others, model=model, data=Rows(20), per_device_train_batch_size=8, auto_find_batch_size=True
    )
    with our_warnings() as texts:
        metrics: dict[str, Any] = trainer.train().metrics
    assert [text for text in texts if "broke" in text] == [
        "energy: measuring failed, training goes on: the meter broke"
    ]
    return {**metrics, "left": vars(trainer).keys()}


class TestAttempts:
    def test_what_they_drew_is_kept(
        self, simulation: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = DoesNotFit(lambda _: simulation.gpus[0].launch(ops=8e13, wait=True))
        trainer = make_trainer(
            tmp_path, EnergyCallback(), model=model, data=Rows(20), per_device_train_batch_size=8,
            auto_find_batch_size=True,
        )  # fmt: skip
        metrics: Any = trainer.train().metrics
        attempts = [load(tmp_path, number) for number in (1, 2, 3)]
        assert [attempt.stopped for attempt in attempts] == [
            f"a batch of {size} did not fit the GPU's memory" for size in (8, 7, 6)
        ]
        wasted_j = sum(attempt.total_j or 0 for attempt in attempts)
        report = load(tmp_path, 4)
        assert report.stopped == ""
        assert report.config["wasted_j"] == pytest.approx(wasted_j)
        assert wasted_j > 0
        assert report.total_j is not None
        assert metrics["train_wasted_j"] == pytest.approx(wasted_j)
        assert metrics["train_energy_j"] == pytest.approx(wasted_j + report.total_j)
        assert capsys.readouterr().out.count("Report: ") == 1

        trainer.train()
        assert "wasted_j" not in load(tmp_path, 5).config
        assert trainer.state.log_history[-1]["train_energy_j"] == load(tmp_path, 5).total_j

    @pytest.mark.parametrize("at_its_end", [False, True])
    def test_measuring_that_fails_in_one_forgets_none(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_its_end: bool
    ) -> None:
        callback = EnergyCallback()
        measured_j: list[float] = []

        class BreaksTheMeter(DoesNotFit):
            def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
                if len(input_ids) != 7:
                    return super().forward(input_ids)
                begin_ns = time.monotonic_ns()
                simulation.gpus[0].launch(ops=2e15, wait=True)  # long enough for figures
                measured_j.append(simulation.gpus[0].true_energy_j(begin_ns, time.monotonic_ns()))
                if at_its_end:
                    break_once(monkeypatch, "end")
                else:
                    callback._fits.monitor.give_up(RuntimeError("the meter broke"))  # as every hook's guard does
                return super().forward(input_ids)

        metrics = attempted(
            tmp_path, callback, BreaksTheMeter(lambda _: simulation.gpus[0].launch(ops=8e13, wait=True))
        )
        first, third, last = (load(tmp_path, number) for number in (1, 3, 4))
        assert first.total_j
        assert third.total_j
        assert last.total_j
        (second_j,) = measured_j
        wasted_j = third.config["wasted_j"]
        assert isinstance(wasted_j, float)
        assert wasted_j == pytest.approx(first.total_j + second_j, rel=0.1)
        assert metrics["train_wasted_j"] == pytest.approx(wasted_j + third.total_j)
        assert metrics["train_energy_j"] == pytest.approx(metrics["train_wasted_j"] + last.total_j)

    @pytest.mark.parametrize("before_its_first_step", [False, True])
    def test_one_that_is_not_measured_forgets_none_before(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_its_first_step: bool
    ) -> None:
        callback = EnergyCallback()

        class Breaks(TrainerCallback):
            def on_train_begin(self, args: Any, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
                if state.train_batch_size == 8 and not before_its_first_step:
                    break_once(monkeypatch, "start")  # of the next attempt
                elif state.train_batch_size == 7 and before_its_first_step:
                    callback._fits.monitor.give_up(RuntimeError("the meter broke"))

        model = DoesNotFit(lambda _: simulation.gpus[0].launch(ops=8e13, wait=True))
        metrics = attempted(tmp_path, callback, model, Breaks())
        reports = [Report.load(path.parent) for path in sorted(tmp_path.rglob("report.json"))]
        first, third, last = (report for report in reports if report.config["train_batch_size"] != 7)
        assert [report.config["train_batch_size"] for report in (first, third, last)] == [8, 6, 5]
        assert first.total_j
        assert third.total_j
        assert third.config["wasted_j"] == pytest.approx(first.total_j, rel=1e-3)
        assert metrics["train_wasted_j"] == pytest.approx(first.total_j + third.total_j, rel=1e-3)
        assert not {"_run_epoch", "_evaluate", "_finalize_training"} & metrics["left"]

    def test_another_failure_is_none(self, simulation: Simulation, tmp_path: Path) -> None:
        def fail(step: int) -> None:
            raise RuntimeError("no memory of this")

        trainer = make_trainer(tmp_path, EnergyCallback(), model=Model(fail), auto_find_batch_size=True)
        with pytest.raises(RuntimeError, match="no memory of this"):
            trainer.train()
        trainer.model = trainer.model_wrapped = Model()
        trainer.train()
        assert "wasted_j" not in load(tmp_path, 2).config


class TestTrouble:
    def test_wherever_it_comes_from(self, simulation: Simulation, tmp_path: Path) -> None:
        class Fails(TrainerCallback):
            def __init__(self, event: str) -> None:
                setattr(self, event, self.fail)

            def fail(self, *args: Any, **kwargs: Any) -> None:
                raise KeyboardInterrupt(*args[:0])

        events = ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_log", "on_evaluate", "on_save"]
        for event in events:
            folder = tmp_path / event
            trainer = make_trainer(
                folder, EnergyCallback(), Fails(event), gradient_accumulation_steps=2, data=Rows(16),
                eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, logging_steps=1,
            )  # fmt: skip
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            report = load(folder)
            assert report.complete, event
            assert not [text for text in report.warnings if "never ended" in text], event
            assert not {"evaluate", "_run_epoch", "get_batch_samples"} & vars(trainer).keys()

    def test_where_nobody_sees_it_the_next_training_ends_the_run(self, simulation: Simulation, tmp_path: Path) -> None:
        class Fails(TrainerCallback):
            def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
                raise LookupError

        trainer = make_trainer(tmp_path, EnergyCallback(), Fails())
        with pytest.raises(LookupError):
            trainer.train()
        trainer.remove_callback(Fails)
        trainer.train()
        assert load(tmp_path).complete
        assert load(tmp_path).steps.rows == 0
        assert load(tmp_path, 2).steps.rows == 3
        assert "_run_epoch" not in vars(trainer)

    def test_a_failure_of_ours_warns_once(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError("the meter broke")

        monkeypatch.setattr(EnergyMeter, "end", fail)
        trainer = make_trainer(tmp_path, EnergyCallback(), num_train_epochs=3)
        with our_warnings() as texts:
            trainer.train()
        assert trainer.state.global_step == 9
        ours = [text for text in texts if "training goes on" in text]
        assert ours == ["energy: measuring failed, training goes on: the meter broke"]
        assert "evaluate" not in vars(trainer)

    def test_a_batch_that_cannot_be_looked_at(self, simulation: Simulation, tmp_path: Path) -> None:
        class Odd(dict[str, Any]):
            def values(self) -> Any:
                raise TypeError("not that way")

        class Oddly(Trainer):
            def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
                return super().training_step(model, {"input_ids": torch.ones(4, 8)}, *args, **kwargs)

        collate: Any = lambda rows: Odd(rows=len(rows))  # noqa: E731
        trainer = Oddly(Model(), make_trainer(tmp_path).args, collate, Rows(12), callbacks=[EnergyCallback()])
        with our_warnings() as texts:
            trainer.train()
        assert trainer.state.global_step == 3
        assert texts == ["energy: measuring failed, training goes on: not that way"]

    def test_a_disk_that_cannot_be_written(self, simulation: Simulation, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        callback = EnergyCallback(folder=str(tmp_path / "file" / "below"))
        with our_warnings() as texts:
            make_trainer(tmp_path, callback).train()
        assert ["not kept on disk" in text for text in texts] == [True]
        assert callback.report is not None
        assert callback.report.steps.rows == 3

    def test_deepspeed_has_no_optimizer_phase_and_that_is_said_once(
        self, simulation: Simulation, tmp_path: Path
    ) -> None:
        class Pretends(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                trainer.is_deepspeed_enabled = True

            def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
                trainer.is_deepspeed_enabled = False  # the trainer would call the library, which is not here

        trainer = make_trainer(tmp_path, Pretends(), EnergyCallback(phases_every_n_steps=1))
        with our_warnings() as texts:
            for _ in range(2):
                trainer.callback_handler.callbacks.sort(key=lambda one: not isinstance(one, Pretends))  # ours moves up
                trainer.train()
        assert ["DeepSpeed" in text for text in texts] == [True]
        for report in (load(tmp_path), load(tmp_path, 2)):
            assert texts == [f"energy: {report.config['phases']}; steps are measured as ever"]
            found = counts(report)
            assert (report.steps.rows, found["forward"], found["backward"]) == (3, 3, 3)
            assert "optimizer" not in found

    def test_a_loop_that_is_no_trainer(self, simulation: Simulation, tmp_path: Path) -> None:
        callback = EnergyCallback(folder=str(tmp_path / "energy"))
        handler: Any = CallbackHandler([DefaultFlowCallback, callback], None, None, None, None)
        args, state, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(), TrainerControl()
        handler.on_train_begin(args, state, control)
        for _ in range(3):
            handler.on_step_begin(args, state, control)
            handler.on_step_end(args, state, control)
        handler.on_train_end(args, state, control)
        assert load(tmp_path).steps.rows == 3


class TestSearch:
    def test_one_callback_for_all_trials(self, simulation: Simulation, tmp_path: Path) -> None:
        class Tries(Trainer):
            def _init_training_state(self, *args: Any) -> Any:
                found = super()._init_training_state(*args)
                self.state.trial_params = params  # as the library of the search would tell it
                return found

        trainer = Tries(Model(), make_trainer(tmp_path).args, None, Rows(12), callbacks=[EnergyCallback()])
        for number in (1, 2):
            params: Any = {"learning_rate": 10**-number, "power_limit_w": 300, "kind": Path("a")}
            trainer.train()
            report = load(tmp_path, number)
            assert report.config["trial_params"] == {**params, "kind": "a"}
            assert trainer.state.log_history[-1]["train_energy_j"] == report.total_j

    def test_optuna(self, simulation: Simulation, tmp_path: Path) -> None:
        callback = EnergyCallback()
        plain = make_trainer(tmp_path, eval_strategy="epoch")
        data: Any = {"train_dataset": Rows(12), "eval_dataset": Rows(8), "model_init": lambda _: Model()}
        trainer = Trainer(None, plain.args, callbacks=[callback], **data)
        space: Any = {"hp_space": lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-5)}}
        best: Any = trainer.hyperparameter_search(backend="optuna", n_trials=3, **space)
        reports = [load(tmp_path, number) for number in (1, 2, 3)]
        assert best.hyperparameters in [report.config["trial_params"] for report in reports]
        assert len({report.run_id for report in reports}) == 3
        assert best.objective < 1e6

    def test_a_pruned_trial_has_its_report(self, simulation: Simulation, tmp_path: Path) -> None:
        class Pruned(Exception):  # noqa: N818 - as Optuna's
            pass

        class Prunes(Trainer):
            def _report_to_hp_search(self, *args: Any) -> None:
                self.callback_handler.on_train_end(self.args, self.state, self.control)
                raise Pruned

        plain = make_trainer(tmp_path, eval_strategy="steps", eval_steps=2)
        trainer = Prunes(Model(), plain.args, None, Rows(40), Rows(8), callbacks=[EnergyCallback()])
        with pytest.raises(Pruned):
            trainer.train()
        report = load(tmp_path)
        assert report.complete
        assert report.steps.rows == 2
