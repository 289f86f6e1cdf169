"""What is kept over checkpoints and resumes, of a loop that is measured."""

from __future__ import annotations

import copy
import json
import pickle
import time
from pathlib import Path

import accelerate_training
from accelerate_training import Training, loader
from outcomes import load, our_warnings
from torch.utils.data import DataLoader

from energy_plugins.accelerate import attach
from energy_plugins.testing import Simulation

fresh_state = accelerate_training.fresh_state  # around every test here


class TestState:
    def test_a_checkpoint_loads_without_us_and_ours_without_it(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        training.accelerator.save_state(str(tmp_path / "plain"))
        with attach(training.accelerator, table=False) as energy:
            training.accelerator.load_state(str(tmp_path / "plain"))
            training.epoch()
        training.accelerator.save_state(str(tmp_path / "ours"))
        energy.detach()
        training.accelerator.load_state(str(tmp_path / "ours"))
        state = json.loads((tmp_path / "ours" / "energy_plugins_0.json").read_text())
        assert state == {"total_j": energy.total_j, "run": ""}

    def test_loading_its_own_state_in_mid_run_changes_nothing(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False) as energy:
            training.epoch()
            time.sleep(0.5)
            training.accelerator.save_state(str(tmp_path / "checkpoint"))
            training.accelerator.load_state(str(tmp_path / "checkpoint"))
        assert energy.total_j == load(tmp_path).total_j

    def test_it_may_be_registered_too(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False) as energy:
            training.accelerator.register_for_checkpointing(energy)
            training.epoch()
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        before_j = energy.total_j
        training.accelerator.load_state(str(tmp_path / "checkpoint"))
        assert energy.total_j == before_j

    def test_a_spoilt_file_does_not_stop_a_resume(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        (tmp_path / "checkpoint" / "energy_plugins_0.json").write_text("{")
        with attach(training.accelerator, table=False), our_warnings() as texts:
            training.accelerator.load_state(str(tmp_path / "checkpoint"))
            training.epoch()
        assert len(texts) == 1
        assert training.steps == 2

    def test_restoring_an_optimizer_is_no_step(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        training.accelerator.register_load_state_pre_hook(lambda *_: training.optimizer.optimizer.step())
        with attach(training.accelerator, table=False):
            training.accelerator.load_state(str(tmp_path / "checkpoint"))
            training.epoch()
        assert load(tmp_path).steps.rows == 2

    def test_attaching_again_begins_anew(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        first = attach(training.accelerator, table=False)
        training.epoch()
        with attach(training.accelerator, table=False) as second:
            training.epoch()
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        assert (load(tmp_path, 1).steps.rows, load(tmp_path, 2).steps.rows) == (2, 2)
        assert first.report is not None
        state = json.loads((tmp_path / "checkpoint" / "energy_plugins_0.json").read_text())
        assert state["total_j"] == second.total_j

    def test_a_loader_in_use_can_be_copied(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False):
            for other in (copy.deepcopy(training.loader), pickle.loads(pickle.dumps(training.loader))):  # noqa: S301
                assert len(list(other)) == 2
            assert isinstance(training.loader, DataLoader)
