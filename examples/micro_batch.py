"""Let a Lightning fit find its micro-batch, here on a simulated GPU in virtual time: gradients stay as they were."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.lightning import MicroBatchTuner
from energy_plugins.testing import SimulatedDevice, simulated_gpus


class Model(LightningModule):
    """A layer; what a real model would do on the GPU is done by a simulated one."""

    def __init__(self, simulated: SimulatedDevice) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.simulated = simulated

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss, a mean over samples."""
        # The weights are read in each pass, however few its samples are.
        self.simulated.launch(ops=4e13 * len(batch[0]), bytes=8e11, wait=True)
        loss: torch.Tensor = self.layer(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main() -> None:
    """Train with batches of 4 that are accumulated, and say what was found."""
    loader = DataLoader(TensorDataset(torch.randn(4000, 8)), batch_size=4)
    with simulated_gpus(virtual=True) as simulation:
        tuner = MicroBatchTuner(search_share=0.4)  # the only line a training needs; of a long one 0.05 is enough
        trainer = Trainer(
            max_epochs=1, accumulate_grad_batches=4, accelerator="cpu", devices=1, logger=False, callbacks=[tuner]
        )
        trainer.fit(Model(simulation.gpus[0]), loader)
    found = tuner.found
    if found is not None and found.expected_saving is not None:
        print(f"SIMULATED: {found.chosen} samples at once, not {found.batch}: {found.expected_saving:.0%} less energy")


if __name__ == "__main__":
    main()
