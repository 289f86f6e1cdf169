"""The course of a search in a training: what windows hold, what ranks tell each other, and what they do then."""

from __future__ import annotations

import json
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.config import PowerLimitConfig
from energy_plugins.control.held import Held
from energy_plugins.errors import ControlError
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.live import StepBatch
from energy_plugins.measure.rank_part import Rank
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.limits.check import Kept, holds
from energy_plugins.training.limits.course import Course, Wanted
from energy_plugins.training.limits.knob import SharedKnob
from energy_plugins.training.limits.limiter import Limiter
from energy_plugins.training.limits.memory import recall, remember, store_path
from energy_plugins.training.limits.own_rank import OwnRank
from energy_plugins.training.limits.progress import Progress
from energy_plugins.training.limits.timing import Timing
from energy_plugins.training.limits.windows import Windows
from energy_plugins.training.step_window import Heard, Told, WindowNs
from energy_plugins.tune import Measurement, Task

FOUND_W, LOWEST_W, DRAWN_W = 700.0, 200.0, 650.0


def batch(seconds: Sequence[float], powers_w: Sequence[float] = (500.0,), start_s: float = 0.0) -> StepBatch:
    """Return steps that follow each other, on GPUs of these powers."""
    ends = start_s + np.cumsum(seconds)
    energy_j = np.outer(powers_w, seconds)
    unmarked_s = np.full(len(ends), math.nan)
    return StepBatch(((ends - seconds) * 1e9).astype(np.int64), (ends * 1e9).astype(np.int64), energy_j, unmarked_s)


class TestWindows:
    def test_means_and_their_errors(self) -> None:
        told = Told.of(batch([0.1, 0.2, 0.3], powers_w=(100.0, 400.0)), 3)
        assert told.known
        assert told.time_s == pytest.approx(0.2)
        assert told.energy_j == pytest.approx(100.0)
        assert told.time_sem == pytest.approx(0.1 / math.sqrt(3))
        assert told.drawn_w == pytest.approx(400.0)

    def test_a_few_long_steps_are_left_out(self) -> None:
        told = Told.of(batch([0.1] * 30 + [5.0, 0.3]), 3)
        assert told.time_s == pytest.approx(0.1)
        assert told.energy_j == pytest.approx(50.0)
        assert told.time_sem < 1e-9

    def test_backward_is_of_the_steps_whose_phases_were_marked(self) -> None:
        steps = batch([0.1] * 8)
        told = Told.of(replace(steps, backward_s=np.array([math.nan, 0.06] * 4)), 3)
        assert (told.backward_s, told.backward_sem) == pytest.approx((0.06, 0.0))
        too_few = Told.of(replace(steps, backward_s=np.array([0.06, 0.06] + [math.nan] * 6)), 3)
        assert too_few.known
        assert math.isnan(too_few.backward_s)

    def test_many_long_steps_are_the_work(self) -> None:
        told = Told.of(batch([0.1, 0.1, 0.1, 0.3] * 10), 3)
        assert told.time_s == pytest.approx(0.15)

    @pytest.mark.parametrize("steps", [batch([]), batch([0.1, 0.1]), batch([0.1] * 9, powers_w=(math.nan,))])
    def test_what_tells_nothing(self, steps: StepBatch) -> None:
        told = Told.of(steps, 3)
        assert not told.known
        assert told.covered == 1.0

    def test_only_steps_that_lie_in_it(self) -> None:
        queue = deque([batch([1.0] * 4), batch([1.0] * 4, start_s=4.0)])
        heard = Heard(queue)
        second = 10**9
        # They end at 1, 2, ... 8 s; the limit had settled at 2.5 s.
        steps = heard.steps(WindowNs(2 * second, 7 * second, round(2.5 * second)))
        assert steps.end_ns.tolist() == [4 * second, 5 * second, 6 * second, 7 * second]
        assert heard.steps(WindowNs(7 * second, 9 * second, 0)).end_ns.tolist() == [8 * second]
        assert not queue


