"""A walk over doublings: it keeps what it knows, is surer between than beyond, and is found again from what it made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.tune.sweep.batch_walk import BatchWalk, Expected, expected_gain

WALK = BatchWalk(above=0.2, below=-0.1, sd=0.3)
LEVELS = st.floats(-5.0, 20.0)


@given(level=LEVELS, turn=st.floats(-2.0, 2.0))
def test_what_is_known_stays_so_and_the_middle_lies_between(level: float, turn: float) -> None:
    known = {0.0: level, 2.0: level + turn}
    for at, value in known.items():
        assert WALK.expect(at, known).mean == pytest.approx(value, abs=1e-3)
        assert WALK.expect(at, known).sd < 2e-3
    assert WALK.expect(1.0, known).mean == pytest.approx(level + turn / 2, abs=1e-3)


@given(level=LEVELS)
def test_beyond_what_is_known_it_drifts_and_is_ever_less_sure(level: float) -> None:
    known = {0.0: level}
    assert WALK.expect(3.0, known).mean == pytest.approx(level + 0.6, abs=1e-3)
    assert WALK.expect(-3.0, known).mean == pytest.approx(level + 0.3, abs=1e-3)
    assert WALK.expect(3.0, known).sd == pytest.approx(0.3 * math.sqrt(3), abs=2e-3)
    sds = [WALK.expect(at, {0.0: level, 2.0: level}).sd for at in (0.5, 1.0, 3.0, 4.0, 6.0)]
    assert sds == sorted(sds)


@given(level=LEVELS, shift=st.floats(-10, 10))
def test_it_knows_no_unit(level: float, shift: float) -> None:
    one = WALK.expect(1.5, {0.0: level, 1.0: level + 0.4})
    other = WALK.expect(1.5, {0.0: level + shift, 1.0: level + 0.4 + shift})
    assert other.mean - one.mean == pytest.approx(shift, abs=1e-4)
    assert other.sd == pytest.approx(one.sd)


def test_scatter_of_single_trainings_pulls_neighbours_together() -> None:
    noisy = BatchWalk(above=0.0, below=0.0, sd=0.1, noise=0.3)
    known = {0.0: 0.0, 1.0: 1.0, 2.0: 0.0}
    assert 0.2 < noisy.expect(1.0, known).mean < 0.6
    assert noisy.expect(1.0, known).sd < 0.3


def test_a_walk_is_fitted_to_what_it_made() -> None:
    rng = np.random.default_rng(3)
    curves = []
    for _ in range(400):
        up, down = np.cumsum(WALK.sd * rng.normal(size=(2, 4)), axis=1)
        curve = {0.0: 7.0}
        curve |= {at: 7.0 + WALK.drift(at) + up[place] for place, at in enumerate((1.0, 2.0, 3.0, 4.0))}
        curve |= {at: 7.0 + WALK.drift(at) + down[place] for place, at in enumerate((-1.0, -2.0, -3.0, -4.0))}
        curves.append(curve)
    found = BatchWalk.fitted(curves, noise=0.05)
    assert found.above == pytest.approx(0.2, abs=0.03)
    assert found.below == pytest.approx(-0.1, abs=0.03)
    assert found.sd == pytest.approx(0.3, rel=0.1)
    assert found.noise == 0.05


def test_one_size_alone_says_nothing_of_a_drift() -> None:
    assert BatchWalk.fitted([{0.0: 3.0}]) == BatchWalk(0.0, 0.0, 0.0)


@given(mean=st.floats(-3, 3), sd=st.floats(0.01, 1.0))
def test_the_gain_is_the_mean_of_what_would_be_saved(mean: float, sd: float) -> None:
    at = mean + sd * np.linspace(-8, 8, 4001)
    weights = np.exp(-((at - mean) ** 2) / (2 * sd**2))
    whole = float((np.maximum(1 - np.exp(at), 0) * weights).sum() / weights.sum())
    assert expected_gain(Expected(mean + 5.0, sd), 5.0) == pytest.approx(whole, abs=1e-4)


def test_what_is_surely_known_gains_what_it_saves() -> None:
    assert expected_gain(Expected(math.log(80.0), 0.0), math.log(100.0)) == pytest.approx(0.2)
    assert expected_gain(Expected(math.log(120.0), 0.0), math.log(100.0)) == 0.0
