"""`EnergyCallback` keeps the plugin contract, and does what is transformers' own."""

from __future__ import annotations

import copy
import json
import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import GradientState
from torch.utils.data import Dataset, IterableDataset
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ProgressCallback
from transformers.trainer_utils import default_compute_objective

from energy_plugins.errors import ConfigError
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation, simulated_gpus
from energy_plugins.testing.contract import Plan, PluginContract, Trained
from energy_plugins.transformers import EnergyArguments, EnergyCallback, attach

SYNCHRONISING = ("Synchronize", "cudaMemcpy", "cudaEventQuery")


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: int, wait_s: float = 0.0, batch_size: int = 4) -> None:
        self.rows, self.wait_s, self.batch_size = rows, wait_s, batch_size

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index % self.batch_size == 0:
            time.sleep(self.wait_s)
        return {"input_ids": torch.full((8,), float(index))}


def do_nothing(step: int) -> None:
    pass


class Model(torch.nn.Module):
    """A linear layer, and whatever else a training step is to do."""

    def __init__(self, step: Callable[[int], None] = do_nothing) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.do_step = step
        self.steps = 0

    def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        if self.training:
            self.do_step(self.steps)
            self.steps += 1
        return {"loss": self.layer(input_ids).square().mean()}


def make_trainer(
    folder: Path,
    *callbacks: TrainerCallback | type[TrainerCallback],
    model: torch.nn.Module | None = None,
    data: Dataset[Any] | None = None,
    **settings: Any,
) -> Trainer:
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    args = TrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    callbacks_given: Any = list(callbacks)
    return Trainer(
        model=Model() if model is None else model,
        args=args,
        train_dataset=Rows(12) if data is None else data,
        eval_dataset=Rows(8),
        callbacks=callbacks_given,
    )


def load(folder: Path, number: int = 1) -> Report:
    return Report.load(folder / "energy" / f"run-{number}")


def counts(report: Report) -> dict[str, int]:
    return {phase.kind: phase.count for phase in report.phases}


