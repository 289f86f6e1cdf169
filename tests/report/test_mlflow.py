"""The joules in a real MLflow store, by the loggers that Lightning and transformers bring along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from energy_plugins.testing import Simulation

pytest.importorskip("mlflow", reason="needs MLflow (mlflow-skinny)")

TRAININGS = """
import json, time
from pathlib import Path

import mlflow
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from torch.utils.data import DataLoader, TensorDataset
from transformers_training import Model, Rows, make_trainer

from energy_plugins.lightning import EnergyMonitor
from energy_plugins.transformers import EnergyCallback

STORE = "sqlite:///mlflow.db"


class Network(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, _):
        time.sleep(0.025)  # long enough for figures
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


logger = MLFlowLogger("energy", run_name="lightning", tracking_uri=STORE)
quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
settings = {"log_every_n_steps": 10, "accelerator": "cpu", **quiet}
trainer = Trainer(max_epochs=1, callbacks=[EnergyMonitor()], logger=logger, **settings)
trainer.fit(Network(), DataLoader(TensorDataset(torch.ones(4 * 120, 4)), batch_size=4))

mlflow.set_tracking_uri(STORE)
mlflow.set_experiment("energy")
model = Model(lambda _: time.sleep(0.025))
settings = {"logging_steps": 10, "report_to": ["mlflow"], "run_name": "transformers"}
make_trainer(Path("out"), EnergyCallback(), model=model, data=Rows(4 * 120), **settings).train()

client = mlflow.MlflowClient(STORE)
runs = client.search_runs([client.get_experiment_by_name("energy").experiment_id])
Path("metrics.json").write_text(json.dumps({run.info.run_name: run.data.metrics for run in runs}))
"""


@pytest.mark.slow
def test_figures_reach_its_store(simulation: Simulation, tmp_path: Path) -> None:
    paths = [str(tmp_path), str(Path(__file__).parents[1] / "plugins"), *sys.path]
    offline = {"PYTHONPATH": os.pathsep.join(paths), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**simulation.environment(), **offline}
    subprocess.run([sys.executable, "-c", TRAININGS], cwd=tmp_path, env=environment, timeout=240, check=True)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for run, report in (("lightning", "energy"), ("transformers", "out/energy")):
        total_j = json.loads((tmp_path / report / "run-1" / "report.json").read_text())["total_j"]
        logged = metrics[run]
        assert {"energy/step_j", "energy/avg_power_w", "energy/samples_per_j", "energy/gpu0/power_w"} <= logged.keys()
        assert 0.5 * total_j < logged["energy/total_j"] <= 1.1 * total_j
    assert metrics["transformers"]["train_energy_j"] == pytest.approx(total_j)