@given(words=st.lists(st.lists(st.floats(width=64), min_size=3, max_size=3), min_size=1, max_size=5))
def test_ranks_hear_the_same_to_the_last_bit(words: list[list[float]]) -> None:
    """Whatever they say: what is no number stays that of the one who said it."""
    slots: list[tuple[float, ...]] = []

    def keep(own: tuple[float, ...]) -> tuple[float, ...]:
        slots.append(own)
        return own

    for rank, word in enumerate(words):
        AllRanks(Rank(rank=rank, world_size=len(words)), keep).hear(word)
    summed = tuple(
        math.fsum(column) if all(map(math.isfinite, column)) else sum(column) for column in zip(*slots, strict=True)
    )
    for rank in range(len(words)):
        heard = AllRanks(Rank(rank=rank, world_size=len(words)), lambda _: summed).hear(words[rank])
        assert [repr(tuple(abs(x) if x == 0 else x for x in one)) for one in heard] == [
            repr(tuple(abs(x) if x == 0 else x for x in word)) for word in words
        ]


def measured(time_s: float, energy_j: float, drawn_w: float, error: float = 0.001) -> Measurement:
    return Measurement(time_s, energy_j, error * time_s, error * energy_j, drawn_w)


class TestCheck:
    TASK = Task(limits=(LOWEST_W, FOUND_W), start=FOUND_W)

    def check(self, there: Measurement, limit: float = 500.0, drift: float = 0.0) -> Kept | None:
        before, after = measured(1 - drift, 600 * (1 - drift), 600), measured(1 + drift, 600 * (1 + drift), 600)
        return holds(self.TASK, limit, (before, there, after))

    def test_one_that_still_saves(self) -> None:
        kept = self.check(measured(1.02, 520.0, 510.0), drift=0.05)
        assert kept is not None
        assert kept.saving == pytest.approx(1 - 520 / 600, abs=0.002)
        assert kept.slowdown == pytest.approx(0.02, abs=0.002)
        assert (kept.limit, kept.source, kept.binding) == (500.0, "memory", True)

    @pytest.mark.parametrize(
        ("there", "limit"),
        [
            (measured(1.06, 500.0, 510.0), 500.0),  # too slow
            (measured(1.02, 605.0, 600.0), 500.0),  # no saving
            (measured(1.02, 590.0, 580.0, error=0.1), 500.0),  # nobody knows
            (measured(1.0, 500.0, 510.0), FOUND_W),  # no other limit
        ],
    )
    def test_one_that_does_not(self, there: Measurement, limit: float) -> None:
        assert self.check(there, limit) is None


KIND: dict[str, JSON] = {"gpus": ["a GPU"], "model": "0123", "samples": 4}
KEPT = Kept(limit=450.0, saving=0.1, slowdown=0.02, confidence=0.99, binding=True, source="search")


class TestMemory:
    def test_each_kind_of_training_has_its_own(self, cache_home: Path) -> None:
        assert recall(KIND) is None
        remember(KIND, KEPT)
        remember({**KIND, "samples": 8}, replace(KEPT, limit=300.0))
        remember(KIND, replace(KEPT, limit=460.0))
        assert recall(KIND) == 460.0
        assert recall({**KIND, "samples": 8}) == 300.0
        assert recall({**KIND, "samples": 16}) is None
        assert store_path().parent.parent == cache_home
        assert store_path().stat().st_mode & 0o777 == 0o600

    def test_the_oldest_are_forgotten(self) -> None:
        for samples in range(203):
            remember({**KIND, "samples": samples}, KEPT)
        assert [recall({**KIND, "samples": samples}) for samples in (2, 3, 202)] == [None, 450.0, 450.0]

    @pytest.mark.parametrize(
        ("harm", "complaint"),
        [
            ("others may write", "may be written by others"),
            ("a link", "are not used"),
            ("nonsense", "is no JSON"),
            ("another version", "version is not 1"),
            ({"limit": -300}, "is none, or its date is"),
            ({"limit": "450"}, "must be a number"),
            ({"chosen": "yesterday"}, "are not used"),
            ({"chosen": "2001-01-01T00:00:00"}, "is none, or its date is"),
            ({"chosen": "2001-01-01T00:00:00+00:00"}, "days old"),
            ({"chosen": "2101-01-01T00:00:00+00:00"}, "days old"),
        ],
    )
    def test_what_cannot_be_trusted_is_left_aside(
        self, harm: str | dict[str, JSON], complaint: str, tmp_path: Path
    ) -> None:
        remember(KIND, KEPT)
        path = store_path()
        values = json.loads(path.read_text())
        (entry,) = values["limits"].values()
        match harm:
            case "others may write":
                path.chmod(0o622)
            case "a link":
                path.rename(tmp_path / "elsewhere")
                path.symlink_to(tmp_path / "elsewhere")
            case "nonsense":
                path.write_text("{")
            case "another version":
                path.write_text(json.dumps(values | {"version": 2}))
            case dict():
                entry |= harm
                path.write_text(json.dumps(values))
        with pytest.warns(RuntimeWarning, match=complaint):
            assert recall(KIND) is None


