"""Measure a transformers Trainer: one more callback. Without an NVIDIA GPU, a simulated one stands in.

A small GPT learns the Python standard library's own sources, byte by byte.
"""

from __future__ import annotations

import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from energy_plugins.testing import SimulatedDevice, simulated_gpus
from energy_plugins.transformers import EnergyCallback

CONTEXT = 64


class Sources(Dataset[dict[str, torch.Tensor]]):
    """Pieces of the standard library, one token a byte."""

    def __init__(self, pieces: int, simulated: SimulatedDevice | None) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text = b"\n".join(file.read_bytes() for file in files)[: pieces * CONTEXT]
        self.pieces = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().view(pieces, CONTEXT)
        self.simulated = simulated

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one, which is also what is to be learnt."""
        if self.simulated is not None:
            self.simulated.launch(ops=1e12)  # what a real GPU would be doing with it later
        return {"input_ids": self.pieces[index], "labels": self.pieces[index]}


def main() -> None:
    """Train for 50 steps and read the joules."""
    there_is_one = torch.cuda.is_available()
    gpus: AbstractContextManager[object] = nullcontext() if there_is_one else simulated_gpus()
    how: dict[str, Any] = {"max_steps": 50, "save_strategy": "no", "per_device_train_batch_size": 8}
    args = TrainingArguments("transformers_text", use_cpu=not there_is_one, logging_steps=10, **how)
    config = GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4)
    with gpus as simulation:
        data = Sources(400, getattr(simulation, "gpus", [None])[0])
        callback = EnergyCallback()  # the only line a training needs
        trainer = Trainer(GPT2LMHeadModel(config), args, train_dataset=data, callbacks=[callback])
        metrics = trainer.train().metrics
    print(f"{metrics['train_energy_j']:.0f} J: it is in the metrics and the logs, and in {callback.report!r:.40}")


if __name__ == "__main__":
    main()