@contextmanager
def our_warnings() -> Iterator[list[str]]:
    """Collect what is warned of measuring."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield texts
    texts += [str(warning.message) for warning in caught if warning.category is RuntimeWarning]


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with simulated_gpus() as simulation:
        yield simulation


class TestContract(PluginContract):
    def train(self, plan: Plan) -> Trained:
        # One batch more than is trained on: each fetch is of the batch after the next, which the last step would lack.
        steps = plan.steps if plan.resume_from is None else 2 * plan.steps
        data = Rows(plan.ranks * (steps + 1) * plan.batch_size, plan.wait_s, plan.batch_size)
        model = Model(plan.step)
        callbacks = [EnergyCallback(table=False)] if plan.with_plugin else []
        trainer = make_trainer(plan.folder, *callbacks, model=model, data=data, max_steps=steps)
        hosts = (trainer, trainer.callback_handler, trainer.accelerator, model)
        failure = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            try:
                trainer.train(resume_from_checkpoint=str(plan.resume_from) if plan.resume_from else None)
            except Exception as error:  # noqa: BLE001 - the contract judges it
                failure = error
        if failure is None:
            trainer._save_checkpoint(trainer.model, trial=None)  # type: ignore[arg-type]
        written = plan.folder / "energy" / "run-1"
        return Trained(
            steps=model.steps,
            report=Report.load(written) if (written / "report.json").exists() else None,
            total_j=trainer.state.log_history[-1].get("train_energy_j") if trainer.state.log_history else None,
            checkpoint=plan.folder / f"checkpoint-{trainer.state.global_step}",
            failure=failure,
            hosts=hosts,
            synchronisations=Counter(
                event.name for event in profile.events() or () if any(name in event.name for name in SYNCHRONISING)
            ),
        )


class TestSteps:
    def test_gradient_accumulation(self, simulation: Simulation, tmp_path: Path) -> None:
        callback = EnergyCallback(phases_every_n_steps=1)
        make_trainer(tmp_path, callback, data=Rows(20), gradient_accumulation_steps=2).train()
        report = load(tmp_path)
        assert report.steps["samples"].tolist() == [8, 8, 4]  # the end of an epoch leaves half a step
        assert report.steps["tokens"].tolist() == [64, 64, 32]
        found = counts(report)
        assert (found["forward"], found["backward"], found["optimizer"]) == (5, 5, 3)
        assert not report.warnings

    def test_phases_every_n(self, simulation: Simulation, tmp_path: Path) -> None:
        make_trainer(tmp_path, EnergyCallback(phases_every_n_steps=2), data=Rows(20)).train()
        assert counts(load(tmp_path))["optimizer"] == 3

    def test_no_phases(self, simulation: Simulation, tmp_path: Path) -> None:
        make_trainer(tmp_path, EnergyCallback(phases_every_n_steps=0)).train()
        assert "forward" not in counts(load(tmp_path))

    def test_waiting_for_other_callbacks_is_not_waiting_for_data(self, simulation: Simulation, tmp_path: Path) -> None:
        class Slow(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                time.sleep(0.05)

        make_trainer(tmp_path, EnergyCallback(), Slow(), data=Rows(20)).train()
        steps = load(tmp_path).steps
        assert min(steps["start_s"][1:] - steps["end_s"][:-1]) >= 0.05

    def test_a_training_that_ends_between_two_micro_batches(self, simulation: Simulation, tmp_path: Path) -> None:
        class Stops(TrainerCallback):
            def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
                control.should_training_stop = state.global_step == 2

        make_trainer(tmp_path, EnergyCallback(), Stops(), data=Rows(40), gradient_accumulation_steps=2).train()
        report = load(tmp_path)
        assert report.work.samples == 2 * 8
        assert not [text for text in report.warnings if "never ended" in text]

    def test_a_stream_that_ends_early(self, simulation: Simulation, tmp_path: Path) -> None:
        class Stream(IterableDataset[dict[str, torch.Tensor]]):
            def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
                yield from (Rows(12)[index] for index in range(12))

        trainer = make_trainer(tmp_path, EnergyCallback(), data=Stream(), max_steps=5)
        trainer.train()
        report = load(tmp_path)
        assert report.steps.rows == trainer.state.global_step
        assert set(report.steps["samples"].tolist()) == {4}
        assert not [text for text in report.warnings if "never ended" in text]

    def test_a_batch_of_which_nothing_can_be_told(self, simulation: Simulation, tmp_path: Path) -> None:
        class Texts(Trainer):
            def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
                return super().training_step(model, {"input_ids": torch.ones(4, 8)}, *args, **kwargs)

        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, dataloader_pin_memory=False, max_steps=2)
        texts: Any = ["one", "two"]
        callbacks: Any = [EnergyCallback]
        trainer = Texts(
            Model(), args, data_collator=lambda rows: {"text": rows}, train_dataset=texts, callbacks=callbacks
        )
        trainer.train()
        work = load(tmp_path).work
        assert (work.steps, work.samples, work.tokens) == (2, None, None)


class TestSpans:
    def test_evaluations_and_checkpoints(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(
            tmp_path, EnergyCallback(), eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=2,
            eval_on_start=True,
        )  # fmt: skip
        trainer.train()
        report = load(tmp_path)
        assert counts(report) == {"run": 1, "fit": 1, "validate": 4, "checkpoint": 2, **_phases(report)}
        assert report.steps.rows == 3

    def test_several_data_sets_are_one_evaluation(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, EnergyCallback(), eval_strategy="epoch")
        trainer.eval_dataset = {"one": Rows(8), "two": Rows(4)}
        trainer.train()
        assert counts(load(tmp_path))["validate"] == 1

    def test_an_evaluation_is_no_wait_and_no_step(self, simulation: Simulation, tmp_path: Path) -> None:
        class Slow(TrainerCallback):
            def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
                time.sleep(0.05)

        make_trainer(tmp_path, EnergyCallback(), Slow(), eval_strategy="steps", eval_steps=1).train()
        report = load(tmp_path)
        assert min(report.steps["start_s"][1:] - report.steps["end_s"][:-1]) >= 0.05
        (validating,) = (kind for kind in report.kinds if kind.kind == "validate")
        assert validating.energy_j is not None

    def test_an_evaluation_alone_is_not_measured(self, simulation: Simulation, tmp_path: Path) -> None:
        metrics = make_trainer(tmp_path, EnergyCallback()).evaluate()
        assert not [key for key in metrics if "energy" in key]
        assert not (tmp_path / "energy").exists()


class Logs(TrainerCallback):
    """A reporter: keeps what it is handed."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.seen.append(dict(logs or {}))


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


class DoesNotFit(Model):
    """Fits a GPU's memory with batches of up to five."""

    def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        found = super().forward(input_ids)
        if len(input_ids) > 5:
            raise RuntimeError("CUDA out of memory.")
        return found


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

    def test_measuring_that_fails_in_one_forgets_none(self, simulation: Simulation, tmp_path: Path) -> None:
        callback = EnergyCallback()

        class BreaksTheMeter(DoesNotFit):
            def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
                if len(input_ids) == 7:
                    callback._fits.monitor.give_up(RuntimeError("the meter broke"))  # as every hook's guard does
                return super().forward(input_ids)

        trainer = make_trainer(
            tmp_path, callback, model=BreaksTheMeter(lambda _: simulation.gpus[0].launch(ops=8e13, wait=True)),
            data=Rows(20), per_device_train_batch_size=8, auto_find_batch_size=True,
        )  # fmt: skip
        with our_warnings() as texts:
            metrics: Any = trainer.train().metrics
        assert len([text for text in texts if "the meter broke" in text]) == 1
        first, third, last = (load(tmp_path, number) for number in (1, 3, 4))
        assert first.total_j
        assert third.total_j
        assert last.total_j
        assert third.config["wasted_j"] >= first.total_j
        assert metrics["train_wasted_j"] >= first.total_j + third.total_j
        assert metrics["train_energy_j"] == pytest.approx(metrics["train_wasted_j"] + last.total_j)

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
        pytest.importorskip("optuna")
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