class ModelKnob(SharedKnob):
    """A GPU that is only a number."""

    unit = "W"
    resolution = 5.0

    def __init__(self) -> None:
        super().__init__(())
        self.value = FOUND_W
        self.turns: list[float] = []
        self.fails_at: int | None = None

    @property
    def found(self) -> float:
        return FOUND_W

    @property
    def lowest(self) -> float:
        return LOWEST_W

    @property
    def most_w(self) -> float:
        return FOUND_W

    def turn(self, value: float, *, exact: bool = False) -> None:
        self.turns.append(value)
        if len(self.turns) == self.fails_at:
            raise ControlError("the GPU is lost")
        self.value = value

    def check(self) -> None:
        pass

    def binding(self, drawn_w: float | None) -> bool | None:
        return None

    def _holding(self, gpu: Gpu) -> Held:
        raise AssertionError(f"{gpu} is no number")

    def close(self) -> None:
        self.value = FOUND_W
        self.put_back = "put back"


class Training:
    """Steps that ranks make together: each as long as the slowest takes under its limit."""

    def __init__(self, ranks: int, *, noise: float = 0.0, planned_s: float | None = 1200.0) -> None:
        self.knobs = [ModelKnob() for _ in range(ranks)]
        self.now_s = 0.0
        self.noise, self.planned_s = noise, planned_s
        self.work = 1.0
        self.exponent = 0.35
        self.random = random.Random(7)
        self.sharing: set[int] = set()
        """Ranks that train on the GPU of the first: they have no knob, and their joules are its."""
        self.backward_s = [math.nan] * ranks
        """In the last step; here nobody knows."""

    def step(self) -> tuple[float, list[float]]:
        """Make one; return its length and each rank's joules."""
        lengths = [
            0.5 * self.work * (1 + 0.1 * rank) * max(DRAWN_W / knob.value, 1.0) ** self.exponent
            for rank, knob in enumerate(self.knobs)
        ]
        length = max(lengths) * (1 + self.noise * self.random.gauss(0, 1))
        self.now_s += length
        return length, [min(knob.value, DRAWN_W) * length for knob in self.knobs]


class ModelRank(OwnRank):
    """One rank of it, which is told late what its steps took."""

    def __init__(self, training: Training, rank: int) -> None:
        super().__init__(None if rank in training.sharing else training.knobs[rank], None)
        self.trouble = ""
        self.training = training
        self.rows: list[tuple[float, float, float, float]] = []

    def now_ns(self) -> int:
        return round(self.training.now_s * 1e9)

    @property
    def elapsed_s(self) -> float:
        return self.training.now_s

    def turn(self, value: float, *, exact: bool = False) -> None:
        super().turn(value, exact=exact)
        self.turned_ns = self.now_ns()

    def left_s(self, step_s: float) -> float | None:
        planned_s = self.training.planned_s
        return None if planned_s is None else planned_s - self.training.now_s

    def told(self, window: WindowNs, least: int) -> Told:
        if self.trouble:
            return Told(1.0)
        if self.now_ns() - 1_200_000_000 < window.closed_ns:
            return Told(0.0)
        inside = [
            row
            for row in self.rows
            if row[0] * 1e9 >= window.settled_ns and window.opened_ns < row[1] * 1e9 <= window.closed_ns
        ]
        starts, ends, joules, backward_s = np.array(inside).reshape(-1, 4).T
        start_ns, end_ns = (starts * 1e9).astype(np.int64), (ends * 1e9).astype(np.int64)
        told = Told.of(StepBatch(start_ns, end_ns, joules[np.newaxis], backward_s), least)
        return told if self.knob is not None else told._replace(energy_j=0.0, energy_sem=0.0, drawn_w=0.0)


