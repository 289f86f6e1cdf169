"""The joules in the files of real runs of Weights & Biases, by the loggers that Lightning and transformers bring along.

Its library runs offline: what would be sent to its server is a file on disk, and nothing leaves the machine.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from energy_plugins.testing import Simulation

pytest.importorskip("wandb", reason="needs Weights & Biases (wandb)")

LIGHTNING = """
import time

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.lightning import EnergyMonitor


class Network(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, _):
        time.sleep(0.025)  # long enough for figures
        loss = self.layer(batch[0]).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
settings = {"log_every_n_steps": 10, "accelerator": "cpu", **quiet}
logger = WandbLogger(name="lightning", project="energy", offline=True)
trainer = Trainer(max_epochs=1, callbacks=[EnergyMonitor()], logger=logger, **settings)
trainer.fit(Network(), DataLoader(TensorDataset(torch.ones(4 * 120, 4)), batch_size=4))
logger.experiment.finish()
"""

TRANSFORMERS = """
import time
from pathlib import Path

from transformers_training import Model, Rows, make_trainer

from energy_plugins.transformers import EnergyCallback

model = Model(lambda _: time.sleep(0.025))  # long enough for figures
settings = {"logging_steps": 10, "eval_strategy": "epoch", "report_to": ["wandb"], "run_name": "transformers"}
make_trainer(Path("."), EnergyCallback(), model=model, data=Rows(4 * 120), **settings).train()
"""

OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB__DISABLE_STATS": "true",
}

NAMES = {"total_j", "step_j", "avg_power_w", "samples_per_j", "gpu0/total_j", "gpu0/power_w"}


def train(training: str, simulation: Simulation, folder: Path) -> tuple[float, list[dict[str, float]]]:
    """Train in a process of its own, and return the joules of its report and what the run of W&B has in its file."""
    paths = [str(Path(__file__).parents[1] / "plugins"), *sys.path]
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    environment = {**simulation.environment(), **OFFLINE, **places, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", training], cwd=folder, env=environment, timeout=240, check=True)
    total_j = json.loads((folder / "energy" / "run-1" / "report.json").read_text())["total_j"]
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return total_j, list(history_in(file.read_bytes()))


def history_in(file: bytes) -> Iterator[dict[str, float]]:
    """Yield what was logged, a dictionary for each record of history, by W&B's own protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # its classes are made at import

    for data in records_in(file):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def records_in(file: bytes) -> Iterator[bytes]:
    """Yield the records of a log as LevelDB writes it, after a header of 7 bytes.

    A block has 32 KiB; in it are chunks of checksum, length and kind (full, first, middle, last), each a part of a
    record. See log_format.md in LevelDB's documents.
    """
    block, record, at = 32768, b"", 7
    while at + 7 <= len(file):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", file, at)
        record += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:
            yield record
            record = b""


@pytest.mark.slow
def test_figures_reach_a_run_of_lightning(simulation: Simulation, tmp_path: Path) -> None:
    total_j, history = train(LIGHTNING, simulation, tmp_path)
    logged = {key for figures in history for key in figures}
    assert {"loss", *(f"energy/{name}" for name in NAMES)} <= logged
    totals_j = [figures["energy/total_j"] for figures in history if "energy/total_j" in figures]
    assert totals_j == sorted(totals_j)
    assert 0.5 * total_j < totals_j[-1] <= 1.1 * total_j


@pytest.mark.slow
def test_figures_reach_a_run_of_transformers(simulation: Simulation, tmp_path: Path) -> None:
    total_j, history = train(TRANSFORMERS, simulation, tmp_path)
    during = {key for figures in history if "train/loss" in figures for key in figures}
    assert {f"train/energy/{name}" for name in (*NAMES, "tokens_per_j")} <= during
    (end,) = [figures for figures in history if "train/train_energy_j" in figures]
    assert end["train/train_energy_j"] == total_j
    assert end["train/train_energy_kwh"] == total_j / 3.6e6
    assert not [key for figures in history if "eval/loss" in figures for key in figures if "energy" in key]
