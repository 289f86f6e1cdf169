"""Readings of a counter that refreshes every 100 ms are dated from the refreshes that were seen."""

from __future__ import annotations

import numpy as np
import pytest
from measuring import MS, SECOND

from energy_plugins.measure.counter import REFRESH_NS, RefreshPhase

PERIOD_S = REFRESH_NS * 1e-9


class Refreshes:
    """A counter's refreshes, with a phase and a drift of their own."""

    def __init__(self, *, phase_ns: int = 37 * MS, drift: float = 7e-6) -> None:
        self.phase_ns = phase_ns
        self.period_ns = REFRESH_NS * (1 + drift)

    def last(self, t_ns: int) -> int:
        """Return the time of the last refresh at or before ``t_ns``."""
        return self.phase_ns + int(np.floor((t_ns - self.phase_ns) / self.period_ns) * self.period_ns)

    def seen_after(self, t_ns: int, *, read_ns: int = 3 * MS) -> tuple[int, int]:
        """Return what a burst of reads of ``read_ns`` each, from ``t_ns`` on, says of the next refresh."""
        refresh_ns = self.last(t_ns) + round(self.period_ns)
        before_ns = t_ns + (refresh_ns - t_ns) // read_ns * read_ns
        return before_ns, before_ns + 2 * read_ns


def test_a_seen_refresh_lies_in_its_bracket() -> None:
    t_ns, error_ns = RefreshPhase.seen(100, 100 + 12 * MS)
    assert t_ns == 100 + 6 * MS
    assert error_ns == pytest.approx(12 * MS / np.sqrt(12))


def test_before_any_refresh_was_seen_an_age_is_anything_up_to_a_period() -> None:
    phase = RefreshPhase()
    assert not phase.known
    assert not phase.stale(10**15)
    dated = phase.reading(5 * SECOND, 5 * SECOND + 4 * MS)
    assert dated is not None
    t_ns, error_ns = dated
    assert t_ns == 5 * SECOND + 2 * MS - REFRESH_NS // 2
    assert error_ns == pytest.approx((REFRESH_NS + 4 * MS) / np.sqrt(12))


def test_readings_are_dated_to_the_refresh_that_they_show_while_it_drifts() -> None:
    counter, phase = Refreshes(drift=7e-6), RefreshPhase()
    rng = np.random.default_rng(1)
    errors, sigmas, asked = [], [], 0
    for second in range(10, 200, 10):
        if second == 10 or phase.stale(second * SECOND):
            phase.edge(*counter.seen_after(second * SECOND))
        for offset in rng.integers(SECOND, 9 * SECOND, 20).tolist():
            asked += 1
            before_ns = second * SECOND + offset
            after_ns = before_ns + int(rng.integers(1 * MS, 5 * MS))
            dated = phase.reading(before_ns, after_ns)
            if dated is not None:
                errors.append(dated[0] - counter.last(before_ns))
                sigmas.append(dated[1])
    assert len(errors) > 0.7 * asked
    assert np.abs(errors).max() < 6 * MS
    assert (np.abs(errors) <= 2 * np.array(sigmas)).mean() > 0.95
    assert max(sigmas) < 8 * MS


def test_a_second_look_makes_the_drift_better_known() -> None:
    counter, phase = Refreshes(drift=1.5e-5), RefreshPhase()
    phase.edge(*counter.seen_after(10 * SECOND))
    assert phase.stale(10 * SECOND + 600 * SECOND)
    phase.edge(*counter.seen_after(210 * SECOND))
    late_ns = 210 * SECOND + 200 * SECOND
    dated = phase.reading(counter.last(late_ns) + 40 * MS, counter.last(late_ns) + 42 * MS)
    assert dated is not None
    assert abs(dated[0] - counter.last(late_ns)) < 8 * MS


def test_a_reading_into_which_a_refresh_fell_is_not_dated() -> None:
    phase = RefreshPhase()
    phase.edge(SECOND - MS, SECOND + MS)
    assert phase.reading(SECOND + 5 * REFRESH_NS - 2 * MS, SECOND + 5 * REFRESH_NS + 3 * MS) is None
    assert phase.reading(SECOND + 5 * REFRESH_NS + 1, SECOND + 5 * REFRESH_NS + 2) is None
    assert phase.reading(SECOND + 5 * REFRESH_NS + 50 * MS, SECOND + 5 * REFRESH_NS + 55 * MS) is not None


def test_a_reading_longer_than_a_period_is_not_dated() -> None:
    phase = RefreshPhase()
    phase.edge(SECOND - MS, SECOND + MS)
    assert phase.reading(2 * SECOND + 50 * MS, 2 * SECOND + 160 * MS) is None


def test_readings_before_the_first_seen_refresh_are_dated_too() -> None:
    phase = RefreshPhase()
    phase.edge(SECOND - MS, SECOND + MS)
    dated = phase.reading(SECOND - 40 * MS, SECOND - 37 * MS)
    assert dated is not None
    assert dated[0] == SECOND - REFRESH_NS


def test_an_unsteady_refresh_is_not_relied_upon() -> None:
    phase = RefreshPhase()
    phase.edge(SECOND - MS, SECOND + MS)
    phase.edge(6 * SECOND + 49 * MS, 6 * SECOND + 51 * MS)
    assert not phase.stale(1000 * SECOND)
    dated = phase.reading(7 * SECOND, 7 * SECOND + 2 * MS)
    assert dated is not None
    assert dated[1] == pytest.approx((REFRESH_NS + 2 * MS) / np.sqrt(12))


def test_looks_are_worth_their_cost_only_when_the_phase_has_become_uncertain() -> None:
    phase = RefreshPhase()
    phase.edge(SECOND - MS, SECOND + MS)
    assert not phase.stale(60 * SECOND)
    assert phase.stale(600 * SECOND)
