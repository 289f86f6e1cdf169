"""The ways to configure `attach`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import accelerate_training
import pytest
from accelerate import Accelerator
from accelerate_training import Training, loader

from energy_plugins.accelerate import EnergyPlugin, attach
from energy_plugins.config import KEYS
from energy_plugins.errors import ConfigError
from energy_plugins.testing import Simulation

fresh_state = accelerate_training.fresh_state  # around every test here


class TestSettings:
    def test_fields_are_keys_of_the_configuration(self) -> None:
        for one in fields(EnergyPlugin):
            assert one.metadata["help"] == KEYS[one.metadata["key"]].help
            named = {"limit_power": "enabled", "fixed_limit_w": "fixed"}.get(one.name, one.name)
            assert one.metadata["key"].endswith(f".{named}")
        missing = KEYS.keys() - {one.metadata["key"] for one in fields(EnergyPlugin)}
        of_the_loop = {dotted for dotted in KEYS if dotted.startswith("micro_batch.")}  # see `micro_batched`
        assert missing == {"measure.energy_budget_kwh", "report.progress_bar"} | of_the_loop

    def test_what_is_not_given_is_the_environments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENERGY_MEASURE_PHASES_EVERY_N_STEPS", "7")
        monkeypatch.setenv("ENERGY_REPORT_NAME", "theirs")
        plugin = EnergyPlugin(name="mine")
        assert (plugin.phases_every_n_steps, plugin.name, plugin.table) == (7, "mine", True)
        assert plugin.config.measure.phases_every_n_steps == 7

    def test_settings_are_over_the_plugins(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, EnergyPlugin(name="a", table=False), name="b"):
            pass
        assert (tmp_path / "energy" / "b-1" / "report.json").exists()

    def test_wrong_settings_are_errors(self) -> None:
        accelerator = Accelerator(cpu=True)
        with pytest.raises(ConfigError, match="phases_every_n_steps is -1"):
            attach(accelerator, phases_every_n_steps=-1)
        with pytest.raises(TypeError, match="colour"):
            attach(accelerator, colour="red")

    def test_without_accelerate_the_import_names_the_remedy(self) -> None:
        code = "import sys\nsys.modules['accelerate'] = None\nimport energy_plugins.accelerate"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.stderr.endswith("ImportError: accelerate is missing: pip install energy-plugins[accelerate]\n")
