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
