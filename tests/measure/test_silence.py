"""The ledger of silences: what the counter counted, less what the curve holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import SECOND

from energy_plugins.measure.attribution import EnergyCurve, Points, RunCurve, attribute
from energy_plugins.measure.counter import Anchor
from energy_plugins.measure.silence import Ledger, Silence, bridged, unknown, with_recovered

EXACT_NS = 0.0


def at(second: float, energy_j: float, count: int = 0) -> Anchor:
    return Anchor(round(second * SECOND), energy_j, EXACT_NS, count)


def silence(since_s: float, until_s: float) -> Silence:
    return round(since_s * SECOND), round(until_s * SECOND)


def joules(blocks: list[EnergyCurve]) -> list[float]:
    return [float(block.energy_j[-1]) for block in blocks]


def opened(energy_j: float = 1000.0) -> Ledger:
    ledger = Ledger()
    ledger.close(at(0, energy_j))
    return ledger


def test_a_silence_gets_what_its_neighbours_do_not_have() -> None:
    ledger = opened()
    ledger.add(bridged(silence(0, 4), 1200.0, 0.0))
    (block,) = ledger.tell([silence(4, 10)], at(10, 4000.0))
    assert joules([block]) == [pytest.approx(1800.0)]
    assert block.covered_ns[-1] == 0
    assert (ledger.given, ledger.recovered, ledger.lost_s()) == ([], [], 0)


@given(st.lists(st.floats(1.0, 60.0), min_size=1, max_size=5), st.floats(0.0, 1e4))
def test_silences_share_by_their_length_and_lose_nothing(lengths_s: list[float], owed_j: float) -> None:
    ledger, end_s, silences = opened(), 0.0, []
    for length_s in lengths_s:
        silences.append(silence(end_s, end_s + length_s))
        end_s += length_s + 1.0
    owed_j = min(owed_j, 2000.0 * sum(lengths_s))
    blocks = ledger.tell(silences, at(end_s, 1000.0 + owed_j))
    assert sum(joules(blocks)) == pytest.approx(owed_j)
    powers_w = [joule / length_s for joule, length_s in zip(joules(blocks), lengths_s, strict=True)]
    assert powers_w == pytest.approx([powers_w[0]] * len(powers_w), rel=1e-6)


def test_what_was_settled_before_the_counter_spoke_is_recovered_for_spans_that_hold_all_of_it() -> None:
    ledger = opened()
    assert joules(ledger.tell([silence(2, 20)], None)) == [0.0]
    assert ledger.lost_s() == 18
    assert joules(ledger.tell([silence(20, 25)], at(30, 7000.0))) == [0.0]
    (one,) = ledger.recovered
    assert (one.from_ns, one.until_ns, one.energy_j) == (*silence(2, 25), 6000.0)
    assert ledger.lost_s() == 0
    curve = RunCurve(0)
    curve.append(unknown(silence(0, 40)))
    bounds_s = [(0, 40), (2, 25), (3, 40), (0, 24), (5, 10)]
    start, end = (_points(curve, times_s) for times_s in zip(*bounds_s, strict=True))
    spans = with_recovered(attribute(start, end), start, end, ledger.recovered)
    assert np.nan_to_num(spans.joules).tolist() == [0.0] * 5  # nothing at all was covered
    start_known, end_known = (_covered(points) for points in (start, end))
    spans = with_recovered(attribute(start_known, end_known), start_known, end_known, ledger.recovered)
    assert spans.joules.tolist() == [6000.0, 6000.0, 0.0, 0.0, 0.0]


def test_another_count_tells_nothing_and_what_it_would_have_told_is_lost() -> None:
    ledger = opened()
    end = at(30, 9000.0, count=1)
    assert ledger.owed(end) is None
    assert joules(ledger.tell([silence(2, 20)], end)) == [0.0]
    ledger.close(end)
    assert ledger.lost == [silence(2, 20)]
    assert ledger.owed(at(40, 9500.0, count=1)) == (500.0, 0.0)


@pytest.mark.parametrize("energy_j", [-500.0, 1e6])
def test_what_no_gpu_draws_is_not_believed(energy_j: float) -> None:
    ledger = opened()
    with pytest.raises(ValueError, match="leapt"):
        ledger.tell([silence(2, 20)], at(30, 1000.0 + energy_j))
    assert ledger.lost_s() == 18


def test_the_bound_of_a_silence_knows_its_neighbours_and_the_counters_age() -> None:
    ledger = Ledger()
    ledger.close(Anchor(0, 0.0, 3e6))
    (block,) = ledger.tell([silence(0, 10)], Anchor(10 * SECOND, 4000.0, 4e6))
    assert np.hypot(block.start_error_j, block.end_error_j) == pytest.approx(400 * 5e-3)


def test_what_lies_after_the_window_is_left_out() -> None:
    ledger = opened()
    ledger.tell([silence(2, 10)], None)
    ledger.tell([silence(10, 22)], at(22, 3000.0))
    ledger.clip(12 * SECOND)
    (one,) = ledger.recovered
    assert (one.until_ns, one.energy_j) == (12 * SECOND, 1000.0)
    ledger.clip(SECOND)
    assert ledger.recovered == []


def _points(curve: RunCurve, times_s: tuple[int, ...]) -> Points:
    return curve.at(np.array(times_s, np.int64) * SECOND)


def _covered(points: Points) -> Points:
    from dataclasses import replace

    return replace(points, covered_ns=points.t_ns.astype(float))
