"""Advice: what is worth saying, in which order, and on what evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from _made_report import Made, made_report
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import KindTotal
from energy_plugins.report.advice import advice
from energy_plugins.report.advice_item import Advice
from energy_plugins.report.worker_advice import more_workers


@pytest.fixture(scope="module")
def training() -> Report:
    return made_report(Made(steps=800))


def kinds(report: Report, **joules: float) -> tuple[KindTotal, ...]:
    return tuple(replace(kind, energy_j=joules.get(kind.kind, kind.energy_j)) for kind in report.kinds)


def item(report: Report, topic: str) -> Advice:
    return next(item for item in advice(report) if item.topic == topic)


def topics(report: Report) -> list[str]:
    return [item.topic for item in advice(report)]


def test_waiting_for_data_names_the_workers_to_have(training: Report) -> None:
    report = replace(training, total_j=1000.0, data_wait_j=170.0, stall_j=180.0)
    found = item(report, "data wait")
    assert found.sentence == "17.0 % of this run's energy was spent waiting for data: num_workers 0 -> 1"
    assert "data_wait_j: 170.0 J" in found.evidence
    assert "a step waited 30.00 ms for its batch and worked 170.0 ms" in found.evidence
    four = item(replace(report, config={"num_workers": 4}), "data wait")
    assert four.sentence.endswith("num_workers 4 -> 5")
    several = item(replace(report, config={"num_workers": [0, 2]}), "data wait")
    assert several.sentence.endswith("num_workers 0, 2 -> 1, 3 (2 loaders, in their order)")
    unknown = item(replace(report, config={}), "data wait")
    assert unknown.sentence.endswith(
        "let more loader workers (num_workers) prepare batches ahead until one is ready every 170.0 ms"
    )


def test_most_joules_come_first_and_what_only_trying_tells_last(training: Report) -> None:
    report = replace(
        training,
        total_j=1000.0,
        data_wait_j=50.0,
        stall_j=350.0,
        underfilled_j=100.0,
        power_limit=None,
        kinds=kinds(training, checkpoint=30.0, unattributed=480.0),
    )
    assert topics(report) == ["stall", "idle", "underfilled", "data wait", "checkpoints", "power limit"]
    joules = {found.topic: found.energy_j for found in advice(report)}
    assert joules["stall"] == 300.0
    assert joules["idle"] == 480.0 - 300.0  # a wait for data is not among what was drawn outside of any span
    assert joules["power limit"] is None


def test_what_is_small_is_not_said(training: Report) -> None:
    report = replace(
        training,
        total_j=1e6,
        data_wait_j=50.0,
        stall_j=90.0,
        underfilled_j=100.0,
        kinds=kinds(training, checkpoint=3.0, unattributed=4.0),
    )
    assert topics(report) == []


def test_what_is_not_known_is_not_said(training: Report) -> None:
    report = replace(training, data_wait_j=None, stall_j=None, underfilled_j=None, kinds=())
    assert topics(report) == []
    assert advice(replace(report, total_j=None, power_limit=None)) == ()


def test_ranks_are_looked_at_together(training: Report) -> None:
    report = made_report(Made(steps=800, ranks=8))
    assert report.ranks is not None
    found = item(report, "peer wait")
    assert found.energy_j == report.ranks.peer_wait_j
    assert "of all 8 ranks' energy was drawn waiting for other ranks: rank 6 comes last" in found.sentence
    assert item(report, "data wait").energy_j == pytest.approx(8 * (report.data_wait_j or 0.0))
    assert "peer wait" not in topics(training)


def test_a_limit_that_may_not_be_set_or_does_not_bind(training: Report) -> None:
    part = training.power_limit
    assert part is not None
    nobody = replace(part, chosen=None, advice="run as root, or install the helper", why="no permission")
    assert item(replace(training, power_limit=nobody), "power limit").sentence == "run as root, or install the helper"
    loose = replace(part, binding=False, chosen=650.0)
    assert item(replace(training, power_limit=loose), "power limit").evidence == "650 W is above what was drawn"
    assert "power limit" not in topics(training)


class TestWorkers:
    @given(st.integers(1, 40), st.floats(0.01, 10), st.floats(1e-4, 10))
    def test_as_many_as_keep_up_and_no_more(self, workers: int, wait_s: float, work_s: float) -> None:
        """Batches of n workers come every 1/n of what one takes; what one takes is what was seen of them."""
        takes_s = workers * (wait_s + work_s)
        found = more_workers(workers, wait_s, work_s)
        if "more than 64" in found:
            assert takes_s / 64 > work_s * 0.999
        else:
            needed = int(found.rpartition(" ")[2])
            assert takes_s / needed <= work_s * 1.001
            assert needed == workers + 1 or takes_s / (needed - 1) > work_s * 0.999

    @pytest.mark.parametrize(
        ("workers", "wait_s", "said"),
        [
            (0, 0.3, "num_workers 0 -> 3"),  # made in the time of waiting alone
            (0, 0.05, "num_workers 0 -> 1"),
            (3, 0.1, "num_workers 3 -> 6"),
            ([0, 0], 0.3, "num_workers 0, 0 -> 3, 3 (2 loaders, in their order)"),
            ([4], 0.1, "num_workers 4 -> 8"),
            (0, 90.0, "num_workers 0 is too few, and to keep up it would take more than 64: make batches cheaper"),
            (70, 0.01, "num_workers 70 is too few, and to keep up it would take more than 64: make batches cheaper"),
            (None, 0.3, "have batches made ahead by workers (a DataLoader's num_workers), one every 100.0 ms"),
            ([0, None], 0.3, "have batches made ahead by workers"),
            ([], 0.3, "have batches made ahead by workers"),
            ("4", 0.3, "have batches made ahead by workers"),
            (-1, 0.3, "have batches made ahead by workers"),
        ],
    )
    def test_what_is_said(self, workers: JSON, wait_s: float, said: str) -> None:
        assert more_workers(workers, wait_s, 0.1).startswith(said)
