"""The ways to give a Trainer an `EnergyCallback`, and to configure it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from outcomes import load
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers_training import Logs, Model, Rows, make_trainer

from energy_plugins.errors import ConfigError
from energy_plugins.testing import Simulation
from energy_plugins.transformers import EnergyArguments, EnergyCallback, attach


class TestSettings:
    def test_the_class_will_do(self, simulation: Simulation, tmp_path: Path) -> None:
        make_trainer(tmp_path, EnergyCallback).train()
        assert load(tmp_path).steps.rows == 3

    def test_of_several_the_last_one_measures(self, simulation: Simulation, tmp_path: Path) -> None:
        first, last = EnergyCallback(name="first"), EnergyCallback(name="last")
        trainer = make_trainer(tmp_path, first, last, report_to=["energy"], save_strategy="epoch")
        for _ in range(2):
            trainer.train()
        assert sorted(path.name for path in (tmp_path / "energy").iterdir()) == ["last-1", "last-2"]
        assert first.report is None
        assert [one for one in trainer.callback_handler.callbacks if isinstance(one, EnergyCallback)] == [last]

    def test_not_at_all(self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENERGY_MEASURE_ENABLED", "no")
        callback = EnergyCallback()
        trainer = make_trainer(tmp_path, callback)
        trainer.train()
        assert callback.report is None
        assert not (tmp_path / "energy").exists()
        assert "train_energy_j" not in trainer.state.log_history[-1]

    def test_by_report_to(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, report_to=["energy"])
        trainer.train()
        assert load(tmp_path).steps.rows == 3
        assert attach(trainer).report is not None

    def test_attached(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, reporter := Logs())
        callback = EnergyCallback().attach(trainer)
        trainer.train()
        assert callback.report is not None
        assert callback.report.steps["samples"].tolist() == [4, 4, 4]
        assert "train_energy_j" in reporter.seen[-1]

    def test_attach_gives_the_one_that_is_there(self, tmp_path: Path) -> None:
        callback = EnergyCallback()
        trainer = make_trainer(tmp_path, callback)
        assert attach(trainer) is callback
        other = attach(trainer, name="other")
        assert other is not callback
        assert EnergyCallback().attach(trainer) in trainer.callback_handler.callbacks
        assert sum(isinstance(one, EnergyCallback) for one in trainer.callback_handler.callbacks) == 1

    def test_arguments_beside_the_trainer_s(self, simulation: Simulation, tmp_path: Path) -> None:
        parser: Any = HfArgumentParser((TrainingArguments, EnergyArguments))  # type: ignore[arg-type]
        words = ["--output_dir", str(tmp_path), "--use_cpu", "--energy-report-name", "mine", "--max_steps", "1"]
        args, energy = parser.parse_args_into_dataclasses([*words, "--energy_measure_phases_every_n_steps", "7"])
        callback = EnergyCallback.from_arguments(energy)
        assert callback._fits.monitor.config.measure.phases_every_n_steps == 7
        args.dataloader_pin_memory = False
        Trainer(Model(), args, train_dataset=Rows(12), callbacks=[callback]).train()
        assert (tmp_path / "energy" / "mine-1" / "report.json").exists()

    def test_what_is_not_allowed_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="phases_every_n_steps is -1"):
            EnergyCallback(phases_every_n_steps=-1)
        with pytest.raises(ConfigError, match="energy_budget_kwh"):
            EnergyCallback(energy_budget_kwh=0.0)

    @pytest.mark.parametrize(
        ("module", "complaint"),
        [
            ("raise ModuleNotFoundError", "transformers or torch is missing: pip install energy-plugins[transformers]"),
            ("__version__ = '4.57.1'", "needs transformers 5.17 or newer, not 4.57.1: pip install energy-plugins"),
        ],
    )
    def test_the_import_names_the_remedy(self, tmp_path: Path, module: str, complaint: str) -> None:
        (tmp_path / "transformers.py").write_text(module)
        (tmp_path / "torch.py").touch()
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import energy_plugins.transformers"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "ImportError: " in ended.stderr
        assert complaint in ended.stderr
