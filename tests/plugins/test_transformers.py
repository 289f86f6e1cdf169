"""`EnergyCallback` keeps the plugin contract, and does what is transformers' own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation, simulated_gpus
from energy_plugins.testing.contract import Plan, PluginContract, Trained
from energy_plugins.transformers import EnergyCallback, attach

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

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
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


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with simulated_gpus() as simulation:
        yield simulation


class TestContract(PluginContract):
    def make_trainer(self, plan: Plan, model: Model, data: Rows, **settings: Any) -> Trainer:
        callbacks = [EnergyCallback(table=False)] if plan.with_plugin else []
        return make_trainer(plan.folder, *callbacks, model=model, data=data, **settings)

    def train(self, plan: Plan) -> Trained:
        # One batch more than is trained on: each fetch is of the batch after the next, which the last step would lack.
        steps = plan.steps if plan.resume_from is None else 2 * plan.steps
        data = Rows((steps + 1) * plan.batch_size, plan.wait_s, plan.batch_size)
        model = Model(plan.step)
        trainer = self.make_trainer(plan, model, data, max_steps=steps)
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


class TestContractByReportTo(TestContract):
    """``report_to="energy"``, with nothing but the import of the module."""

    def make_trainer(self, plan: Plan, model: Model, data: Rows, **settings: Any) -> Trainer:
        reporters = ["energy"] if plan.with_plugin else []
        return make_trainer(plan.folder, model=model, data=data, report_to=reporters, **settings)


class TestContractAttached(TestContract):
    def make_trainer(self, plan: Plan, model: Model, data: Rows, **settings: Any) -> Trainer:
        trainer = make_trainer(plan.folder, model=model, data=data, **settings)
        if plan.with_plugin:
            attach(trainer, table=False)
        return trainer
