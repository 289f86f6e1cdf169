"""What trials of Ray drew, as files, and the stopper that reads them: no cluster is needed."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweeping import Simulated

pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install energy-plugins[ray]")

from pyarrow import fs

from energy_plugins.errors import ConfigError, ReportError
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.ray import EnergyBudgetStopper, experiment_energy_j
from energy_plugins.ray.charge import Charge
from energy_plugins.ray.charges import TrialEnergy, read_energy, write_energy
from energy_plugins.ray.trial import OwnTrial, own_trial
from energy_plugins.testing import Constant, Simulation
from energy_plugins.units import j_to_kwh

LOCAL = fs.LocalFileSystem()
DRAWN = TrialEnergy(total_j=1200.0, duration_s=4.0, gpus=("GPU-a",), shared_gpu=0, simulated=True, ended=False)


@dataclass
class Trial:
    """As much of Ray's as the stopper asks."""

    trial_id: str
    folder: Path
    finished: bool = False

    @property
    def storage(self) -> Any:
        return SimpleNamespace(storage_filesystem=LOCAL, trial_fs_path=str(self.folder))

    def is_finished(self) -> bool:
        return self.finished


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_energy(LOCAL, str(tmp_path / "trial")) is None
    write_energy(LOCAL, str(tmp_path / "trial"), DRAWN)
    write_energy(LOCAL, str(tmp_path / "trial"), replace(DRAWN, total_j=1300.0, ended=True))
    assert read_energy(LOCAL, str(tmp_path / "trial")) == replace(DRAWN, total_j=1300.0, ended=True)


def test_an_experiment_is_the_sum_of_its_trials(tmp_path: Path) -> None:
    for name, joules in (("first", 100.0), ("second", 20.0)):
        write_energy(LOCAL, str(tmp_path / name), replace(DRAWN, total_j=joules))
    (tmp_path / "never_measured").mkdir()
    assert experiment_energy_j(tmp_path) == 120.0
    assert experiment_energy_j(tmp_path.as_uri()) == 120.0


def test_what_is_no_experiment_or_no_energy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="ResultGrid.experiment_path"):
        experiment_energy_j(tmp_path / "gone")
    for text, complaint in (("{", "is no JSON"), ("{}", "is missing"), (_with(total_j=-1.0), "no trial draws")):
        (tmp_path / "trial").mkdir(exist_ok=True)
        (tmp_path / "trial" / "energy.json").write_text(text)
        with pytest.raises(ReportError, match=complaint):
            experiment_energy_j(tmp_path)


def _with(**changed: float) -> str:
    return json.dumps({"duration_s": 1.0, "gpus": [], "shared_gpu": 0, "simulated": True, "ended": True, **changed})


@pytest.mark.parametrize("kwh", [0, -1.0, math.nan, math.inf, True, "20"])
@pytest.mark.parametrize("name", ["energy_kwh", "trial_kwh"])
def test_a_budget_that_is_none_is_refused_by_its_name(name: str, kwh: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is"):
        EnergyBudgetStopper(**{name: kwh})


def test_a_stopper_without_a_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="no budget"):
        EnergyBudgetStopper()


def test_reports_alone_end_trials_and_the_experiment() -> None:
    stopper = EnergyBudgetStopper(j_to_kwh(250.0), trial_kwh=j_to_kwh(150.0))
    assert not stopper("a", {"energy/total_j": 100.0})
    assert stopper("b", {"energy/total_j": 150.0})
    assert stopper.drawn_j == 250.0
    assert stopper.stop_all()


def test_joules_that_are_not_known_yet_count_for_nothing() -> None:
    stopper = EnergyBudgetStopper(j_to_kwh(250.0))
    assert not stopper("a", {"energy/total_j": math.nan})
    assert stopper.drawn_j == 0
    assert not stopper.stop_all()


def test_a_trial_that_reports_no_joules_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    stopper = EnergyBudgetStopper(j_to_kwh(250.0))
    assert [stopper("a", {"loss": 1.0}) for _ in range(2)] == [False, False]
    (only,) = recwarn
    assert "add an EnergyReportCallback" in str(only.message)


def test_trials_that_never_report_count_and_so_do_those_of_before(tmp_path: Path) -> None:
    running, killed, waiting = (Trial(name, tmp_path / name) for name in ("running", "killed", "waiting"))
    killed.finished = True
    for trial in (running, killed):
        write_energy(LOCAL, str(trial.folder), DRAWN)
    stopper = EnergyBudgetStopper(j_to_kwh(2400.0))
    stopper.on_step_begin(0, [running, killed, waiting])  # type: ignore[list-item] # see `Trial`
    assert stopper.drawn_j == 2400.0
    assert stopper.stop_all()