def make(members: list[ModelRank], *, in_phases: bool) -> None:
    """Make one step, on all ranks."""
    training = members[0].training
    start_s = training.now_s
    _, joules = training.step()
    for member, own_j, backward_s in zip(members, joules, training.backward_s, strict=True):
        member.rows.append((start_s, training.now_s, own_j, backward_s if in_phases else math.nan))


def drive(
    training: Training,
    steps: int,
    each: Callable[[int, list[ModelRank]], None] = lambda step, members: None,
    **asked: float,
) -> list[Progress]:
    """Let all ranks follow their courses for so many steps, each on a thread, and return how far they came."""
    ranks = len(training.knobs)
    members = [ModelRank(training, rank) for rank in range(ranks)]
    said: list[tuple[float, ...]] = [()] * ranks
    barrier = threading.Barrier(ranks, timeout=20)

    def together(rank: int, own: tuple[float, ...]) -> tuple[float, ...]:
        said[rank] = own
        barrier.wait()
        total = tuple(map(sum, zip(*said, strict=True)))
        barrier.wait()
        return total

    wanted = Wanted(
        max_slowdown=asked.get("max_slowdown", 0.03), objective="energy", eta=0.5,
        search_share=asked.get("search_share", 0.2), host_power_w=asked.get("host_power_w", 0.0),
    )  # fmt: skip
    windows = [
        Windows(member, AllRanks(Rank(rank=rank, world_size=ranks), partial(together, rank)), Timing())
        for rank, member in enumerate(members)
    ]
    courses = [Course(own, wanted, recall=lambda: asked.get("remembered"), remember=lambda _: None) for own in windows]
    failures: list[BaseException] = []

    def follow(rank: int) -> None:
        try:
            script = courses[rank].searching()
            due = next(script)
            for step in range(steps):
                barrier.wait()
                if rank == 0:
                    each(step, members)
                    (in_phases,) = {own.wants_phases for own in windows}  # all alike
                    make(members, in_phases=in_phases)
                barrier.wait()
                members[rank].steps += 1
                if members[rank].steps >= due:
                    due = members[rank].steps + next(script)
        except BaseException as error:
            failures.append(error)
            barrier.abort()
            raise

    threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    return [course.progress for course in courses]


@pytest.mark.parametrize(("knob", "sums"), [("limit", 1), ("clocks", 1), ("auto", 2)])
def test_a_rank_without_a_gpu_joins_all_sums_over_ranks(knob: str, sums: int) -> None:
    """Those that may take the other knob tell of it once more, and wait until all have."""
    said: list[tuple[float, ...]] = []

    def add(own: tuple[float, ...]) -> tuple[float, ...]:
        said.append(own)
        return own

    config = PowerLimitConfig(knob=knob, clocks_unlocked=True)
    timing = Timing(first_s=0.0, watch_s=1e9)
    limiter = Limiter(config, None, who=Rank(rank=1, world_size=2), sum_over_ranks=add, timing=timing)
    for _ in range(30):
        limiter.after_step()
    assert len(said) == sums


