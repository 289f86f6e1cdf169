"""Small trainings of transformers' Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments


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


class Logs(TrainerCallback):
    """A reporter: keeps what it is handed."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.seen.append(dict(logs or {}))
