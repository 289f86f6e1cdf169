"""A sweep that knows its joules: a study within 20 kWh, whose losers are pruned by metric and by energy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import optuna
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.optuna import EnergyBudgetPruner, EnergyPruningCallback, StudyEnergyBudget, study_energy_j
from energy_plugins.testing import simulated_gpus

DIGITS = load_digits()
IMAGES = TensorDataset(torch.tensor(DIGITS.data, dtype=torch.float32) / 16, torch.tensor(DIGITS.target))


class Digits(LightningModule):
    """A small network for images of 8 x 8 pixels."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.rate = rate

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def objective(trial: optuna.Trial) -> float:
    """Train one configuration."""
    model = Digits(trial.suggest_int("width", 8, 256, log=True), trial.suggest_float("rate", 1e-4, 1e-2, log=True))
    prune = EnergyPruningCallback(trial, "loss", target=0.5)  # the only line a sweep needs
    trainer = Trainer(max_epochs=5, devices=1, logger=False, enable_checkpointing=False, callbacks=[prune])
    trainer.fit(model, DataLoader(IMAGES, batch_size=64, shuffle=True))
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    gpus: AbstractContextManager[object] = nullcontext() if torch.cuda.is_available() else simulated_gpus()
    with gpus:
        study = optuna.create_study(study_name="digits", storage="sqlite:///sweep.db", pruner=EnergyBudgetPruner())
        study.optimize(objective, n_trials=3, callbacks=[StudyEnergyBudget(energy_kwh=20.0)])
    print(f"{study_energy_j(study):.0f} J; energy-plugins sweep report sqlite:///sweep.db digits")