class TestCourse:
    @pytest.mark.parametrize("ranks", [1, 3])
    def test_all_choose_the_same_and_keep_the_promise(self, ranks: int) -> None:
        training = Training(ranks, noise=0.005)
        progresses = drive(training, 1500)
        first = progresses[0].kept
        assert first is not None
        assert all(progress == progresses[0] for progress in progresses)
        assert [knob.value for knob in training.knobs] == [first.limit] * ranks
        slowdown = (DRAWN_W / first.limit) ** training.exponent - 1
        assert 0.015 < slowdown < 0.036
        assert first.saving == pytest.approx(1 - first.limit / DRAWN_W * (1 + slowdown), abs=0.015)
        assert progresses[0].search_s < 0.2 * 1200

    def test_one_that_shares_a_gpu_follows_whoever_turns_it(self) -> None:
        """It knows nothing of the knob, not even how finely to turn it, and yet must expect the same limits."""
        training = Training(2, noise=0.005)
        training.sharing = {1}
        training.knobs[0].resolution = 30.0
        first, second = drive(training, 1500)
        assert first == second
        assert first.kept is not None
        assert {round(FOUND_W - one.limit) % 30 for one in first.tried} == {0}
        assert training.knobs[1].turns == []

    def test_a_rank_that_fails_in_the_middle_ends_it_for_all(self) -> None:
        training = Training(3)
        training.knobs[1].fails_at = 3
        with pytest.warns(RuntimeWarning, match="the GPU is lost"):
            progresses = drive(training, 600)
        assert [progress.kept for progress in progresses] == [None] * 3
        assert [knob.value for knob in training.knobs] == [FOUND_W] * 3
        assert progresses[1].why == "the GPU is lost"
        assert progresses[0].why == "windows told nothing, one after another"

    def test_a_rank_that_measures_no_more_ends_it_for_all(self) -> None:
        def lose(step: int, members: list[ModelRank]) -> None:
            if step == 800:
                members[2].lose("measuring failed")

        training = Training(3)
        progresses = drive(training, 1500, lose)
        assert [progress.searches for progress in progresses] == [1] * 3
        assert [progress.kept for progress in progresses] == [None] * 3
        assert [knob.value for knob in training.knobs[:2]] == [FOUND_W] * 2

    def test_a_rank_that_may_not_from_the_beginning(self) -> None:
        training = Training(2)
        training.knobs[1].why_not = "the driver refuses"
        progresses = drive(training, 100)
        assert [knob.turns for knob in training.knobs] == [[], []]
        assert progresses[1].why == "the driver refuses"

    def test_other_work_is_searched_for_again_but_slow_drift_is_not(self) -> None:
        def drift(step: int, members: list[ModelRank]) -> None:
            members[0].training.work *= 1.00003  # 5 % in a quarter of an hour
            if step == 2500:
                members[0].training.exponent = 0.1
                members[0].training.work *= 1.2

        training = Training(1, planned_s=3000.0)
        (progress,) = drive(training, 2499, drift)
        assert progress.searches == 1
        training = Training(1, planned_s=3000.0)
        (progress,) = drive(training, 4000, drift)
        assert progress.searches == 2
        assert progress.kept is not None
        assert progress.kept.limit < 550

    @pytest.mark.parametrize(("planned_s", "begins"), [(60.0, False), (None, True)])
    def test_when_there_is_time(self, planned_s: float | None, begins: bool) -> None:
        training = Training(1, planned_s=planned_s)
        (progress,) = drive(training, 700)
        assert progress.searches == int(begins)
        if begins:
            changed_s = 60 / 0.2  # once a share of what has passed is worth a search
            first = next(place for place, one in enumerate(progress.tried) if one.limit != FOUND_W)
            assert first >= 1
            assert training.now_s > changed_s

    def test_a_remembered_limit_is_checked_first(self) -> None:
        training = Training(1)
        (progress,) = drive(training, 200, remembered=600.0)
        assert progress.kept is not None
        assert (progress.kept.source, progress.kept.limit, progress.searches) == ("memory", 600.0, 0)
        assert training.knobs[0].turns == [600.0, FOUND_W, 600.0]
        (progress,) = drive(Training(1), 300, remembered=300.0)
        assert progress.kept is not None
        assert progress.kept.source == "search"
