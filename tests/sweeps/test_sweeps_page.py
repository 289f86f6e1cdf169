"""What docs/sweeps.md has its readers write first runs, with a model of theirs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from lightning.pytorch import Trainer
from sweeping import Simulated
from test_pruning import Model, Rows
from torch.utils.data import DataLoader

from energy_plugins.optuna import study_energy_j
from energy_plugins.testing import Constant
from energy_plugins.units import kwh_to_j

PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
SWEEP = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]


class Whole(Model):
    """With data of its own."""

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Rows())

    val_dataloader = train_dataloader


def test_the_sweep_runs(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(Constant(300.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENERGY_REPORT_TABLE", "0")
    losses = {0: [0.5, 0.1], 1: [0.5, 0.4]}
    names: dict[str, Any] = {"model_of": lambda trial: Whole(losses[trial.number], step_s=0.2)}
    small = partial(Trainer, max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr("lightning.pytorch.Trainer", small)
    assert "n_trials=100" in SWEEP
    exec(SWEEP.replace("n_trials=100", "n_trials=2"), names)  # noqa: S102 - the page is ours

    study = optuna.load_study(study_name="digits", storage="sqlite:///sweep.db")
    assert [trial.value for trial in study.trials] == pytest.approx([0.1, 0.4])
    assert ["energy/to_target_j" in trial.user_attrs for trial in study.trials] == [True, False]
    assert study_energy_j(study) > 0
    assert study.user_attrs["energy/budget_j"] == kwh_to_j(20.0)
