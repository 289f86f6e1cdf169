"""The joules in a run of Weights & Biases, by transformers' own reporter; the library itself is a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from energy_plugins.testing import Simulation

WANDB = """
import json
from pathlib import Path

run = None
config = {}


class Run:
    def __init__(self):
        self.summary = {}

    def _label(self, **labels):
        pass


def init(**settings):
    global run
    run = Run()


def log(figures):
    with Path("logged.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\\n")
"""
"""What transformers' `WandbCallback` asks of the library. A run of wandb 0.31 had the same keys in its summary."""

CONFIG_ERROR = """
class ConfigError(Exception):
    pass
"""

TRAINING = """
import time
from pathlib import Path
from transformers_training import Model, Rows, make_trainer
from energy_plugins.transformers import EnergyCallback

model = Model(lambda _: time.sleep(0.025))  # long enough for figures
settings = {"logging_steps": 10, "eval_strategy": "epoch", "report_to": ["wandb"]}
make_trainer(Path("out"), EnergyCallback(), model=model, data=Rows(4 * 120), **settings).train()
"""


def test_figures_reach_a_run(simulation: Simulation, tmp_path: Path) -> None:
    library = tmp_path / "wandb"
    (library / "sdk" / "lib").mkdir(parents=True)
    for name in ("sdk/__init__.py", "sdk/lib/__init__.py"):
        (library / name).touch()
    (library / "__init__.py").write_text(WANDB)
    (library / "sdk" / "lib" / "config_util.py").write_text(CONFIG_ERROR)
    paths = [str(tmp_path), str(Path(__file__).parent), *sys.path]
    subprocess.run(
        [sys.executable, "-c", TRAINING],
        cwd=tmp_path,
        env={**simulation.environment(), "PYTHONPATH": os.pathsep.join(paths)},
        timeout=120,
        check=True,
    )
    logged = [json.loads(line) for line in (tmp_path / "logged.jsonl").read_text().splitlines()]
    report = json.loads((tmp_path / "out" / "energy" / "run-1" / "report.json").read_text())
    names = {"total_j", "step_j", "avg_power_w", "samples_per_j", "tokens_per_j", "gpu0/total_j", "gpu0/power_w"}
    during = [figures for figures in logged if "train/loss" in figures]
    assert {f"train/energy/{name}" for name in names} <= {key for figures in during for key in figures}
    assert logged[-1]["train/train_energy_j"] == report["total_j"]
    assert logged[-1]["train/train_energy_kwh"] == report["total_j"] / 3.6e6
    assert not [key for figures in logged if "eval/loss" in figures for key in figures if "energy" in key]
