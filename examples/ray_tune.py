"""Ray Tune that knows its joules: an experiment within 20 kWh, each trial under a power limit of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import ray
import torch
from lightning.pytorch import LightningModule, Trainer
from ray import tune
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.lightning import PowerLimitTuner
from energy_plugins.ray import EnergyBudgetStopper, EnergyReportCallback, experiment_energy_j
from energy_plugins.testing import simulated_gpus

EPOCHS = 3


class Digits(LightningModule):
    """A small network for images of 8 x 8 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters())


def train(config: dict[str, int]) -> None:
    """Train one configuration: a trial."""
    digits = load_digits()
    images = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    limit = PowerLimitTuner(fixed=config["power_limit_w"])
    report = EnergyReportCallback(save_checkpoints=False, on="train_epoch_end")  # the only line that joules need
    trainer = Trainer(max_epochs=EPOCHS, devices=1, logger=False, enable_checkpointing=False, callbacks=[report, limit])
    trainer.fit(Digits(config["width"]), DataLoader(images, batch_size=64, shuffle=True))


if __name__ == "__main__":
    gpus: AbstractContextManager[object] = nullcontext() if torch.cuda.is_available() else simulated_gpus()
    with gpus, ray.init(num_gpus=None if torch.cuda.is_available() else 1):
        space = {"width": tune.grid_search([16, 128]), "power_limit_w": 500}
        budget = EnergyBudgetStopper(energy_kwh=20.0)
        run = tune.RunConfig("digits", storage_path=str(Path.cwd()), stop=budget, callbacks=[budget])
        found = tune.Tuner(tune.with_resources(train, {"gpu": 1}), param_space=space, run_config=run).fit()
        energy_j = experiment_energy_j(found.experiment_path)
        whose = " (SIMULATED)" if "energy/simulated" in (found[0].metrics or {}) else ""
    print(f"{energy_j:.0f} J for {len(found)} trials, {energy_j / len(found) / EPOCHS / 1797:.3g} J/sample{whose}")
