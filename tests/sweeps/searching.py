"""Searches of transformers' for a model whose loss is the power limit of its GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from seen_limit import limit_w
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

STEP_S = 0.05


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(2)}


class Limited(torch.nn.Module):
    """A linear layer; its loss is the limit (W)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        time.sleep(STEP_S)
        return {"loss": self.layer(x).mean() * 0 + limit_w()}


def objective(metrics: dict[str, float]) -> float:
    """Return the loss, and fail where anything of ours could have become part of it."""
    assert not [key for key in metrics if "energy" in key], metrics
    return metrics["eval_loss"]


def make_trainer(folder: Path, *callbacks: TrainerCallback, model: Any = Limited) -> Trainer:
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data, asked = Rows(), list(callbacks)
    return Trainer(None, args, None, data, data, model_init=model, callbacks=asked)