class TestSettings:
    def test_the_class_will_do(self, simulation: Simulation, tmp_path: Path) -> None:
        make_trainer(tmp_path, EnergyCallback).train()
        assert load(tmp_path).steps.rows == 3

    def test_of_several_the_last_one_measures(self, simulation: Simulation, tmp_path: Path) -> None:
        first, last = EnergyCallback(name="first"), EnergyCallback(name="last")
        trainer = make_trainer(tmp_path, first, last, report_to=["energy"], save_strategy="epoch")
        for _ in range(2):
            trainer.train()
        assert sorted(path.name for path in (tmp_path / "energy").iterdir()) == ["last-1", "last-2"]
        assert first.report is None
        assert [one for one in trainer.callback_handler.callbacks if isinstance(one, EnergyCallback)] == [last]

    def test_not_at_all(self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENERGY_MEASURE_ENABLED", "no")
        callback = EnergyCallback()
        trainer = make_trainer(tmp_path, callback)
        trainer.train()
        assert callback.report is None
        assert not (tmp_path / "energy").exists()
        assert "train_energy_j" not in trainer.state.log_history[-1]

    def test_by_report_to(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, report_to=["energy"])
        trainer.train()
        assert load(tmp_path).steps.rows == 3
        assert attach(trainer).report is not None

    def test_attached(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, reporter := Logs())
        callback = EnergyCallback().attach(trainer)
        trainer.train()
        assert callback.report is not None
        assert callback.report.steps["samples"].tolist() == [4, 4, 4]
        assert "train_energy_j" in reporter.seen[-1]

    def test_attach_gives_the_one_that_is_there(self, tmp_path: Path) -> None:
        callback = EnergyCallback()
        trainer = make_trainer(tmp_path, callback)
        assert attach(trainer) is callback
        other = attach(trainer, name="other")
        assert other is not callback
        assert EnergyCallback().attach(trainer) in trainer.callback_handler.callbacks
        assert sum(isinstance(one, EnergyCallback) for one in trainer.callback_handler.callbacks) == 1

    def test_arguments_beside_the_trainer_s(self, simulation: Simulation, tmp_path: Path) -> None:
        parser: Any = HfArgumentParser((TrainingArguments, EnergyArguments))  # type: ignore[arg-type]
        words = ["--output_dir", str(tmp_path), "--use_cpu", "--energy-report-name", "mine", "--max_steps", "1"]
        args, energy = parser.parse_args_into_dataclasses([*words, "--energy_measure_phases_every_n_steps", "7"])
        callback = EnergyCallback.from_arguments(energy)
        assert callback._fits.monitor.config.measure.phases_every_n_steps == 7
        args.dataloader_pin_memory = False
        Trainer(Model(), args, train_dataset=Rows(12), callbacks=[callback]).train()
        assert (tmp_path / "energy" / "mine-1" / "report.json").exists()

    def test_what_is_not_allowed_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="phases_every_n_steps is -1"):
            EnergyCallback(phases_every_n_steps=-1)
        with pytest.raises(ConfigError, match="energy_budget_kwh"):
            EnergyCallback(energy_budget_kwh=0.0)

    @pytest.mark.parametrize(
        ("module", "complaint"),
        [
            ("raise ModuleNotFoundError", "transformers or torch is missing: pip install energy-plugins[transformers]"),
            ("__version__ = '4.57.1'", "needs transformers 5.17 or newer, not 4.57.1: pip install energy-plugins"),
        ],
    )
    def test_the_import_names_the_remedy(self, tmp_path: Path, module: str, complaint: str) -> None:
        (tmp_path / "transformers.py").write_text(module)
        (tmp_path / "torch.py").touch()
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import energy_plugins.transformers"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "ImportError: " in ended.stderr
        assert complaint in ended.stderr


def _phases(report: Report) -> dict[str, int]:
    found = counts(report)
    return {kind: found[kind] for kind in ("step", "data_wait", "forward", "backward", "optimizer") if kind in found}


RANK = """
import sys
import time
from pathlib import Path
from test_transformers import Model, Rows, make_trainer
from energy_plugins.transformers import EnergyCallback

callback = EnergyCallback(energy_budget_kwh=1e-12)
model = Model(lambda _: time.sleep(0.1))
trainer = make_trainer(Path(sys.argv[1]), callback, model=model, data=Rows(800), ddp_find_unused_parameters=False)
trainer.train()
print("steps", trainer.state.global_step)
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_ranks_agree_on_the_folder_and_on_the_end(simulation: Simulation, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(2):
        environment = {
            **simulation.environment(),
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        command = [sys.executable, "-c", RANK, str(tmp_path)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    shown = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    steps = [line for text in shown for line in text.splitlines() if line.startswith("steps")]
    assert steps[0] == steps[1]
    assert int(steps[0].split()[1]) < 100
    assert ["ends the training" in text for text in shown] == [True, False]
    reports = [load(tmp_path), Report.load(tmp_path / "energy" / "run-1" / "rank-1")]
    assert [report.config["rank"] for report in reports] == [0, 1]
    assert [report.steps.rows for report in reports] == [int(steps[0].split()[1])] * 2
