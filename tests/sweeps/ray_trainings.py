"""Trainings that Ray Tune's workers run, on simulated GPUs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from seen_limit import limit_w
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.lightning import PowerLimitTuner
from energy_plugins.ray import EnergyReportCallback

STEPS = 10


class Model(LightningModule):
    """A linear layer that says which power limit it sees, and may kill its process."""

    def __init__(self, step_s: float, killed_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.step_s, self.killed_at = step_s, killed_at

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.global_step == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.step_s)
        self.log("limit_w", limit_w(), on_epoch=True, on_step=False, reduce_fx="max")
        return self.layer(batch[0]).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def train(config: dict[str, Any]) -> None:
    callbacks: list[Callback] = [EnergyReportCallback(save_checkpoints=False, on="train_epoch_end")]
    if "power_limit_w" in config:
        callbacks.append(PowerLimitTuner(fixed=config["power_limit_w"]))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=config.get("epochs", 2),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(
        Model(config.get("step_s", 0.1), config.get("killed_at")), DataLoader(TensorDataset(torch.ones(STEPS, 2)))
    )
