"""Measure a plain PyTorch loop: no framework needed. Without an NVIDIA GPU, a simulated one stands in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from sklearn.datasets import load_digits
from torch import nn

from energy_plugins import EnergyMeter, Kind
from energy_plugins.testing import Simulation, simulated_gpus

STEPS, BATCH = 200, 128


def train(simulation: Simulation | None) -> EnergyMeter:
    """Train for some steps and return the meter that watched."""
    device = "cuda" if simulation is None else "cpu"
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
    labels = torch.tensor(digits.target)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
    optimizer = torch.optim.Adam(network.parameters())
    meter = EnergyMeter("bare-meter" if simulation is None else "SIMULATED-bare-meter")
    with meter:
        for _ in range(STEPS):
            with meter.span(Kind.DATA_WAIT):
                rows = torch.randint(len(labels), (BATCH,))
                batch, target = images[rows].to(device), labels[rows].to(device)
            with meter.step(samples=BATCH):
                loss = nn.functional.cross_entropy(network(batch), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if simulation is not None:
                    simulation.gpus[0].launch(ops=8e12, wait=True)  # what a real GPU would be doing meanwhile
    return meter


def main() -> None:
    """Train, print the table, and read a few numbers from the report."""
    gpus: AbstractContextManager[Simulation | None] = nullcontext() if torch.cuda.is_available() else simulated_gpus()
    with gpus as simulation:
        report = train(simulation).report()
    print(report)
    if report.joules_per_sample is not None:
        dearest_j = report.steps["energy_j"].max()
        print(f"\n{report.joules_per_sample:.4f} J for each image; the dearest step took {dearest_j:.2f} J")
    if report.simulated:
        print("SIMULATED: there is no NVIDIA GPU here; these joules say nothing about real ones.")


if __name__ == "__main__":
    main()
