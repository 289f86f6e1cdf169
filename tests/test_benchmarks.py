"""What benchmarks keep of their measurements."""

from __future__ import annotations

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
