"""Readings of a counter that behaves, and of counters that do not."""

from __future__ import annotations

from measuring import MS, SECOND, counter_rows

from energy_plugins.measure.anchors import Anchors

START_NS = 100 * SECOND


def reading(second: float, energy_j: float, took_ms: int = 2) -> tuple[int, int, float, int]:
    t_ns = START_NS + round(second * SECOND) + 50 * MS
    return t_ns, t_ns + took_ms * MS, energy_j, 0


def edge(second: float, energy_j: float) -> tuple[int, int, float, int]:
    t_ns = START_NS + round(second * SECOND)
    return t_ns - MS, t_ns + MS, energy_j, 1


def dated(*rows: tuple[int, int, float, int]) -> tuple[Anchors, dict[str, int]]:
    faults: dict[str, int] = {}
    anchors = Anchors(START_NS, faults)
    for row in rows:
        anchors.take(counter_rows(row))
    anchors.date_all()
    return anchors, faults


def test_a_counter_that_rises_is_one_count() -> None:
    anchors, faults = dated(edge(0, 1000), reading(15, 5500), reading(30, 10000))
    assert [anchor.count for anchor in anchors.dated] == [0, 0, 0]
    assert [anchor.energy_j for anchor in anchors.dated] == [1000, 5500, 10000]
    assert not faults
    assert not anchors.wants_edge(START_NS + 31 * SECOND)


def test_a_reset_begins_a_count_and_forgets_the_phase() -> None:
    anchors, faults = dated(edge(0, 1000), reading(15, 5500), reading(30, 900), reading(45, 5400))
    assert [anchor.count for anchor in anchors.dated] == [0, 0, 1, 1]
    assert anchors.dated[1].error_ns < 5e6 < anchors.dated[2].error_ns
    assert sum(faults.values()) == 1
    assert anchors.wants_edge(START_NS + 46 * SECOND)
    anchors.take(counter_rows(edge(46, 5700)))
    assert not anchors.wants_edge(START_NS + 47 * SECOND)
    assert anchors.dated[-1].error_ns < 5e6


def test_a_leap_begins_a_count() -> None:
    anchors, faults = dated(edge(0, 1000), reading(15, 1e7), reading(30, 1e7 + 4500))
    assert [anchor.count for anchor in anchors.dated] == [0, 1, 1]
    assert list(faults.values()) == [1]


def test_a_reading_that_hung_dates_nothing() -> None:
    anchors, _ = dated(edge(0, 1000), reading(15, 5500, took_ms=20_000), reading(45, 14_500))
    assert [anchor.energy_j for anchor in anchors.dated] == [1000, 14_500]


def test_after_a_sleep_nothing_of_before_is_subtracted() -> None:
    anchors, _ = dated(edge(0, 1000), reading(15, 5500), reading(16, 5800))
    anchors.interrupt(START_NS + round(15.5 * SECOND))
    assert [anchor.energy_j for anchor in anchors.dated] == [1000, 5500]
    anchors.take(counter_rows(edge(20, 9000)))
    assert [anchor.count for anchor in anchors.dated] == [0, 0, 1]


def test_a_phase_that_was_never_known_is_not_asked_for_again() -> None:
    anchors, _ = dated(reading(0, 1000), reading(15, 5500))
    assert not anchors.wants_edge(START_NS + 600 * SECOND)
    anchors.unsure(START_NS + 20 * SECOND)
    assert not anchors.wants_edge(START_NS + 600 * SECOND)


def test_memory_does_not_mind_how_often_a_counter_fails() -> None:
    rows = [reading(15.0 * number, 1000.0 * (number % 2)) for number in range(2000)]
    anchors, faults = dated(*rows)
    anchors.forget(START_NS + 10**6 * SECOND)
    assert len(anchors.dated) == 2
    assert len(faults) == 1
