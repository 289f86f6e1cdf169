"""A training that knows nothing of energy-plugins: ``energy-launch`` measures it, whatever it trains with.

energy-launch --config_file examples/energy_launch.yaml examples/energy_launch.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    """Train a small network on real images."""
    accelerator = Accelerator()
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    model, optimizer, loader = accelerator.prepare(
        network,
        torch.optim.Adam(network.parameters()),
        DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64, shuffle=True),
    )
    for epoch in range(3):
        for batch, target in loader:
            loss = nn.functional.cross_entropy(model(batch), target)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
