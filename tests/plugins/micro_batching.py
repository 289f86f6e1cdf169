"""Lightning trainings whose gradients are looked at before each step of the optimizer, as they are and tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from energy_plugins.errors import BatchError
from energy_plugins.lightning import MicroBatchTuner

Tensors = list[torch.Tensor]
IGNORED = -100
WORDS = 11
STEPS = 24
"""Optimizer steps of `both`: three that are looked at before anything changes, and twenty and one."""
TUNED = 20
"""At least so many of them have another micro-batch."""


class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Token ids, and labels of which each sentence has another number."""

    def __init__(self, rows: int) -> None:
        made = torch.Generator().manual_seed(5)
        self.ids = torch.randint(0, WORDS, (rows, 6), generator=made)
        self.labels = torch.randint(0, WORDS, (rows, 6), generator=made)
        for row in range(rows):
            self.labels[row, 1 + (row * 7) % 6 :] = IGNORED

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class EvenAtFirst(Sentences):
    """Of which all sentences before one have labels for all their words.

    Args:
        rows: how many there are.
        even: the first that has not.
        every: beyond it one of so many.
    """

    def __init__(self, rows: int, even: int, every: int = 1) -> None:
        super().__init__(rows)
        for row in range(rows):
            if row < even or row % every != every - 1:
                self.labels[row] = self.ids[row]


class Reader(LightningModule):
    """A small language model, whose loss is a mean over sentences of means over their labels."""

    def __init__(self, lr: float = 0.1, *more: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.words = nn.Embedding(WORDS, 16)
        self.layers = nn.Sequential(nn.Linear(16, 32), *more, nn.Tanh(), nn.LayerNorm(32), nn.Linear(32, WORDS))
        self.lr = lr
        self.sizes: list[int] = []

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layers(self.words(ids)))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        scores, labels = self.scores(batch["input_ids"]), batch["labels"]
        each = functional.cross_entropy(scores.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return (each.sum(1) / (labels != IGNORED).sum(1)).mean()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.sizes.append(len(batch["input_ids"]))
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)]


class OfTokens(Reader):
    """The usual loss, a mean over all labels of a batch: that of a micro-batch has another divisor."""

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        scores = self.scores(batch["input_ids"])
        return functional.cross_entropy(scores.transpose(1, 2), batch["labels"], ignore_index=IGNORED)


class Contrastive(Reader):
    """Each sentence is to be unlike the others of its batch."""

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        z = functional.normalize(self.scores(batch["input_ids"]).mean(1), dim=1)
        return functional.cross_entropy(z @ z.T / 0.2, torch.arange(len(z)))


class Gradients(Callback):
    """Notes parameters and gradients before each step of the optimizer.

    Args:
        states: parameters to load before each window; none if the training runs free.
    """

    def __init__(self, states: Sequence[Tensors] = ()) -> None:
        self.states = states
        self.parameters: list[Tensors] = []
        self.gradients: list[Tensors] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.states and batch_idx % trainer.accumulate_grad_batches == 0:
            with torch.no_grad():
                for parameter, value in zip(pl_module.parameters(), self.states[trainer.global_step], strict=True):
                    parameter.copy_(value)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.parameters.append([one.detach().clone() for one in pl_module.parameters()])
        self.gradients.append([one.grad.clone() for one in pl_module.parameters() if one.grad is not None])


def trained(
    folder: Path,
    model: LightningModule,
    *callbacks: Callback,
    rows: int,
    batch: int,
    wrap: Callable[[DataLoader[Any]], Any] = lambda loader: loader,
    validation: bool = False,
    resume: Path | None = None,
    **settings: Any,
) -> Trainer:
    """Train, and return the trainer."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **settings})
    loader: DataLoader[Any] = DataLoader(Sentences(rows), batch_size=batch)
    trainer.fit(model, wrap(loader), loader if validation else None, ckpt_path=resume)
    return trainer


def apart(one: Tensors, other: Tensors) -> float:
    """Return the norm of a difference as a share of the norm of the first."""
    if len(one) != len(other):
        raise BatchError(f"{len(one)} gradients, and {len(other)}")
    whole = sum(float(a.double().square().sum()) for a in one)
    away = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True))
    return math.sqrt(away / whole)


def both(
    folder: Path, model: type[Reader], batch: int, accumulation: int, size: int, *, free: bool, **settings: Any
) -> tuple[Gradients, Gradients, MicroBatchTuner, Reader]:
    """Train as it is and tuned, and return what the callbacks saw."""
    rows = settings.pop("rows", STEPS * batch * accumulation)
    plain = Gradients()
    settings = {"accumulate_grad_batches": accumulation, **settings}
    trained(folder, model(), plain, rows=rows, batch=batch, **settings)
    tuned, tuner = Gradients(() if free else plain.parameters), MicroBatchTuner(size=size)
    tuned_model = model()
    trained(folder, tuned_model, tuner, tuned, rows=rows, batch=batch, **settings)
    return plain, tuned, tuner, tuned_model


class OfSentences(nn.Module):
    """BatchNorm over the features of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(x.transpose(1, 2)).transpose(1, 2))
