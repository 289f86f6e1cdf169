"""Levels of sizes from noisy windows: right on average, with errors that are so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.tune.micro_batch.levels import Levels, levels, shared

SIZES = [8, 16, 8, 32, 16, 8, 32, 16, 32, 8]
TRUTH = {8: 0.0, 16: -0.4, 32: -0.41}


def measured(noise: float, seed: int, *, said: float, slope: float = 0.0) -> Levels:
    rng = np.random.default_rng(seed)
    when_s = 5.0 * np.arange(len(SIZES), dtype=np.float64) + 2.5
    values = np.array([TRUTH[size] for size in SIZES]) + noise * rng.normal(size=len(SIZES)) + slope * when_s + 3.0
    return levels(SIZES, when_s, np.full(len(SIZES), 5.0), values, np.full(len(SIZES), said))


@given(slope=st.floats(-5e-5, 5e-5))
def test_without_noise_they_are_exact_whatever_the_drift(slope: float) -> None:
    found = measured(0.0, 0, said=1e-4, slope=slope)
    assert found.sizes == (8, 16, 32)
    assert found.between(16, 8).mean == pytest.approx(-0.4, abs=1e-3)
    assert found.between(32, 16).mean == pytest.approx(-0.01, abs=1e-3)
    assert found.between(16, 8).mean == pytest.approx(-found.between(8, 16).mean)
    assert (found.between(8, 8).mean, found.between(8, 8).sd) == (0.0, 0.0)


@pytest.mark.parametrize("understated", [1.0, 3.0])
def test_errors_are_what_they_say_even_where_windows_say_less(understated: float) -> None:
    noise = 0.005
    off = [
        (found.mean - TRUTH[16] + TRUTH[8]) / found.sd
        for found in (measured(noise, seed, said=noise / understated).between(16, 8) for seed in range(200))
    ]
    assert np.mean(np.abs(off) < 1.645) >= 0.8
    assert 0.7 <= np.std(off) <= 1.5
    assert abs(np.mean(off)) < 0.3


def test_probabilities_go_with_the_error() -> None:
    difference = measured(0.005, 1, said=0.005).between(16, 8)
    assert difference.under(0.0) > 0.999
    assert difference.under(difference.mean) == pytest.approx(0.5)
    same = measured(0.005, 1, said=0.005).between(16, 16)
    assert (same.under(0.1), same.under(-0.1)) == (1.0, 0.0)


@given(
    errors=st.lists(st.floats(1e-4, 0.1), min_size=1, max_size=9),
    factor=st.floats(0.1, 10.0),
)
def test_errors_are_shared_in_proportion(errors: list[float], factor: float) -> None:
    one, seconds = np.array(errors), np.full(len(errors), 5.0)
    assert shared(factor * one, seconds) == pytest.approx(factor * shared(one, seconds))
    assert np.square(shared(one, seconds)).sum() == pytest.approx(np.square(one).sum())
    assert shared(one, seconds).max() <= one.max() * (1 + 1e-9)
