"""`attach` keeps the plugin contract, and does what is accelerate's own."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from energy_plugins.accelerate import Attached, EnergyPlugin, EnergyTracker, attach
from energy_plugins.config import KEYS
from energy_plugins.errors import ConfigError
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation, simulated_gpus
from energy_plugins.testing.contract import Plan, PluginContract, Trained

SYNCHRONISING = ("Synchronize", "cudaMemcpy", "cudaEventQuery")


class Rows(Dataset[torch.Tensor]):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), float(index))


class Batches(BatchSampler):
    """Takes its time for each batch, and for finding that there is none left: one batch is always fetched ahead."""

    def __init__(self, rows: int, batch_size: int, wait_s: float) -> None:
        super().__init__(SequentialSampler(range(rows)), batch_size, drop_last=False)
        self.wait_s = wait_s

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            time.sleep(self.wait_s)
            yield batch
        time.sleep(self.wait_s)


def do_nothing(step: int) -> None:
    pass


class Model(torch.nn.Module):
    """A linear layer, and whatever else a step is to do."""

    def __init__(self, step: Callable[[int], None] = do_nothing) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.do_step = step
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.do_step(self.passes)
            self.passes += 1
        loss: torch.Tensor = self.layer(x).square().mean()
        return loss


def loader(rows: int, wait_s: float = 0.0, batch_size: int = 4) -> DataLoader[torch.Tensor]:
    return DataLoader(Rows(rows), batch_sampler=Batches(rows, batch_size, wait_s))


def load(folder: Path, number: int = 1) -> Report:
    return Report.load(folder / "energy" / f"run-{number}")


def counts(report: Report) -> dict[str, int]:
    return {phase.kind: phase.count for phase in report.phases}


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerators share what they know of the process, and of the loop that one left in the middle."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with simulated_gpus() as simulation:
        yield simulation


@contextmanager
def our_warnings() -> Iterator[list[str]]:
    """Collect what would have been warned of measuring."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield texts
    texts += [str(warning.message) for warning in caught if warning.category is RuntimeWarning]


class Training:
    """A loop as people write it."""

    def __init__(self, folder: Path, data: DataLoader[torch.Tensor], model: Model | None = None, **made: Any) -> None:
        self.accelerator = Accelerator(cpu=True, project_dir=str(folder), **made)
        plain = model or Model()
        optimizer = torch.optim.SGD(plain.parameters(), lr=1e-6)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(plain, optimizer, data)
        self.steps = 0
        self.optimizer.optimizer.register_step_post_hook(self._count)

    def _count(self, *args: object) -> None:
        self.steps += 1

    def epoch(self, each: Callable[[torch.Tensor], None] = lambda loss: None) -> None:
        for batch in self.loader:
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            each(loss)


class TestContract(PluginContract):
    def train(self, plan: Plan) -> Trained:
        GradientState._reset_state()
        data = loader(plan.steps * plan.batch_size, plan.wait_s, plan.batch_size)
        training = Training(plan.folder, data, Model(plan.step))
        failure = energy = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            try:
                if plan.with_plugin:
                    energy = attach(training.accelerator, table=False)
                if plan.resume_from is not None:
                    training.accelerator.load_state(str(plan.resume_from))
                training.epoch()
            except Exception as error:  # noqa: BLE001 - the contract judges it
                failure = error
            finally:
                if energy is not None:
                    energy.finish()
        checkpoint = plan.folder / "checkpoint"
        training.accelerator.save_state(str(checkpoint))
        written = plan.folder / "energy" / "run-1"
        return Trained(
            steps=training.steps,
            report=Report.load(written) if (written / "report.json").exists() else None,
            total_j=energy and energy.total_j,
            checkpoint=checkpoint,
            failure=failure,
            hosts=(training.accelerator, training.model, training.optimizer, training.loader, type(training.loader)),
            synchronisations=Counter(
                event.name for event in profile.events() or () if any(name in event.name for name in SYNCHRONISING)
            ),
        )
