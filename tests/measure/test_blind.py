"""What a mean over a window hides: no power that has the mean is further off than the bound says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.measure.attribution import EnergyCurve, RunCurve, attribute
from energy_plugins.measure.blind import Blind, most_off_j
from energy_plugins.measure.response import LevelFit

HIGHEST_W = 700.0
PIECES = 40
"""Of a window of a second, each of constant power."""

powers_w = st.lists(st.floats(0.0, HIGHEST_W), min_size=PIECES, max_size=PIECES).map(np.array)


def off_j(power_w: np.ndarray) -> float:
    """Return by how much a cut in the middle of a window of a second is off on the curve of means over a second."""
    edges_s = np.linspace(-0.5, 0.5, PIECES + 1)
    true_j = np.concatenate([[0.0], np.cumsum(power_w / PIECES)])
    middle_j = float(np.interp(0.0, edges_s, true_j))
    return float(np.sum((true_j[1:] + true_j[:-1]) / 2) / PIECES) - middle_j


@given(powers_w)
def test_a_cut_is_never_further_off_than_it_says(power_w: np.ndarray) -> None:
    bound_j = Blind(1.0, HIGHEST_W).cut_j(np.array([power_w.mean()]))[0]
    assert abs(off_j(power_w)) <= bound_j + 1e-9


@pytest.mark.parametrize("high", [4, 10, 20])
@pytest.mark.parametrize("before", [True, False])
def test_the_worst_power_is_as_far_off_as_it_says(high: int, before: bool) -> None:
    half = PIECES // 2
    power_w = np.zeros(PIECES)
    power_w[half - high : half] = HIGHEST_W
    if not before:
        power_w = power_w[::-1]
    bound_j = Blind(1.0, HIGHEST_W).cut_j(np.array([power_w.mean()]))[0]
    assert abs(off_j(power_w)) == pytest.approx(bound_j, rel=1e-6)


@given(powers_w, st.integers(1, PIECES))
def test_joules_are_never_further_off_than_anything_they_could_be(power_w: np.ndarray, pieces: int) -> None:
    told_j = np.array([power_w.mean() * pieces / PIECES])
    drawn_j = power_w[:pieces].sum() / PIECES
    assert abs(drawn_j - told_j[0]) <= most_off_j(told_j, pieces / PIECES, HIGHEST_W)[0] + 1e-9


def block(share: float) -> RunCurve:
    """Return a curve of a minute at 300 W whose sum is known, of a sensor that tells means over a second."""
    curve = RunCurve(0)
    knots = np.array([0, 30, 60]) * 10**9
    nothing = np.zeros(2)
    curve.append(
        EnergyCurve(
            t_ns=knots,
            energy_j=np.array([0.0, 9000.0, 18000.0]),
            variance_j2=np.zeros(3),
            covered_ns=knots.astype(float),
            cut_j2=nothing,
            shift_j=nothing,
            trust=1.0,
            bias=0.0,
            start_error_j=0.0,
            end_error_j=0.0,
            blind=Blind(1.0, HIGHEST_W),
            blind_share=np.full(2, share),
        )
    )
    return curve


@pytest.mark.parametrize(
    ("from_s", "until_s", "bound_j"),
    [
        (20.0, 20.01, 4.0),  # 3 J were told: they may be 0 or 7
        (20.0, 20.1, 40.0),
        (20.0, 30.0, 2 * 300 * 400 / 1400),  # both cuts at their worst
        (0.0, 20.0, 300 * 400 / 1400),
        (0.0, 0.05, 20.0),
        (0.0, 60.0, 0.0),
    ],
)
def test_the_bound_is_what_may_have_been(from_s: float, until_s: float, bound_j: float) -> None:
    times = np.array([from_s * 1e9, until_s * 1e9]).astype(np.int64)
    for share in (1.0, 0.1, 0.0):
        points = block(share).at(times)
        found = attribute(points.take(slice(0, 1)), points.take(slice(1, 2)))
        assert found.error_bound_j[0] == pytest.approx(share * bound_j, rel=1e-6, abs=1e-6)


def test_a_kind_that_stands_alone_in_the_window_is_not_confirmed_by_what_levels_explain_of_others() -> None:
    kinds = np.array([0] * 12 + [1] * 4 + [0, 1] * 6)
    length_s = np.array([0.1] * 12 + [0.1] * 4 + [0.3, 0.3] * 6)
    shares = Blind(1.0, HIGHEST_W).shares(kinds, length_s, 0.04)
    assert shares[:13].tolist() == [1.0] * 13  # 1.2 s of one kind, and the cut at its end
    assert shares[13:] == pytest.approx(0.2)


@pytest.mark.parametrize(("gap_s", "share"), [(0.0001, 1.0), (0.04, 1.0), (0.06, 0.2)])
def test_gaps_that_no_reading_shows_do_not_interrupt(gap_s: float, share: float) -> None:
    shares = Blind(1.0, HIGHEST_W).shares(np.array([0, 1] * 20), np.array([0.1, gap_s] * 20), 0.04)
    assert shares[::2] == pytest.approx(share)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.001, 2.0)), min_size=1, max_size=30), st.floats(0, 1))
def test_shares_are_between_what_levels_leave_and_all(pieces: list[tuple[int, float]], unexplained: float) -> None:
    kinds, length_s = np.array([kind for kind, _ in pieces]), np.array([length for _, length in pieces])
    shares = Blind(1.0, HIGHEST_W).shares(kinds, length_s, unexplained)
    assert np.isin(shares, [1.0, np.sqrt(unexplained)]).all()
    assert (shares[length_s > 1.0] == 1.0).all()


def fitted(power_w: np.ndarray, shares: np.ndarray, news: float = 1.0) -> float:
    fit = LevelFit(1e-6)
    fit.update(shares, np.arange(shares.shape[1]), power_w, news)
    return fit.unexplained


def test_marks_explain_what_follows_them_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    first = rng.uniform(0.2, 0.8, 400)
    shares = np.stack([first, 1 - first], axis=1)
    follows_w = shares @ np.array([600.0, 150.0])
    ripple_w = rng.normal(0.0, 80.0, 400)
    assert fitted(follows_w, shares) < 1e-4
    assert fitted(300.0 + ripple_w, shares) > 0.98
    assert 0.2 < fitted(follows_w + ripple_w, shares) < 0.6
    assert fitted(300.0 + ripple_w, np.ones((400, 1))) == 1.0  # one kind explains nothing
    assert fitted(follows_w[:20], shares[:20], 0.1) == 1.0  # two windows' worth for two kinds
