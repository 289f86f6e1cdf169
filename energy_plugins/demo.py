"""The demo: trains a small network on real images through Lightning and shows where the joules went.

With an NVIDIA GPU it trains there. Without one the network trains on the CPU while a simulated GPU does the work the
training would give it; then every table and every file says SIMULATED, and the numbers say nothing about real hardware.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from energy_plugins.errors import EnergyError
from energy_plugins.lightning import EnergyMonitor
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.report import Report
from energy_plugins.testing import SimulatedDevice, simulated_gpus

BATCH = 64
TRAINING_IMAGES = 1437
FETCH_S = 0.015
"""How long the loader takes for a batch, as from a slow disk: the waste to look for in the table."""

SIMULATED_SCALE = 12_000
"""How much larger than this network the one is that the simulated GPU pretends to train."""


class Digits(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Handwritten digits, 8 x 8 pixels, from the UCI repository as scikit-learn ships them."""

    def __init__(self, rows: slice, fetch_s: float = 0.0) -> None:
        digits = load_digits()
        self._images = torch.tensor(digits.images[rows, None], dtype=torch.float32) / 16
        self._labels = torch.tensor(digits.target[rows])
        self._fetch_s = fetch_s

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the images of one batch."""
        time.sleep(self._fetch_s)
        return [(self._images[row], self._labels[row]) for row in rows]


class Network(LightningModule):
    """Two convolutions and a linear layer; ``work`` is told of every stretch of GPU work, in real FLOPs and bytes."""

    def __init__(self, work: Callable[[float, float], None]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, 10),
        )
        with FlopCounterMode(display=False) as counter:
            self.layers(torch.zeros(BATCH, 1, 8, 8))
        self._forward_ops = float(counter.get_total_flops())
        self._weight_bytes = 4.0 * sum(weight.numel() for weight in self.parameters())
        self._work = work

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss."""
        self._work(self._forward_ops, self._weight_bytes)
        images, labels = batch
        return nn.functional.cross_entropy(self.layers(images), labels)

    def on_before_backward(self, loss: torch.Tensor) -> None:  # noqa: ARG002
        """Count the backward pass: gradients of weights and of activations."""
        self._work(2 * self._forward_ops, 2 * self._weight_bytes)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Count Adam: weights, gradients and two moments read, three of them written."""
        self._work(0.0, 7 * self._weight_bytes)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log the share of images that are recognised."""
        self._work(self._forward_ops, self._weight_bytes)
        images, labels = batch
        self.log("accuracy", (self.layers(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@dataclass(frozen=True)
class Length:
    """How long to train; the limit is for slow machines."""

    epochs: int
    at_most_s: int


FULL = Length(epochs=120, at_most_s=80)
QUICK = Length(epochs=12, at_most_s=12)


@dataclass(frozen=True)
class Machine:
    """Where to train, what to call it, and what takes the work."""

    accelerator: str
    label: str
    work: Callable[[float, float], None]


@contextmanager
def machine() -> Iterator[Machine]:
    """Yield the real GPU, or else a simulated one."""
    try:
        real = torch.cuda.is_available() and len(visible_gpus()) > 0
    except EnergyError:
        real = False
    if real:
        yield Machine("gpu", "digits", lambda _ops, _bytes: None)
        return
    torch.set_num_threads(1)  # a network this small trains no faster on more
    with simulated_gpus() as simulation:
        yield Machine("cpu", "SIMULATED-digits", _launch_on(simulation.gpus[0]))


def _launch_on(gpu: SimulatedDevice) -> Callable[[float, float], None]:
    return lambda ops, bytes_: gpu.launch(ops=ops * SIMULATED_SCALE, bytes=bytes_ * SIMULATED_SCALE)


def train(here: Machine, length: Length, folder: Path) -> tuple[Report | None, float]:
    """Train and return the report and the accuracy."""
    monitor = EnergyMonitor(folder=str(folder), name=here.label, phases_every_n_steps=5)
    trainer = Trainer(
        accelerator=here.accelerator,
        devices=1,
        max_epochs=length.epochs,
        max_time={"seconds": length.at_most_s},
        check_val_every_n_epoch=5,
        log_every_n_steps=20,
        logger=CSVLogger(folder, name=f"{here.label}-log"),
        callbacks=[monitor, ModelCheckpoint(folder / f"{here.label}-checkpoints", monitor="accuracy", mode="max")],
        enable_model_summary=False,
        default_root_dir=folder,
    )
    training = DataLoader(Digits(slice(0, TRAINING_IMAGES), FETCH_S), batch_size=BATCH, shuffle=True)
    validation = DataLoader(Digits(slice(TRAINING_IMAGES, None)), batch_size=BATCH)
    trainer.fit(Network(here.work), training, validation)
    return monitor.report, float(trainer.callback_metrics.get("accuracy", float("nan")))


def show(report: Report, accuracy: float) -> None:
    """Print what a reader of the table asks next."""
    say(f"\nAccuracy on {1797 - TRAINING_IMAGES} images not trained on: {accuracy:.1%}")
    if report.joules_per_sample is not None:
        say(f"Energy for each image trained on: {report.joules_per_sample:.4g} J")
    for where, joules in (
        ("Between steps, with nothing to do", report.stall_j),
        ("Waiting for the loader", report.data_wait_j),
    ):
        if joules is not None and report.total_j:
            say(f"{where}: {joules:.4g} J, {joules / report.total_j:.1%} of the total")


def demo(folder: Path, *, quick: bool) -> None:
    """Train for about a minute, ten seconds if ``quick``, then say where the joules went and where the files are.

    Raises:
        EnergyError: nothing was measured.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # its advice is for real trainings
    seed_everything(0, verbose=False)
    with machine() as here:
        report, accuracy = train(here, QUICK if quick else FULL, folder)
    if report is None:
        raise EnergyError("nothing was measured; the warnings above say why")
    show(report, accuracy)
    say(f"Reports, logs and checkpoints are in {folder.resolve()}")
    if report.simulated:
        say("SIMULATED: there is no NVIDIA GPU here; these joules are a simulator's and say nothing about real ones.")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
