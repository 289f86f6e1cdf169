"""The curve through windows: what it says of its own error holds, and drift leaves it alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_plugins.tune.limit.smooth import Array, smooth


def visits(lowered: Array, each_s: float = 5.0) -> tuple[Array, Array]:
    """Return windows at each of ``lowered`` with the reference before, between and after, and their times."""
    at = np.zeros(2 * len(lowered) + 1)
    at[1::2] = lowered
    return at, np.array([each_s * (place + 0.5) for place in range(len(at))])


def truth(lowered: Array) -> Array:
    return np.asarray(0.2 * lowered + lowered**2)


def test_is_0_at_the_reference_and_surely_so() -> None:
    at, when_s = visits(np.array([0.1, 0.2]))
    fitted = smooth(at, when_s, truth(at), np.full(len(at), 1e-3))
    zero = np.zeros(1)
    assert fitted.mean(zero) == 0
    assert fitted.sd(zero) == 0


@settings(max_examples=50, deadline=None)
@given(level=st.floats(-5, 5), slope=st.floats(-5e-5, 5e-5), bend=st.floats(-1e-7, 1e-7))
def test_level_and_drift_make_no_difference(level: float, slope: float, bend: float) -> None:
    at, when_s = visits(np.array([0.1, 0.2, 0.3, 0.2, 0.1]))
    errors, candidates = np.full(len(at), 5e-4), np.linspace(0, 0.3, 7)
    steady = smooth(at, when_s, truth(at), errors)
    drifting = smooth(at, when_s, truth(at) + level + slope * when_s + bend * when_s**2, errors)
    np.testing.assert_allclose(drifting.mean(candidates), steady.mean(candidates), atol=5e-4)


def test_errors_hold() -> None:
    rng = np.random.default_rng(3)
    lowered = np.tile([0.05, 0.1, 0.15, 0.2], 3)
    at, when_s = visits(lowered)
    candidates = np.array([0.05, 0.075, 0.1, 0.15, 0.2])
    far = []
    for _ in range(200):
        errors = np.full(len(at), 5e-3)
        fitted = smooth(at, when_s, truth(at) + rng.normal(size=len(at)) * errors, errors)
        far.append((fitted.mean(candidates) - truth(candidates)) / fitted.sd(candidates))
    assert 0.8 < np.std(far) < 1.1
    assert abs(np.mean(far)) < 0.15


def test_windows_that_differ_by_more_than_they_say_are_believed_less() -> None:
    rng = np.random.default_rng(4)
    at, when_s = visits(np.tile([0.1], 20))
    scatter = rng.normal(size=len(at)) * 5e-3
    honest = smooth(at, when_s, truth(at) + scatter, np.full(len(at), 5e-3))
    boasting = smooth(at, when_s, truth(at) + scatter, np.full(len(at), 5e-4))
    place = np.array([0.1])
    assert boasting.sd(place) > 0.4 * honest.sd(place)
