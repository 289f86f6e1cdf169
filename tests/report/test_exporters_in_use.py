"""Figures of whole trainings and commands, asked for by the configuration or a flag."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation

pytest.importorskip("prometheus_client", reason="needs the extra exporters")

COMMAND = [sys.executable, "-m", "energy_plugins"]
PATIENCE_S = 60.0

FIT = """
import time
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from energy_plugins.lightning import EnergyMonitor


class Network(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, _):
        time.sleep(0.03)
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
trainer = Trainer(max_epochs=1, callbacks=[EnergyMonitor()], accelerator="cpu", **quiet)
data = DataLoader(TensorDataset(torch.ones(4 * 60, 4)), batch_size=4)
model = Network()
trainer.fit(model, data)
trainer.validate(model, data, verbose=False)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def scraped(port: int) -> str:
    """Return what is served at ``port``, empty while nothing is."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@pytest.mark.slow
def test_a_training_by_lightning_with_a_port_in_use_and_a_stream(simulation: Simulation, tmp_path: Path) -> None:
    """That the port is taken is said once, though it has two runs; nothing else is different."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        asked = {"ENERGY_REPORT_PROMETHEUS_PORT": str(port), "ENERGY_REPORT_JSON_LINES": "figures.jsonl"}
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", FIT],
            cwd=tmp_path,
            env={**simulation.environment(), **asked, **paths},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert len(re.findall(rf"not exported: port {port} of 127.0.0.1 .*set report.prometheus_port", done.stderr)) == 1
    lines = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    last = {line["run_id"]: line for line in lines if line["complete"]}
    reports = [Report.load(tmp_path / "energy" / f"run-{number}") for number in (1, 2)]
    assert [last[report.run_id]["energy_j"] for report in reports] == [report.total_j for report in reports]
    assert (reports[0].work.steps, last[reports[0].run_id]["steps"]) == (60, 60)
    assert reports[0].warnings == ()


def test_a_command_is_served_while_it_runs_and_no_longer(simulation: Simulation, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "out"
    with subprocess.Popen(
        [*COMMAND, "run", "--prometheus-port", str(port), "--quiet", "-o", folder, "--", "sleep", "60"],
        env=simulation.environment(),
    ) as process:
        until_s = time.monotonic() + PATIENCE_S
        while "gpu_energy_joules_total{" not in (text := scraped(port)) and time.monotonic() < until_s:
            time.sleep(0.1)
        process.terminate()
        process.wait(PATIENCE_S)
    assert 'run="sleep"' in text
    assert 'simulated="true"' in text
    assert "energy_plugins_gpu_energy_joules_total{" in text
    assert scraped(port) == ""
    assert Report.load(folder).complete


def test_a_command_runs_though_its_port_is_in_use(simulation: Simulation, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "run", "--prometheus-port", str(port), "-o", tmp_path / "out", "--", "sh", "-c", "exit 3"],
            env=simulation.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 3
    assert f"port {port} of 127.0.0.1" in done.stderr
    assert "--prometheus-port) to one that is free" in done.stderr
    assert Report.load(tmp_path / "out").complete
