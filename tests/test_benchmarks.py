"""What benchmarks keep of their measurements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_rows_of_long_steps_keep_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from sensor_plans import ROW_UNIT_S, shared_rows
    from simulator_accuracy import Windows

    length_s = np.array([0.004, 0.7, 12.0])
    one = np.ones(3)
    rows = shared_rows(Windows(np.arange(3), one.astype(str), length_s, one, one, one))
    assert rows["length"].astype(float) * ROW_UNIT_S == pytest.approx(length_s)
    assert rows["run"].tolist() == [0, 1, 2]


def test_curves_between_recorded_ends_meet_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _micro_batch_curves import ENDS, RECORDED, recorded_curves

    curves = recorded_curves(RECORDED)
    for ends in ENDS:
        curve, whole = curves[ends.what], curves[ends.of]
        assert tuple(curve[size].sample_j for size in ends.sizes) == pytest.approx(ends.joules_per_sample)
        assert max(curve) == max(ends.sizes)
        for size, point in curve.items():
            drawn_w = point.sample_j / point.sample_s
            assert drawn_w == pytest.approx(whole[size].sample_j / whole[size].sample_s)


@pytest.mark.parametrize(
    ("joules", "size"),
    [
        ({1: 9.0, 2: 5.0, 4: 4.0, 8: 4.05, 16: 4.5}, 8),
        ({1: 9.0, 2: 5.0, 4: 4.0}, None),  # it rises nowhere
        ({1: 4.0, 2: 4.0}, None),
        ({}, None),
    ],
)
def test_the_knee_is_the_last_size_before_energy_rises(
    monkeypatch: pytest.MonkeyPatch, joules: dict[int, float], size: int | None
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _sizes_in_turn import knee

    assert knee(joules) == size


def test_sizes_of_a_sample_are_medians_of_their_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _sizes_in_turn import Drawn, sample_joules

    drawn = [Drawn(8, turn, 5.0, 100, energy_j, 1.0) for turn, energy_j in enumerate((50.0, 60.0, 900.0))]
    assert sample_joules([*drawn, Drawn(4, 0, 5.0, 10, 20.0, 1.0)]) == {4: 2.0, 8: 0.6}


def test_sweeps_without_recorded_trainings_are_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from sweep_traces import main

    monkeypatch.delenv("ENERGY_TRACES", raising=False)
    monkeypatch.setattr("sys.argv", ["sweep_traces.py"])
    assert main() == 0
    assert "skipped, pass the folder" in capsys.readouterr().out
    monkeypatch.setenv("ENERGY_TRACES", str(tmp_path))
    assert main() == 0
    assert "skipped, there is no zeus_power_v100.csv" in capsys.readouterr().out


def test_figures_of_sweeps_are_those_of_their_rows() -> None:
    result = json.loads((BENCHMARKS / "results" / "sweep_traces.json").read_text(encoding="utf-8"))
    cells, seeds = len(result["replay"]["cells"]), len(result["replay"]["seeds"])

    def rows(way: str, column: str) -> np.ndarray:
        return np.array(result["raw"][way][column]).reshape(cells, seeds)

    median = "TPE, median pruner, epochs"
    cap_j = rows(median, "spent_j").mean(axis=1, keepdims=True)
    until_j = {
        way: np.where(rows(way, "found_j") > 0, rows(way, "found_j"), cap_j).mean(axis=1) for way in (median, "ours")
    }
    share = (until_j["ours"] / until_j[median]).mean()
    assert result["by_way"]["ours"]["mean"]["of_median_pruner"] == pytest.approx(share, rel=1e-3)
    assert result["by_way"]["ours"]["mean"]["found"] == pytest.approx((rows("ours", "found_j") > 0).mean(), abs=1e-4)
    assert rows("ours", "trials").max() <= result["replay"]["most_trials"]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Return a folder with one workload, recorded twice: at 16 it takes three epochs or five, at 32 six or never."""
    power = ["dataset,network,batch_size,optimizer,power_limit,time_per_epoch,average_power"]
    power += [
        f"squad,bert_base_uncased,{size},adamw,{limit_w},10,{limit_w}" for size in (16, 32) for limit_w in (100, 200)
    ]
    epochs = ["dataset,network,batch_size,optimizer,learning_rate,run,target_metric,target_epoch"]
    needed = {(16, 1): (1, 3), (16, 2): (2, 5), (32, 1): (4, 6), (32, 2): (3, "nan")}
    for (size, run), reached in needed.items():
        epochs += [
            f"squad,bert_base_uncased,{size},adamw,1,{run},{value},{epoch}"
            for value, epoch in zip((83.0, 84.0), reached, strict=True)
        ]
    for name, lines in (("power.csv", power), ("zeus_train.csv", epochs)):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_recorded_trainings_show_no_more_than_a_run_would(monkeypatch: pytest.MonkeyPatch, recorded: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _recorded_sweeps import WORKLOADS, cell_of, runs_of

    workload = next(workload for workload in WORKLOADS if workload.dataset == "squad")
    cell = cell_of(recorded / "power.csv", "V100", workload, runs_of(recorded, workload))
    assert (cell.batches, cell.limits_w, cell.most_epochs) == ((16, 32), (100.0, 200.0), 6)
    assert cell.to_target_j(16, 100.0) == pytest.approx(4 * 10 * 100)
    assert cell.to_target_j(32, 200.0) == cell.default_j == pytest.approx(6 * 10 * 200)
    assert cell.least_j == pytest.approx(4000.0)
    first, second = cell.runs[32]
    assert [first.value(epoch) for epoch in (3, 4, 5.9, 6)] == [None, 83.0, 83.0, 84.0]
    assert (first.target_epoch, second.target_epoch) == (6, None)
    assert second.value(100) == 83.0
