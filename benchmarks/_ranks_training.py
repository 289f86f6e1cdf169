"""A training on all GPUs of a machine that knows nothing of energy-plugins; `h200_ranks.py` has energy-launch start it.

GPT-2 with random weights learns the Python standard library's own sources, byte by byte, for some seconds, by a loop of
its own with accelerate, by a transformers Trainer, or by a Lightning Trainer.

    energy-launch --multi_gpu --num_processes 2 benchmarks/_ranks_training.py accelerate OUT 40
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

_ASK_EVERY = 20


class Pieces(Dataset[dict[str, torch.Tensor]]):
    """Pieces of the standard library, one token a byte."""

    def __init__(self, context: int) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text = b"\n".join(file.read_bytes() for file in files)
        count = len(text) // context
        self._pieces = torch.frombuffer(bytearray(text[: count * context]), dtype=torch.uint8).view(count, context)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        piece = self._pieces[row].long()
        return {"input_ids": piece, "labels": piece}


class Until:
    """Ends the training after some seconds, on all ranks after the same step."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end_s, self._steps = seconds, 0.0, 0

    def reached(self, device: torch.device) -> bool:
        """Tell after each step whether it was the last; the clock starts after the first ones."""
        self._steps += 1
        if self._steps % _ASK_EVERY:
            return False
        self._end_s = self._end_s or time.monotonic() + self._seconds
        over = torch.tensor([float(time.monotonic() > self._end_s)], device=device)
        if distributed.is_initialized():
            distributed.all_reduce(over, distributed.ReduceOp.MAX)
        return bool(over.item())


@dataclass(frozen=True)
class Training:
    """What is trained, whatever trains it."""

    model: GPT2LMHeadModel
    data: Pieces
    batch: int
    folder: Path
    until: Until
    cpu: bool

    def loader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return batches in random order."""
        return DataLoader(self.data, self.batch, shuffle=True, drop_last=True)


def by_accelerate(training: Training) -> None:
    """Train by a loop."""
    from accelerate import Accelerator  # noqa: PLC0415 - one framework at a time

    accelerator = Accelerator(project_dir=training.folder)
    optimizer: Any = torch.optim.AdamW(training.model.parameters(), 3e-4)
    model, optimizer, loader = accelerator.prepare(training.model, optimizer, training.loader())
    over = False
    while not over:
        for rows in loader:
            accelerator.backward(model(**rows).loss)
            optimizer.step()
            optimizer.zero_grad()
            over = training.until.reached(accelerator.device)
            if over:
                break
    accelerator.end_training()


def by_transformers(training: Training) -> None:
    """Train by a Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: PLC0415

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: object, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002 - theirs
            control.should_training_stop = training.until.reached(args.device)

    args = TrainingArguments(
        output_dir=str(training.folder),
        max_steps=10**6,
        per_device_train_batch_size=training.batch,
        bf16=not training.cpu,
        use_cpu=training.cpu,
        dataloader_pin_memory=not training.cpu,
        save_strategy="no",
        logging_steps=100,
        disable_tqdm=True,
        report_to=[],
    )
    Trainer(training.model, args, train_dataset=training.data, callbacks=[Ends()]).train()


def by_lightning(training: Training) -> None:
    """Train by a Lightning Trainer."""
    from lightning import LightningModule, Trainer  # noqa: PLC0415

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = training.model

        def training_step(self, rows: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = self.network(**rows).loss
            return loss

        def on_train_batch_end(self, *_: object) -> None:
            self.trainer.should_stop = training.until.reached(self.device)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 3e-4)

    trainer = Trainer(
        accelerator="cpu" if training.cpu else "gpu",
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        strategy="ddp",
        precision="32-true" if training.cpu else "bf16-mixed",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=training.folder,
    )
    trainer.fit(Module(), training.loader())


WAYS = {"accelerate": by_accelerate, "transformers": by_transformers, "lightning": by_lightning}


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    torch.manual_seed(0)
    cpu = not torch.cuda.is_available()
    size: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2} if cpu else {}
    context = 32 if cpu else 512
    config = GPT2Config(vocab_size=256, n_positions=context, bos_token_id=0, eos_token_id=0, **size)
    batch = 4 if cpu else 32
    model, until = GPT2LMHeadModel(config), Until(options.seconds)
    WAYS[options.way](Training(model, Pieces(context), batch, options.folder, until, cpu))


if __name__ == "__main__":
    main()
