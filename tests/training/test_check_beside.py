"""The look at the sizes beside a chosen one once a limit is in force, on two ranks in virtual time: all do the same."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from energy_plugins.config import MicroBatchConfig
from energy_plugins.measure.live import StepBatch
from energy_plugins.measure.rank_part import Rank
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.limits.timing import Timing
from energy_plugins.training.limits.windows import Windows
from energy_plugins.training.micro_batch.batcher import MicroBatcher
from energy_plugins.training.micro_batch.course import MicroBatchCourse
from energy_plugins.training.micro_batch.doubt import Doubt
from energy_plugins.training.micro_batch.own_sizes import OwnSizes
from energy_plugins.training.micro_batch.searched import Searched
from energy_plugins.training.step_window import Told, WindowNs
from energy_plugins.training.watch import SumOverRanks

RANKS, START, SHARE, SIZES = 2, 4, 16, (2, 4, 8, 16)
SEARCHING, CHECKING = 1200, 600
SLACK = 0.05


@dataclass
class Training:
    """Two ranks that step together; a step costs something for each pass, and under a limit what is said here."""

    limited_j: dict[int, float] = field(default_factory=dict)
    """Factors of a size's joules."""
    limited_s: dict[int, float] = field(default_factory=dict)
    """Factors of its seconds."""
    fails: tuple[int, int] = (-1, 0)
    """A rank, and the size that it has no memory for under the limit."""
    lost: int = -1
    """A rank that measures nothing under the limit."""
    doubts: int = -1
    """A rank whose gradients would have differed in the last step of the search for a limit."""
    search_share: float = 0.5
    now_s: float = 0.0
    is_limited: bool = False
    planned_s: float = 3000.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))


class ModelSizes(OwnSizes):
    """One rank of it."""

    def __init__(self, training: Training, rank: int) -> None:
        super().__init__(None)
        self.trouble = ""
        self.training, self.rank = training, rank
        self.rows: list[tuple[float, float, float]] = []
        self.ran: list[int] = []

    def now_ns(self) -> int:
        return round(self.training.now_s * 1e9)

    @property
    def elapsed_s(self) -> float:
        return self.training.now_s

    def left_s(self, step_s: float) -> float | None:
        return self.training.planned_s - self.training.now_s

    def told(self, window: WindowNs, least: int) -> Told:
        if self.trouble:
            return Told(1.0)
        inside = [
            row
            for row in self.rows
            if row[0] * 1e9 >= window.settled_ns and window.opened_ns < row[1] * 1e9 <= window.closed_ns
        ]
        starts, ends, joules = np.array(inside).reshape(-1, 3).T
        start_ns, end_ns = (starts * 1e9).astype(np.int64), (ends * 1e9).astype(np.int64)
        return Told.of(StepBatch(start_ns, end_ns, joules[np.newaxis], np.full(len(starts), math.nan)), least)

    def begins_to_be_limited(self) -> None:
        self.training.is_limited = True
        if self.rank == self.training.lost:
            self.lose("its GPU is gone")

    def works(self) -> tuple[int, float, float]:
        """Return the size of a step, its seconds and its joules."""
        training, size = self.training, self.size or START
        if training.is_limited and training.fails == (self.rank, size):
            self.failed, self.size = size, None
            size = START
        passes = SHARE / size
        noise = 1 + 0.002 * float(training.rng.normal())
        factor_j = training.limited_j.get(size, 1.0) if training.is_limited else 1.0
        factor_s = training.limited_s.get(size, 1.0) if training.is_limited else 1.0
        return size, 0.01 * (SHARE + 4 * passes) * factor_s, 5.0 * (SHARE + 4 * passes) * noise * factor_j


def summing(barrier: threading.Barrier) -> Callable[[int, tuple[float, ...]], tuple[float, ...]]:
    """Return a sum over ranks, each of which is on a thread of its own."""
    said: list[tuple[float, ...]] = [()] * RANKS

    def together(rank: int, own: tuple[float, ...]) -> tuple[float, ...]:
        said[rank] = own
        barrier.wait()
        total = tuple(map(sum, zip(*said, strict=True)))
        barrier.wait()
        return total

    return together


def make(members: Sequence[ModelSizes]) -> None:
    """Make one step, on all ranks."""
    training = members[0].training
    began_s, worked = training.now_s, [one.works() for one in members]
    training.now_s += max(seconds for _, seconds, _ in worked)
    for one, (size, _, joules) in zip(members, worked, strict=True):
        one.rows.append((began_s, training.now_s, joules))
        one.ran.append(size)


