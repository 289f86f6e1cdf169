"""Measure a loop of your own that uses accelerate: one more line. Without an NVIDIA GPU, a simulated one stands in."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.accelerate import attach
from energy_plugins.testing import Simulation, simulated_gpus

CONTEXT = 64


def text() -> torch.Tensor:
    """Return real text, Python's own library, as rows of bytes."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("a[a-r]*.py")))
    rows = len(sources) // (CONTEXT + 1)
    return torch.frombuffer(bytearray(sources[: rows * (CONTEXT + 1)]), dtype=torch.uint8).view(rows, -1).long()


class Model(nn.Module):
    """Guesses the next byte."""

    def __init__(self, simulation: Simulation | None) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Embedding(256, 64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256))
        self.simulation = simulation

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        if self.simulation is not None:
            self.simulation.gpus[0].launch(ops=8e12, wait=True)  # what a real GPU would be doing meanwhile
        return nn.functional.cross_entropy(self.network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def main() -> None:
    """Train for an epoch."""
    gpus: AbstractContextManager[Simulation | None] = nullcontext() if torch.cuda.is_available() else simulated_gpus()
    with gpus as simulation:
        accelerator = Accelerator(gradient_accumulation_steps=2, cpu=simulation is not None)
        network, loader = Model(simulation), DataLoader(TensorDataset(text()), batch_size=128, shuffle=True)
        model, optimizer, loader = accelerator.prepare(network, torch.optim.AdamW(network.parameters()), loader)
        with attach(accelerator):  # the only line a loop needs
            for (rows,) in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(model(rows))
                    optimizer.step()
                    optimizer.zero_grad()


if __name__ == "__main__":
    main()
