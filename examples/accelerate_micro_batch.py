"""Let a loop of your own find its micro-batch: one line. Here on a simulated GPU, in virtual time."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.accelerate import attach, micro_batched
from energy_plugins.testing import SimulatedDevice, simulated_gpus


class Model(nn.Module):
    """A layer; what a real model would do on the GPU is done by a simulated one."""

    def __init__(self, simulated: SimulatedDevice) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.simulated = simulated

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the loss, a mean over samples."""
        # The weights are read in each pass, however few its samples are.
        self.simulated.launch(ops=4e13 * len(rows), bytes=8e11, wait=True)
        loss: torch.Tensor = self.layer(rows).square().mean()
        return loss


def main() -> None:
    """Train with batches of 4 that are accumulated, and say what was found."""
    with simulated_gpus(virtual=True) as simulation:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
        network, data = Model(simulation.gpus[0]), DataLoader(TensorDataset(torch.randn(4000, 8)), batch_size=4)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        model, optimizer, loader = accelerator.prepare(network, optimizer, data)
        with attach(accelerator) as energy:
            loss_of = micro_batched(model, accelerator, search_share=1.0)  # the only line that it takes
            for (rows,) in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(loss_of(rows))
                    optimizer.step()
                    optimizer.zero_grad()
    found = energy.report.micro_batch if energy.report is not None else None
    if found is not None and found.expected_saving is not None:
        print(f"SIMULATED: {found.chosen} samples at once, not {found.batch}: {found.expected_saving:.0%} less energy")


if __name__ == "__main__":
    main()
