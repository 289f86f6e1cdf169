"""Loops that fail or cannot be measured: none of them fails through us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate_training
import pytest
import torch
from accelerate.utils import DistributedType
from accelerate_training import Training, loader
from outcomes import load, our_warnings

from energy_plugins.accelerate import attach
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.testing import Simulation

fresh_state = accelerate_training.fresh_state  # around every test here


class TestTrouble:
    def test_no_hook_survives(self, simulation: Simulation, tmp_path: Path) -> None:
        from torch.optim import optimizer

        before = [len(vars(optimizer)[f"_global_optimizer_{end}_hooks"]) for end in ("pre", "post")]
        training = Training(tmp_path, loader(8))
        kind = type(training.loader)
        with attach(training.accelerator, table=False):
            training.epoch()
            assert training.model._forward_pre_hooks
        assert not training.model._forward_pre_hooks
        assert [len(vars(optimizer)[f"_global_optimizer_{end}_hooks"]) for end in ("pre", "post")] == before
        assert type(training.loader) is kind

    def test_a_failure_of_ours_warns_once(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError("the meter broke")

        monkeypatch.setattr(EnergyMeter, "end", fail)
        training = Training(tmp_path, loader(8))
        with our_warnings() as texts, attach(training.accelerator, table=False):
            training.epoch()
            training.epoch()
        ours = [text for text in texts if "training goes on" in text]
        assert ours == ["energy: measuring failed, training goes on: the meter broke"]
        assert training.steps == 4

    def test_a_disk_that_cannot_be_written(self, simulation: Simulation, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        training = Training(tmp_path, loader(8))
        with (
            our_warnings() as texts,
            attach(training.accelerator, folder=f"{tmp_path}/file/below", table=False) as energy,
        ):
            training.epoch()
        assert ["not kept on disk" in text for text in texts] == [True]
        assert energy.report is not None
        assert energy.report.steps.rows == 2

    def test_not_enabled(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, enabled=False) as energy:
            training.epoch()
        assert (energy.report, energy.total_j) == (None, None)
        assert not (tmp_path / "energy").exists()

    def test_a_budget_is_not_kept_and_that_is_said(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ENERGY_MEASURE_ENERGY_BUDGET_KWH", "1")
        training = Training(tmp_path, loader(8))
        with our_warnings() as texts:
            attach(training.accelerator, table=False).finish()
        assert ["ends no loop" in text for text in texts] == [True]

    def test_deepspeed_is_measured_as_a_whole_and_that_is_said(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        state = training.accelerator.state
        state.distributed_type = DistributedType.DEEPSPEED
        state.deepspeed_plugins = {"": SimpleNamespace(selected=True, deepspeed_config={})}
        with our_warnings() as texts, attach(training.accelerator, table=False):
            training.model(torch.ones(4)).backward()
            training.optimizer.optimizer.step()
        report = load(tmp_path)
        assert texts == [f"energy: steps are {report.config['steps']}; the run is measured as a whole"]
        assert "DEEPSPEED" in texts[0]
        assert report.steps.rows == 0
        assert report.total_j is not None

    def test_a_script_that_fails_leaves_its_report(self, tmp_path: Path) -> None:
        script = tmp_path / "fails.py"
        script.write_text(FAILING)
        ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert "ValueError: planned" in ended.stderr
        report = load(tmp_path)
        assert report.complete
        assert report.steps.rows == 3


FAILING = """
import torch
from accelerate import Accelerator
from energy_plugins.accelerate import attach
from energy_plugins.testing import simulated_gpus

with simulated_gpus():
    accelerator = Accelerator(cpu=True)
    layer = torch.nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    attach(accelerator)
    for step in range(5):
        accelerator.backward(model(torch.ones(2, 4)).sum())
        if step == 2:
            raise ValueError("planned")
        optimizer.step()
"""
