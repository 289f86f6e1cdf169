"""Measure a plain loop on many GPUs, or simulated ones: `torchrun --nproc-per-node 8 examples/torchrun_loop.py`.

The text is the standard library's own sources, byte by byte; each rank reads its share of it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from energy_plugins import EnergyMeter, Kind
from energy_plugins.testing import Simulation, simulated_gpus

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
os.environ |= ALONE if "RANK" not in os.environ else {}
RANK, RANKS, LOCAL = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
STEPS, BATCH, CONTEXT = 60, 16, 64


def train(simulation: Simulation | None) -> EnergyMeter:
    """Train to foretell the next byte, and return the meter that watched."""
    device = torch.device("cpu" if simulation else f"cuda:{LOCAL}")
    files = sorted(Path(os.__file__).parent.glob("*.py"))[RANK::RANKS]
    sources = torch.frombuffer(bytearray(b"".join(map(Path.read_bytes, files))), dtype=torch.uint8)
    layers = nn.Sequential(nn.Embedding(256, 32), nn.Flatten(), nn.Linear(32 * CONTEXT, 256))
    network = DistributedDataParallel(layers.to(device))
    optimizer = torch.optim.AdamW(network.parameters())
    with EnergyMeter("torchrun-loop", distributed=True) as meter:
        for _ in range(STEPS):
            with meter.step(samples=BATCH, tokens=BATCH * CONTEXT):
                places = torch.randint(len(sources) - CONTEXT, (BATCH, 1)) + torch.arange(CONTEXT + 1)
                rows = sources[places].long().to(device)
                loss = nn.functional.cross_entropy(network(rows[:, :-1]), rows[:, -1])
                optimizer.zero_grad()
                with meter.span(Kind.BACKWARD):
                    loss.backward()
                optimizer.step()
                if simulation:
                    simulation.gpus[LOCAL % len(simulation.gpus)].launch(ops=8e12, wait=True)  # a real one's work
    return meter


if __name__ == "__main__":
    gpus: AbstractContextManager[Simulation | None] = simulated_gpus(count=RANKS)
    if torch.cuda.is_available():
        torch.cuda.set_device(LOCAL)
        gpus = nullcontext()
    dist.init_process_group()
    with gpus as simulated:
        finished = train(simulated)
    if RANK == 0:
        print(finished.report())
    dist.destroy_process_group()
