"""The carbon block in the model card that a Trainer makes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import PretrainedConfig, Trainer
from transformers_training import Model, make_trainer

from energy_plugins.errors import ConfigError
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation
from energy_plugins.transformers import EnergyArguments, EnergyCallback
from energy_plugins.units import j_to_kwh

KEY = "co2_eq_emissions"


@pytest.fixture
def in_france(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_REPORT_COUNTRY", "FR")
    monkeypatch.setenv("ENERGY_REPORT_PUE", "1.5")


def trainer_of(folder: Path, callback: EnergyCallback, model: Any = None, **settings: Any) -> Trainer:
    """Return one whose model has what a model card asks for."""
    model = model or Model()
    model.config = PretrainedConfig()
    return make_trainer(folder, callback, model=model, **settings)


def card_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = ModelCard.load(folder / "README.md").data.to_dict()
    return found


def test_says_what_the_training_emitted_and_changes_nothing_else(
    simulation: Simulation, in_france: None, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, callback := EnergyCallback())
    trainer.train()
    trainer.create_model_card(license="mit")
    text = (tmp_path / "README.md").read_text()
    report = callback.report
    assert report is not None
    assert report.total_j is not None
    said = card_of(tmp_path)[KEY]
    assert said["emissions"] == pytest.approx(j_to_kwh(report.total_j) * 1.5 * 56.039, rel=1e-3)
    assert (said["geographical_location"], said["hardware_used"]) == ("France", "1 x NVIDIA H200 (SIMULATED)")
    assert said["source"].startswith("SIMULATED: energy-plugins")
    del trainer.__dict__["create_model_card"]
    trainer.create_model_card(license="mit")
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [line for line in text.splitlines() if line not in lines and not line.startswith("  ")] == [f"{KEY}:"]
    assert [line for line in lines if line not in text.splitlines()] == []


def test_a_resumed_training_counts_what_it_drew_before(simulation: Simulation, in_france: None, tmp_path: Path) -> None:
    slow = Model(lambda _: simulation.gpus[0].launch(ops=8e14, wait=True))  # a second each, to be known in time
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trainer_of(tmp_path, EnergyCallback(), slow, max_steps=2, **saving).train()
    trainer = trainer_of(tmp_path, callback := EnergyCallback(), slow, max_steps=3, **saving)
    trainer.train(resume_from_checkpoint=True)
    trainer.create_model_card()
    report = callback.report
    assert report is not None
    assert report.total_j is not None
    earlier_j = report.config["earlier_j"]
    assert isinstance(earlier_j, float)
    assert earlier_j > 0
    expected_g = j_to_kwh(report.total_j + earlier_j) * 1.5 * 56.039
    assert card_of(tmp_path)[KEY]["emissions"] == pytest.approx(expected_g, rel=1e-3)


def test_without_a_place_the_card_is_the_trainers_own(simulation: Simulation, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, EnergyCallback())
    trainer.train()
    assert "create_model_card" not in vars(trainer)
    trainer.create_model_card()
    assert KEY not in card_of(tmp_path)


def test_an_intensity_of_ones_own(simulation: Simulation, tmp_path: Path) -> None:
    arguments = EnergyArguments(energy_report_carbon_intensity_g_per_kwh=1000.0, energy_report_country="my roof")
    trainer = trainer_of(tmp_path, EnergyCallback.from_arguments(arguments))
    trainer.train()
    trainer.create_model_card()
    assert card_of(tmp_path)[KEY]["geographical_location"] == "my roof"
    assert "your own figure" in card_of(tmp_path)[KEY]["source"]
    (report,) = (Report.load(folder) for folder in (tmp_path / "energy").iterdir())
    assert report.config["place"] == {"country": "my roof", "carbon_intensity_g_per_kwh": 1000.0, "pue": 1.0}


def test_a_country_that_does_not_exist_is_found_at_once() -> None:
    with pytest.raises(ConfigError, match=r"'Frence' is not known; the nearest: France \(FR\)"):
        EnergyCallback.from_arguments(EnergyArguments(energy_report_country="Frence"))


def test_before_a_training_has_been_measured_there_is_no_block(
    simulation: Simulation, in_france: None, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, EnergyCallback())
    trainer.create_model_card()
    assert KEY not in card_of(tmp_path)


def test_no_gpu_makes_a_warning_and_a_card_without_grams(
    in_france: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGY_NVML_LIBRARY", "/nonexistent/libnvidia-ml.so.1")
    trainer = trainer_of(tmp_path, EnergyCallback())
    trainer.train()
    with pytest.warns(RuntimeWarning, match="the model card says nothing of carbon: .*not measured"):
        trainer.create_model_card()
    assert KEY not in card_of(tmp_path)


def test_the_callback_can_still_be_pickled(in_france: None) -> None:
    assert isinstance(pickle.loads(pickle.dumps(EnergyCallback())), EnergyCallback)  # noqa: S301 - our own
