"""`EnergyCallback` keeps the plugin contract, and does what is transformers' own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import counts, load, load_if_any, synchronisations, wait_for
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers_training import Model, Rows, make_trainer

from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation
from energy_plugins.testing.contract import Plan, PluginContract, Trained, Wait
from energy_plugins.transformers import EnergyCallback


class Waits(TrainerCallback):
    """A callback that waits for the device, as ours must not."""

    def __init__(self, ways: Sequence[Wait]) -> None:
        self.ways = ways

    def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        wait_for(next(model.parameters()), self.ways)


class TestContract(PluginContract):
    def train(self, plan: Plan) -> Trained:
        # One batch more than is trained on: each fetch is of the batch after the next, which the last step would lack.
        steps = plan.steps if plan.resume_from is None else 2 * plan.steps
        data = Rows(plan.ranks * (steps + 1) * plan.batch_size, plan.wait_s, plan.batch_size)
        model = Model(plan.step)
        callbacks = [Waits(plan.waits), *([EnergyCallback(table=False)] if plan.with_plugin else [])]
        trainer = make_trainer(plan.folder, *callbacks, model=model, data=data, max_steps=steps)
        hosts = (trainer, trainer.callback_handler, trainer.accelerator, model)
        failure = None
        with synchronisations() as waited:
            try:
                trainer.train(resume_from_checkpoint=str(plan.resume_from) if plan.resume_from else None)
            except Exception as error:  # noqa: BLE001 - the contract judges it
                failure = error
        if failure is None:
            trainer._save_checkpoint(trainer.model, trial=None)  # type: ignore[arg-type]
        return Trained(
            steps=model.steps,
            report=load_if_any(plan.folder),
            total_j=trainer.state.log_history[-1].get("train_energy_j") if trainer.state.log_history else None,
            checkpoint=plan.folder / f"checkpoint-{trainer.state.global_step}",
            failure=failure,
            hosts=hosts,
            synchronisations=waited,
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


def _phases(report: Report) -> dict[str, int]:
    found = counts(report)
    return {kind: found[kind] for kind in ("step", "data_wait", "forward", "backward", "optimizer") if kind in found}


RANK = """
import sys
import time
from pathlib import Path
from transformers_training import Model, Rows, make_trainer
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
    assert [report.config["num_workers"] for report in reports] == [0, 0]
    assert [report.steps.rows for report in reports] == [int(steps[0].split()[1])] * 2