def test_the_last_word_of_a_trial_counts_more_than_a_guess(tmp_path: Path) -> None:
    trial = Trial("a", tmp_path / "a", finished=True)
    stopper = EnergyBudgetStopper(j_to_kwh(5000.0))
    stopper("a", {"energy/total_j": 1300.0})
    write_energy(LOCAL, str(trial.folder), DRAWN)
    stopper.on_experiment_end([trial])  # type: ignore[list-item] # see `Trial`
    assert stopper.drawn_j == 1300.0
    write_energy(LOCAL, str(trial.folder), replace(DRAWN, ended=True))
    stopper.on_experiment_end([trial])  # type: ignore[list-item] # see `Trial`
    assert stopper.drawn_j == 1200.0


def attempt(trial: OwnTrial, seconds: float) -> TrialEnergy:
    with EnergyMeter("trial", folder=None) as meter:
        charge = Charge(trial, meter).begin()
        time.sleep(seconds)
    return charge.energy


def trial_on(folder: Path, simulation: Simulation, **other: Any) -> OwnTrial:
    whole = OwnTrial(id="a", folder=str(folder), files=LOCAL, gpu_share=1.0, gpus=(visible_gpus()[0].uuid,))
    return replace(whole, **other)


def test_attempts_at_a_trial_add_up(simulated: Simulated, tmp_path: Path) -> None:
    trial = trial_on(tmp_path, simulated(Constant(300.0)))
    first = attempt(trial, 0.3)
    assert first.total_j == pytest.approx(300 * first.duration_s, rel=0.05)
    second = attempt(trial, 0.3)
    assert second.duration_s > first.duration_s + 0.3
    assert second.total_j == pytest.approx(300 * second.duration_s, rel=0.05)
    assert read_energy(LOCAL, str(tmp_path)) == second
    assert (second.shared_gpu, second.ended, second.simulated) == (0, True, True)


def test_reports_and_beats_at_once_leave_a_whole_file(
    simulated: Simulated, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    trial = trial_on(tmp_path, simulated(Constant(300.0)))
    write_energy(LOCAL, str(tmp_path), DRAWN)  # of an earlier attempt
    with EnergyMeter("trial", folder=None) as meter:
        charge = Charge(trial, meter).begin()

        def report(_: int) -> TrialEnergy | None:
            charge.figures()
            return read_energy(LOCAL, str(tmp_path))

        with ThreadPoolExecutor(4) as threads:
            assert None not in list(threads.map(report, range(200)))
    assert [str(told.message) for told in recwarn] == []


def test_a_gpu_that_ray_did_not_give_is_marked(simulated: Simulated, tmp_path: Path) -> None:
    trial = trial_on(tmp_path, simulated(), gpus=("GPU-another",))
    with pytest.warns(RuntimeWarning, match="which Ray did not give it"):
        assert attempt(trial, 0.1).shared_gpu == 1


def test_part_of_a_gpu_is_marked(simulated: Simulated, tmp_path: Path) -> None:
    trial = trial_on(tmp_path, simulated(), gpu_share=0.5)
    with pytest.warns(RuntimeWarning, match="asked Ray for 0.5 of a GPU"):
        assert attempt(trial, 0.1).shared_gpu == 1


def test_trials_that_meet_on_a_gpu_are_marked(simulated: Simulated, tmp_path: Path) -> None:
    simulation = simulated()
    one, other = (trial_on(tmp_path / name, simulation, id=name) for name in ("one", "other"))
    with EnergyMeter("one", folder=None) as meter:
        charge = Charge(one, meter).begin()
        with pytest.warns(RuntimeWarning, match="trial other shares a GPU"):
            assert attempt(other, 0.1).shared_gpu == 1
    assert charge.energy.shared_gpu == 1


def test_an_objective_has_the_energy_if_it_asks_for_it(simulated: Simulated, tmp_path: Path) -> None:
    from energy_plugins.ray.transformers import EnergyReportCallback

    trial, asked = trial_on(tmp_path, simulated(Constant(300.0))), EnergyReportCallback(energy_metric="eval_energy_j")
    with EnergyMeter("trial", folder=None) as meter:
        asked._charge = Charge(trial, meter).begin()
        time.sleep(0.3)
    metrics = {"eval_loss": 1.0}
    assert asked._computed(lambda seen: seen["eval_energy_j"], metrics) == asked._charge.energy.total_j
    assert metrics["eval_energy_j"] == metrics["energy/total_j"]

    unasked = EnergyReportCallback()
    assert unasked._computed(len, {"eval_loss": 1.0}) == 1


def test_a_storage_that_is_gone_is_said_and_ends_nothing(simulated: Simulated, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trial = trial_on(tmp_path / "file" / "trial", simulated(Constant(300.0)))
    with pytest.warns(RuntimeWarning, match="what trial a dr"):
        assert attempt(trial, 0.3).total_j > 50


@pytest.mark.parametrize(("share", "whole"), [(0.0, False), (0.5, False), (1.0, True), (2.0, True), (1.5, False)])
def test_whole_gpus_are_told_from_fractions(share: float, whole: bool) -> None:
    assert OwnTrial(id="a", folder="", files=LOCAL, gpu_share=share, gpus=()).has_whole_gpus == whole


def test_outside_of_ray_there_is_no_trial() -> None:
    assert own_trial() is None
