"""Measure a Lightning training: one more callback. Without an NVIDIA GPU, a simulated one stands in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.lightning import EnergyMonitor
from energy_plugins.testing import SimulatedDevice, simulated_gpus


class Digits(LightningModule):
    """A small network for images of 8 x 8 pixels."""

    def __init__(self, simulated: SimulatedDevice | None) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10))
        self.simulated = simulated

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        if self.simulated is not None:
            self.simulated.launch(ops=8e12, wait=True)  # what a real GPU would be doing meanwhile
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters())


def main() -> None:
    """Train for three epochs and read the joules."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None], dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64, shuffle=True)
    there_is_one = torch.cuda.is_available()
    gpus: AbstractContextManager[object] = nullcontext() if there_is_one else simulated_gpus()
    with gpus as simulation:
        monitor = EnergyMonitor()  # the only line a training needs
        trainer = Trainer(max_epochs=3, accelerator="gpu" if there_is_one else "cpu", devices=1, callbacks=[monitor])
        trainer.fit(Digits(getattr(simulation, "gpus", [None])[0]), loader)
    report = monitor.report
    if report is not None and report.joules_per_sample is not None:
        dearest_j = max(report.steps["energy_j"])
        print(f"{report.joules_per_sample:.3f} J for each image; the dearest step took {dearest_j:.1f} J")


if __name__ == "__main__":
    main()
