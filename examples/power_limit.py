"""Train at the power limit that saves most, here on a simulated GPU in virtual time: no real one is changed."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.lightning import PowerLimitTuner
from energy_plugins.testing import SimulatedDevice, simulated_gpus


class Model(LightningModule):
    """A layer; what a real model would do on the GPU is done by a simulated one."""

    def __init__(self, simulated: SimulatedDevice) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.simulated = simulated

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        self.simulated.launch(ops=2e14, bytes=2.15e12, wait=True)  # half a second, most of it for the memory
        loss: torch.Tensor = self.layer(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main() -> None:
    """Train, and say what the limit was and what it was to save."""
    loader = DataLoader(TensorDataset(torch.randn(2000, 8)), batch_size=2)
    with simulated_gpus(virtual=True) as simulation:
        tuner = PowerLimitTuner(max_slowdown=0.03)  # the only line a training needs
        trainer = Trainer(max_epochs=1, accelerator="cpu", devices=1, callbacks=[tuner])
        trainer.fit(Model(simulation.gpus[0]), loader)
    limit = tuner.report.power_limit if tuner.report is not None else None
    if limit is not None and limit.expected_saving is not None and limit.expected_slowdown is not None:
        saved, slower = 100 * limit.expected_saving, 100 * limit.expected_slowdown
        print(
            f"SIMULATED: {limit.chosen:.0f} W instead of {limit.found:.0f} W: "
            f"{saved:.1f} % less energy, {slower:.1f} % slower expected"
        )


if __name__ == "__main__":
    main()
