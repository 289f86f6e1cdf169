"""What a sample responds to, and the levels of kinds of work read back out of blurred samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import MS, SECOND, sense
from numpy.typing import NDArray

from energy_plugins.measure.response import LevelFit, Response, Segments, occupancy

RESPONSE = Response(dead_time_s=0.005, lag_s=0.012)
FAR_NS = 2**62


def segments(edges_ns: list[int], kinds: list[int]) -> Segments:
    return Segments(np.array([*edges_ns, FAR_NS], np.int64), np.array(kinds, np.int64))


def alternating(lengths_ns: list[int]) -> Segments:
    edges = np.cumsum([0, *lengths_ns[:-1]]).tolist()
    return segments(edges, [number % 2 for number in range(len(edges))])


def stamps(end_ns: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return stamps as of an H200: every 20 ms, give or take."""
    apart = np.clip(np.random.default_rng(seed).normal(20 * MS, 4 * MS, end_ns // (20 * MS)), MS, None)
    return np.cumsum(apart).astype(np.int64)


def test_a_sample_shows_the_power_of_its_mean_delay_before() -> None:
    assert RESPONSE.delay_ns == 17 * MS


def test_a_sample_sees_a_change_after_the_dead_time_and_then_exponentially() -> None:
    change = segments([0, SECOND], [0, 1])
    t_ns = SECOND + np.array([-MS, 0, 5 * MS, 17 * MS, 500 * MS])
    share = occupancy(RESPONSE, t_ns, change, 2)[:, 1]
    assert share == pytest.approx([0, 0, 0, 1 - np.exp(-1), 1], abs=1e-6)


def test_a_sample_from_before_the_first_edge_sees_the_first_segment() -> None:
    assert occupancy(RESPONSE, np.array([-SECOND, 0]), segments([0, SECOND], [1, 0]), 2).tolist() == [[0, 1], [0, 1]]


@given(st.lists(st.integers(1, 200 * MS), min_size=1, max_size=30), st.lists(st.integers(0, 3 * SECOND), max_size=20))
def test_shares_are_not_negative_and_sum_to_one(lengths_ns: list[int], times_ns: list[int]) -> None:
    share = occupancy(RESPONSE, np.array(times_ns, np.int64), alternating(lengths_ns), 2)
    assert share.shape == (len(times_ns), 2)
    assert (share >= 0).all()
    assert share.sum(axis=1) == pytest.approx(np.ones(len(times_ns)))


@given(st.lists(st.integers(MS, 80 * MS), min_size=2, max_size=12))
def test_shares_times_powers_are_what_a_first_order_sensor_shows(lengths_ns: list[int]) -> None:
    work = alternating(lengths_ns)
    t_ns = np.arange(0, sum(lengths_ns) + 50 * MS, 7 * MS)
    pieces = [(edge, (300.0, 520.0)[kind]) for edge, kind in zip(work.edges_ns.tolist(), work.kinds, strict=False)]
    blurred = occupancy(RESPONSE, t_ns, work, 2) @ np.array([300.0, 520.0])
    assert blurred == pytest.approx(sense(pieces, t_ns, RESPONSE), abs=0.6)  # responses are forgotten at 0.25 %


def test_levels_of_work_far_shorter_than_the_blur_are_found() -> None:
    lengths_ns = np.random.default_rng(3).integers(10 * MS, 40 * MS, 400).tolist()
    t_ns = stamps(sum(lengths_ns))
    share = occupancy(RESPONSE, t_ns, alternating(lengths_ns), 2)
    noise = np.random.default_rng(4).normal(1, 0.003, len(t_ns))
    levels = LevelFit().update(share, np.array([7, 9]), share @ np.array([300.0, 520.0]) * noise)
    assert levels.kinds.tolist() == [7, 9]
    assert levels.power_w == pytest.approx([300, 520], rel=0.01)
    assert (levels.error_w < 10).all()


def test_kinds_that_are_always_together_are_given_the_same_level() -> None:
    lengths_ns = [MS // 100] * 20_000
    t_ns = stamps(200 * MS) + 100 * MS
    share = occupancy(RESPONSE, t_ns, alternating(lengths_ns), 2)
    levels = LevelFit().update(share, np.array([0, 1]), np.full(len(t_ns), 400.0))
    assert levels.power_w == pytest.approx([400, 400], rel=0.01)


def test_levels_follow_a_change_of_the_workload() -> None:
    fit, kinds = LevelFit(), np.array([0, 1])
    lengths_ns = np.random.default_rng(3).integers(50 * MS, 90 * MS, 100).tolist()
    share = occupancy(RESPONSE, stamps(sum(lengths_ns)), alternating(lengths_ns), 2)
    fit.update(share, kinds, share @ np.array([300.0, 500.0]))
    for _ in range(8):
        levels = fit.update(share, kinds, share @ np.array([450.0, 350.0]))
    assert levels.power_w == pytest.approx([450, 350], rel=0.01)


def test_a_kind_that_appears_later_joins_the_others() -> None:
    fit = LevelFit()
    fit.update(np.ones((50, 1)), np.array([5]), np.full(50, 200.0))
    share = np.repeat(np.eye(2), 25, axis=0)
    levels = fit.update(share, np.array([2, 5]), share @ np.array([600.0, 200.0]))
    assert levels.kinds.tolist() == [2, 5]
    assert levels.power_w == pytest.approx([600, 200], rel=0.02)


def test_kinds_not_seen_for_long_are_forgotten() -> None:
    fit = LevelFit()
    for number in range(200):
        share = np.repeat(np.eye(2), 25, axis=0)
        levels = fit.update(share, np.array([number, 1000]), share @ np.array([300.0, 500.0]))
    assert levels.power_w == pytest.approx([300, 500], rel=0.01)
    assert len(fit._kinds) < 20


def test_a_level_stays_near_what_was_measured() -> None:
    share = np.array([[0.5, 0.5], [0.5001, 0.4999], [0.4999, 0.5001]])
    levels = LevelFit().update(share, np.array([0, 1]), np.array([300.0, 310.0, 290.0]))
    assert (levels.power_w >= 145).all()
    assert (levels.power_w <= 465).all()
