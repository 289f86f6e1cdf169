"""Small training loops with accelerate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler


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


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerators share what they know of the process, and of the loop that one left in the middle."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