def hear_of_doubt(member: ModelSizes, course: MicroBatchCourse, together: SumOverRanks) -> None:
    """Begin to check on one rank, when one of them has a doubt."""
    who = Rank(rank=member.rank, world_size=RANKS)
    batcher = MicroBatcher(MicroBatchConfig(), None, who=who, sum_over_ranks=together)
    batcher._rank, batcher._course = member, course
    if member.rank == member.training.doubts:
        member.doubt = Doubt(1200, 0.5, 0, 0)
    batcher.check_beside(SLACK)
    assert batcher.part().chosen is None
    make([member])


def trained(training: Training) -> list[tuple[Searched, list[int]]]:
    """Search on all ranks, each on a thread; then check, and return what became of it and which sizes ran at last."""
    members = [ModelSizes(training, rank) for rank in range(RANKS)]
    barrier = threading.Barrier(RANKS, timeout=20)
    together = summing(barrier)
    courses = [
        MicroBatchCourse(
            Windows(
                member, AllRanks(Rank(rank=member.rank, world_size=RANKS), partial(together, member.rank)), Timing()
            ),
            member,
            share=SHARE,
            search_share=training.search_share,
        )
        for member in members
    ]
    failures: list[BaseException] = []

    def follow(rank: int, script: Iterator[int], steps: int) -> None:
        member = members[rank]
        due = member.steps + next(script)
        for _ in range(steps):
            barrier.wait()
            if rank == 0:
                make(members)
            barrier.wait()
            member.steps += 1
            if member.steps >= due:
                due = member.steps + next(script)

    def both(rank: int) -> None:
        try:
            follow(rank, courses[rank].searching(START, SIZES), SEARCHING)
            barrier.wait()
            members[rank].begins_to_be_limited()
            barrier.wait()
            if training.doubts < 0:
                follow(rank, courses[rank].checking(SLACK), CHECKING)
            else:
                hear_of_doubt(members[rank], courses[rank], partial(together, rank))
        except BaseException as error:
            failures.append(error)
            barrier.abort()
            raise

    threads = [threading.Thread(target=both, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert all(course.searched.choice is not None and course.searched.choice.size == 16 for course in courses)
    return [(course.searched, member.ran[-20:]) for course, member in zip(courses, members, strict=True)]


@pytest.mark.parametrize(
    ("training", "size", "looked_at"),
    [
        (Training(), 16, [8]),
        (Training(limited_j={8: 0.7}, limited_s={8: 0.84}), 8, [8]),
        (Training(limited_j={8: 0.7}), 16, [8]),  # a fifth longer: the limit leaves less of what is allowed
        (Training(limited_j={8: 0.7}, fails=(1, 8)), 16, []),
    ],
)
def test_all_ranks_take_the_same_size(training: Training, size: int, looked_at: list[int]) -> None:
    (first, ran), (second, other_ran) = trained(training)
    assert first.beside == second.beside
    assert first.beside is not None
    assert (first.beside.size, first.looked_at) == (size, looked_at)
    assert (first.beside.saving > 0.1) == (size == 8)
    assert set(ran) == set(other_ran) == {size}
    assert first.is_over
    assert not first.is_checking


def test_where_the_chosen_size_no_longer_fits_all_go_back() -> None:
    for searched, ran in trained(Training(fails=(1, 16))):
        assert searched.beside is None
        assert "ran out of memory: your setting is in force again" in searched.why
        assert set(ran) == {START}


def test_without_measurements_of_one_rank_the_choice_stays() -> None:
    for searched, ran in trained(Training(limited_j={8: 0.7}, lost=1)):
        assert (searched.beside, searched.is_checking) == (None, False)
        assert set(ran) == {16}


def test_without_time_left_for_it_nothing_is_compared() -> None:
    for searched, ran in trained(Training(limited_j={8: 0.7}, search_share=0.013)):
        assert searched.beside is None
        assert set(ran) == {16}


def test_a_doubt_that_is_heard_of_then_ends_no_training() -> None:
    with pytest.warns(RuntimeWarning, match="step 1200 would have differed"):
        each = trained(Training(doubts=1))
    for searched, ran in each:
        assert "step 1200 would have differed" in searched.why
        assert searched.is_over
        assert ran[-1] == START
