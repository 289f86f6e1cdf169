"""What a sweep found for its joules, by hand and by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from sweeping import journal, sqlite

from energy_plugins.errors import ConfigError, ReportError
from energy_plugins.optuna.sweeps import read_sweep, sweep_of
from energy_plugins.report.sweep import Sweep, SweepTrial
from energy_plugins.report.sweep_text import sweep_lines


def trial(number: int, value: float | None, energy_j: float | None, **more: Any) -> SweepTrial:
    facts: dict[str, Any] = {
        "state": "complete",
        "duration_s": 1.0,
        "to_target_j": None,
        "to_target_s": None,
        "shared": False,
        "params": {},
    }
    return SweepTrial(number=number, value=value, energy_j=energy_j, **{**facts, **more})


def sweep(*trials: SweepTrial, maximize: bool = True) -> Sweep:
    return Sweep(study="s", metric="acc", maximize=maximize, trials=trials, budget_j=None, importance=None)


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=12)


@given(POINTS, st.booleans())
def test_the_front_is_what_no_other_trial_beats(points: list[tuple[int, int]], maximize: bool) -> None:
    sign = 1 if maximize else -1
    found = sweep(*(trial(at, sign * good, cost) for at, (good, cost) in enumerate(points)), maximize=maximize)
    front = {(sign * (one.value or 0), one.energy_j) for one in found.front()}
    beaten = {
        (good, cost)
        for good, cost in points
        if any(other >= good and price <= cost and (other, price) != (good, cost) for other, price in points)
    }
    assert front == set(points) - beaten


def test_the_knee_is_where_more_joules_begin_to_buy_less() -> None:
    bent = [trial(0, 0.5, 10), trial(1, 0.6, 15), trial(2, 0.85, 20), trial(3, 0.88, 60), trial(4, 0.9, 100)]
    found = sweep(*bent).knee()
    assert found is not None
    assert found.number == 2
    assert sweep(*bent[:2]).knee() is None
    straight = sweep(trial(0, 0.0, 0), trial(1, 0.5, 50), trial(2, 1.0, 100))
    assert straight.knee() is None
    hollow = sweep(trial(0, 0.0, 0), trial(1, 0.1, 50), trial(2, 1.0, 100))
    assert hollow.knee() is None


def test_trials_that_shared_a_gpu_or_lack_joules_are_in_no_front_and_are_said() -> None:
    found = sweep(trial(0, 0.9, 1.0, shared=True), trial(1, 0.9, None), trial(2, float("nan"), 1.0), trial(3, 0.1, 5.0))
    assert [one.number for one in found.front()] == [3]
    said = "\n".join(sweep_lines(found))
    assert "1 trials shared a GPU" in said
    assert "1 trials have no joules" in said


def make_study(storage: Any) -> optuna.Study:
    study = optuna.create_study(storage=storage, study_name="digits", direction="maximize")
    study.set_metric_names(["acc"])
    study.set_user_attr("energy/budget_j", 3.6e6)
    space = {
        "width": optuna.distributions.IntDistribution(1, 64),
        "dropout": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    for number in range(12):
        width = 5 * number + 1
        drawn = {"energy/trial": float(number), "energy/total_j": 1000.0 * width, "energy/duration_s": width / 1.0}
        more = {"energy/to_target_j": 300.0 * width, "energy/to_target_s": 1.0} if number > 5 else {}
        study.add_trial(
            create_trial(
                value=1 - 0.9**number,
                params={"width": width, "dropout": (number * 5 % 12) / 12},
                distributions=space,
                user_attrs={**drawn, **more},
            )
        )
    for number, state in ((12, TrialState.PRUNED), (13, TrialState.FAIL)):
        drawn = {"energy/trial": float(number), "energy/total_j": 500.0}
        study.add_trial(create_trial(state=state, user_attrs=drawn))
    return study


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_is_read_with_its_importance() -> None:
    found = sweep_of(make_study(None))
    assert found.importance is not None
    assert found.importance["width"] > 0.6
    assert found.energy_j == sum(1000.0 * (5 * number + 1) for number in range(12)) + 1000.0
    assert found.by_state()["pruned"] == (1, 500.0)
    best = found.to_target()
    assert best is not None
    assert best.number == 6
    few = sweep_of(optuna.create_study())
    assert few.importance is None
    assert sweep_lines(sweep(trial(0, 1.0, 1.0, simulated=True)))[0].startswith("SIMULATED")
    assert "SIMULATED" not in "".join(sweep_lines(sweep(trial(0, 1.0, 1.0))))
    assert "0 complete trials" in few.why_no_importance


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", ["url", "sqlite", "journal"])
def test_the_command_reads_storages_of_every_kind(tmp_path: Path, kind: str) -> None:
    make_study(journal(tmp_path) if kind == "journal" else sqlite(tmp_path))
    named = {"url": sqlite(tmp_path), "sqlite": tmp_path / "study.db", "journal": tmp_path / "study.log"}[kind]
    options = ["--json"] if kind == "url" else []
    ended = subprocess.run(
        [sys.executable, "-m", "energy_plugins", "sweep", "report", str(named), "digits", *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert ended.returncode == 0, ended.stderr
    if kind == "url":
        told = json.loads(ended.stdout)
        assert told["by_state"]["fail"] == {"trials": 1, "energy_j": 500.0}
        assert told["front"] == list(range(12))
        assert told["knee"] in range(1, 11)
        return
    assert "digits: 14 trials drew" in ended.stdout
    assert "budget of 1 kWh" in ended.stdout
    assert "<- knee" in ended.stdout
    assert "width=" in ended.stdout
    assert "least energy to the target: trial 6" in ended.stdout


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        read_sweep(str(tmp_path / "none.db"), "digits")
    optuna.create_study(storage=sqlite(tmp_path), study_name="other")
    with pytest.raises(ReportError, match="no study 'digits'; there are: 'other'"):
        read_sweep(sqlite(tmp_path), "digits")
    (tmp_path / "broken.log").write_text("{nonsense\nmore\n")
    with pytest.raises(ReportError, match="cannot be read"):
        read_sweep(str(tmp_path / "broken.log"), "digits")
