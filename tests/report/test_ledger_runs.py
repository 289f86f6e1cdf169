"""Sums of the ledger: each joule once, whoever measured it, however it is put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgering import row

from energy_plugins.measure.ledger_entry import LedgerRow, Status
from energy_plugins.report.ledger.runs import runs_of
from energy_plugins.report.ledger.totals import By, Price, overall, totals

WHOLE_J = st.integers(0, 2**40).map(float)  # sums of whole joules are exact

rows = st.lists(
    st.builds(
        row,
        run_id=st.integers(0, 10**6).map(lambda n: f"run-{n}"),
        gpu_j=st.dictionaries(st.sampled_from(["H200:1", "H200:2", "A100:1"]), st.none() | WHOLE_J),
        project=st.sampled_from(["", "vision", "text"]),
        user=st.sampled_from(["alice", "bob"]),
        started=st.sampled_from(["2026-10-31T23:59:59.999+00:00", "2026-11-01T00:00:00.000+00:00"]),
        status=st.sampled_from([status for status in Status if status is not Status.DISCARDED]),
    ),
    max_size=8,
    unique_by=lambda one: one.run_id,
)


def total_j(some: Sequence[LedgerRow]) -> float:
    return overall(runs_of(some)).energy_j


@given(rows, st.sampled_from(By))
def test_groups_add_up_to_the_whole(some: list[LedgerRow], by: By) -> None:
    runs = runs_of(some)
    groups, whole = totals(runs, by), overall(runs)
    assert math.fsum(group.energy_j for group in groups) == whole.energy_j
    assert math.fsum(group.wasted_j for group in groups) == whole.wasted_j
    if by is not By.GPU:
        assert sum(group.jobs for group in groups) == whole.jobs == len(some)
    assert whole.energy_j == math.fsum(gpu.energy_j or 0.0 for one in some for gpu in one.gpus)


@given(rows, st.randoms())
def test_the_order_of_rows_does_not_matter(some: list[LedgerRow], random: Random) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    assert runs_of(shuffled) == runs_of(some)


@given(rows)
def test_ranks_of_a_training_draw_what_each_draws_on_gpus_of_its_own(some: list[LedgerRow]) -> None:
    ranks = [
        row(f"rank-{n}", {f"GPU-{n}": overall(runs_of([one])).energy_j}, training_id="rank-0", rank=n, world_size=9)
        for n, one in enumerate(some)
    ]
    assert total_j(ranks) == total_j(some)
    assert len(runs_of(ranks)) == min(len(ranks), 1)


def test_ranks_are_one_job_and_a_gpu_that_two_of_them_measured_counts_once() -> None:
    (run,) = runs_of(
        [
            row("b", {"H200:1": 101.0}, training_id="a", rank=1, world_size=3, samples=10, duration_s=61),
            row("a", {"H200:1": 100.0, "H200:2": 50.0}, training_id="a", rank=0, world_size=3, samples=20),
        ]
    )
    assert (run.run_id, run.ranks, run.world_size) == ("a", 2, 3)
    assert (run.energy_j, run.counted_j) == (151.0, 151.0)
    assert (run.samples, run.steps, run.duration_s) == (30, 100, 61)


@pytest.mark.parametrize(
    ("ends", "whole"),
    [
        ("finished finished", "finished"),
        ("finished failed", "failed"),
        ("failed killed", "killed"),
        ("killed running", "running"),
        ("silent failed", "silent"),
        ("finished discarded", "finished"),
    ],
)
def test_a_training_is_what_became_of_the_worst_of_its_ranks(ends: str, whole: str) -> None:
    ranks = [row(f"r{n}", training_id="r0", rank=n, status=Status(end)) for n, end in enumerate(ends.split())]
    (run,) = runs_of(ranks)
    assert run.status is Status(whole)


def test_a_run_inside_another_counts_once_and_is_the_job() -> None:
    runs = runs_of(
        [
            row("shell", {"H200:1": 100.0, "H200:2": 40.0}, project="sweep", framework="command"),
            row("fit", {"H200:1": 70.0}, inside="shell", project="vision", status=Status.FAILED),
            row("test", {"H200:1": 20.0}, inside="shell", project="vision"),
            row("eval", {"H200:1": 5.0}, inside="test", project="vision"),
        ]
    )
    assert {run.run_id: run.counted_j for run in runs} == {"shell": 50.0, "fit": 70.0, "test": 15.0, "eval": 5.0}
    by_project = {total.group: total for total in totals(runs, By.PROJECT)}
    assert (by_project["sweep"].energy_j, by_project["sweep"].jobs) == (50.0, 0)
    assert (by_project["vision"].energy_j, by_project["vision"].jobs) == (90.0, 2)
    assert overall(runs).energy_j == 140.0
    assert overall(runs).wasted_j == 70.0


def test_ranks_inside_a_command_count_once() -> None:
    runs = runs_of(
        [
            row("torchrun", {"H200:1": 100.0, "H200:2": 100.0}),
            row("r0", {"H200:1": 90.0}, inside="torchrun", training_id="r0", rank=0, world_size=2),
            row("r1", {"H200:2": 80.0}, inside="torchrun", training_id="r0", rank=1, world_size=2),
        ]
    )
    assert overall(runs).energy_j == 200.0
    assert overall(runs).jobs == 1


@pytest.mark.parametrize("inside", ["gone", "fit"])
def test_a_run_inside_one_that_is_not_there_or_itself_is_whole(inside: str) -> None:
    (run,) = runs_of([row("fit", {"H200:1": 70.0}, inside=inside)])
    assert (run.counted_j, run.holds_runs) == (70.0, False)


def test_a_run_that_was_killed_before_what_is_inside_it_takes_nothing_away() -> None:
    runs = runs_of([row("shell", {"H200:1": 10.0}), row("fit", {"H200:1": 70.0}, inside="shell")])
    assert overall(runs).energy_j == 70.0


def test_what_a_command_left_behind_and_measured_later_is_not_inside_it() -> None:
    later = "2026-11-22T08:16:01.000+00:00"  # a second after the end
    runs = runs_of([row("shell", {"H200:1": 10.0}), row("fit", {"H200:1": 7.0}, inside="shell", started=later)])
    assert {run.run_id: run.counted_j for run in runs} == {"shell": 10.0, "fit": 7.0}
    assert overall(runs).jobs == 2


def test_a_discarded_run_counts_nowhere() -> None:
    assert runs_of([row(status=Status.DISCARDED)]) == ()


def test_what_was_not_measured_is_counted_as_a_job_and_said() -> None:
    runs = runs_of([row("a", {}, missing="no driver"), row("b", {"H200:1": None}), row("c", {"H200:1": 3.6e6})])
    whole = overall(runs)
    assert [run.energy_j for run in runs] == [None, None, 3.6e6]
    assert [run.missing for run in runs] == ["no driver", "nobody said why", ""]
    assert (whole.jobs, whole.unmeasured, whole.jobs_per_kwh) == (3, 2, 1.0)
    assert overall([]).jobs_per_kwh is None


def test_a_run_on_two_kinds_of_gpus_is_a_job_of_both() -> None:
    groups = totals(runs_of([row("a", {"H200:1": 30.0, "A100:1": 10.0, "H200:2": 2.0})]), By.GPU)
    assert [(one.group, one.energy_j, one.jobs) for one in groups] == [("H200", 32.0, 1), ("A100", 10.0, 1)]


def test_prices() -> None:
    assert Price(per_kwh=0.25).of(7.2e6, 3) == 0.5
    assert Price(per_job=2.0).of(7.2e6, 3) == 6.0
    assert Price(0.25, 2.0).of(0.0, 0) == 0.0
