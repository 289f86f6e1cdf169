"""Ranks that wait for a slower one get a limit of their own: found, watched, and given up as soon as it is not theirs.

A model of a training: its ranks' work, waits and power are formulas, so the best limits are known.
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_limiter import DRAWN_W, FOUND_W, LOWEST_W, ModelRank, Training, drive

from energy_plugins.config import PowerLimitConfig
from energy_plugins.measure.rank_part import Rank
from energy_plugins.training.limits.apart import LONGER, apart, with_reserve
from energy_plugins.training.limits.check import Kept
from energy_plugins.training.limits.limiter import Limiter
from energy_plugins.training.limits.peer_waits import LEAST_SHARE, PeerWaits
from energy_plugins.training.limits.progress import Progress
from energy_plugins.training.limits.rank_limits import RankLimits
from energy_plugins.training.step_window import Told
from energy_plugins.tune import Task

STEP_S = 0.5
FORWARD = 1 / 3
"""Share of the work of a step that is done before anybody waits."""
RANKS = 4
REALLY_LONGER = 0.01
"""What the limit of those that wait may really add to a step."""


class Straggling(Training):
    """Ranks of which some are slower: the others spin in backward until these have caught up."""

    def __init__(
        self,
        slower: list[float],
        waiting: float,
        *,
        noise: float = 0.0,
        planned_s: float | None = 3000.0,
        told: bool = True,
    ) -> None:
        super().__init__(len(slower), noise=noise, planned_s=planned_s)
        self.slower = slower
        self.waiting = waiting
        """What waiting draws, as a share of what work does."""
        self.told = told
        """Whether phases are marked."""

    def at(self, limits_w: list[float]) -> tuple[float, list[float], list[float]]:
        """Return a step's length, and each rank's joules and seconds in backward."""
        own_s = [
            STEP_S * slower * max(DRAWN_W / limit_w, 1.0) ** self.exponent
            for slower, limit_w in zip(self.slower, limits_w, strict=True)
        ]
        length = max(own_s)
        joules = [
            own * min(limit_w, DRAWN_W) + (length - own) * min(limit_w, self.waiting * DRAWN_W)
            for own, limit_w in zip(own_s, limits_w, strict=True)
        ]
        return length, joules, [length - FORWARD * own for own in own_s]

    def step(self) -> tuple[float, list[float]]:
        length, joules, backward_s = self.at([knob.value for knob in self.knobs])
        longer = 1 + self.noise * self.random.gauss(0, 1)
        self.now_s += length * longer
        known = 1.0 if self.told else math.nan
        self.backward_s = [own * known * longer * (1 + self.noise * self.random.gauss(0, 1)) for own in backward_s]
        return length * longer, [own * longer * (1 + self.noise * self.random.gauss(0, 1)) for own in joules]

    def gain(self, limits_w: list[float]) -> tuple[float, float]:
        """Return the share that limits save, and by which they make steps longer."""
        (length, joules, _), (free, free_j, _) = self.at(limits_w), self.at([FOUND_W] * len(limits_w))
        return 1 - sum(joules) / sum(free_j), length / free - 1

    def best(self, max_slowdown: float) -> float:
        """Return the most that a limit for the slow rank and one for the others can save, in whole watts."""
        allowed = self.at([FOUND_W] * len(self.slower))[0] * (1 + max_slowdown)
        limits_w = np.arange(LOWEST_W, FOUND_W + 1)

        def least_j(slower: float) -> float:
            own_s = STEP_S * slower * np.maximum(DRAWN_W / limits_w, 1.0) ** self.exponent
            joules = own_s * np.minimum(limits_w, DRAWN_W)
            joules += (allowed - own_s) * np.minimum(limits_w, self.waiting * DRAWN_W)
            return float(joules[own_s <= allowed].min())

        free_j = sum(self.at([FOUND_W] * len(self.slower))[1])
        return 1 - sum(least_j(slower) for slower in self.slower) / free_j


def limits_of(training: Training) -> list[float]:
    return [knob.value for knob in training.knobs]


def task_of(max_slowdown: float) -> Task:
    return Task(limits=(LOWEST_W, FOUND_W), start=FOUND_W, max_slowdown=max_slowdown)


def agreed(progresses: list[Progress]) -> Progress:
    """Return what all ranks have come to alike."""
    assert all(progress == progresses[0] for progress in progresses)
    return progresses[0]


class TestPeerWaits:
    @staticmethod
    def told(*backward_s: float, error_s: float = 0.001) -> list[Told]:
        return [Told(1.0, 1.0, 500.0, 0.001, 1.0, 500.0, own_s, error_s) for own_s in backward_s]

    def who(self, *windows: list[Told]) -> tuple[int, ...]:
        waits = PeerWaits()
        for words in windows:
            waits.add(words)
        return waits.who()

    def test_those_whose_backward_is_longer_than_the_shortest(self) -> None:
        assert self.who(self.told(0.60, 0.50, 0.61, 0.505)) == (0, 2)
        assert self.who(self.told(0.5)) == ()
        assert self.who() == ()

    def test_what_may_be_noise_is_no_wait(self) -> None:
        assert self.who(self.told(0.60, 0.50, error_s=0.03)) == ()
        assert self.who(self.told(0.60, 0.50), self.told(0.50, 0.60), self.told(0.60, 0.50)) == ()
        assert self.who(*[self.told(0.60, 0.50, error_s=0.03)] * 9) == (0,)

    def test_a_rank_that_does_not_tell_leaves_it_unknown(self) -> None:
        assert self.who(self.told(0.60, math.nan, 0.50)) == ()
        assert self.who(self.told(0.60, math.nan, 0.50), self.told(0.60, 0.60, 0.50)) == (0, 1)

    @given(
        st.lists(st.floats(0.1, 0.9), min_size=2, max_size=6), st.floats(0.0, 0.1), st.randoms(use_true_random=False)
    )
    def test_only_differences_count_and_order_does_not(
        self, backward_s: list[float], more_s: float, random: Random
    ) -> None:
        order = random.sample(range(len(backward_s)), len(backward_s))
        waits = self.who(self.told(*backward_s))
        margin = min(abs(own - min(backward_s) - LEAST_SHARE) for own in backward_s)
        assume(margin > 1e-9)
        assert self.who(self.told(*(own + more_s for own in backward_s))) == waits
        moved = self.who(self.told(*(backward_s[place] for place in order)))
        assert sorted(order[place] for place in moved) == list(waits)
        assert len(waits) < len(backward_s)


@pytest.mark.parametrize("waiting", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("slower", [1.1, 1.2, 1.4])
def test_those_that_wait_get_a_lower_limit_and_the_promise_is_kept(slower: float, waiting: float) -> None:
    """The bars of benchmarks/straggler.py; the best is that of a limit for the slow rank and one for the others."""
    training = Straggling([1.0, slower, 1.0, 1.0], waiting)
    kept = agreed(drive(training, 700)).kept
    assert kept is not None
    slow_w, others_w = training.knobs[1].value, training.knobs[0].value
    assert limits_of(training) == [others_w, slow_w, others_w, others_w]
    assert others_w < slow_w < FOUND_W
    saving, slowdown = training.gain(limits_of(training))
    assert slowdown <= 0.03
    assert saving >= 0.9 * training.best(0.03)
    assert (kept.saving, kept.slowdown) == pytest.approx((saving, slowdown), abs=0.003)
    assert slowdown - training.gain([slow_w] * RANKS)[1] <= REALLY_LONGER


@pytest.mark.parametrize("slower", [1.1, 1.4])
def test_where_steps_are_noisy(slower: float) -> None:
    training = Straggling([slower, 1.0, 1.0, 1.0], 0.5, noise=0.005)
    progress = agreed(drive(training, 1500))
    saving, slowdown = training.gain(limits_of(training))
    assert slowdown <= 0.03 + task_of(0.03).promise
    assert saving >= 0.9 * training.best(0.03)
    assert progress.search_s < 0.2 * 3000
    assert {one.ranks for one in progress.tried} == {(), (1, 2, 3)}
    assert progress.kept is not None
    for_all = {one.limit for one in progress.tried if not one.ranks}
    assert set(training.knobs[0].turns) <= for_all | {progress.kept.limit}  # nothing was tried on the slow one alone


def test_without_a_straggler_all_is_as_it_was() -> None:
    """Where all are equally fast, and where nobody can tell, as when phases are not marked."""
    equal, unknown, slow = (
        Straggling([slower, 1.0, 1.0], 0.5, noise=0.005, told=told)
        for slower, told in ((1.0, True), (1.0, False), (1.2, False))
    )
    progresses = [agreed(drive(training, 900)) for training in (equal, unknown, slow)]
    assert progresses[0].searches == 1
    assert progresses[0] == progresses[1]
    for training, progress in zip((equal, unknown, slow), progresses, strict=True):
        assert progress.kept is not None
        assert progress.kept.limits is None
        assert limits_of(training) == [progress.kept.limit] * 3


def test_no_step_is_marked_but_those_of_windows() -> None:
    training = Straggling([1.2, 1.0], 0.5)
    marked: list[bool] = []

    def note(step: int, members: list[ModelRank]) -> None:
        marked.append(any(math.isfinite(row[3]) for row in members[0].rows[-1:]))

    drive(training, 1500, note)
    assert 50 < sum(marked[:300]) < 250
    assert 0 < sum(marked[600:]) < 0.3 * len(marked[600:])  # while it is watched: some twenty of a minute's


def test_a_straggler_that_moves_is_followed() -> None:
    def move(step: int, members: list[ModelRank]) -> None:
        if step == 900:
            training.slower = [1.0, 1.0, 1.2]

    training = Straggling([1.2, 1.0, 1.0], 0.5)
    progress = agreed(drive(training, 899, move))
    assert training.knobs[0].value > training.knobs[2].value == training.knobs[1].value
    training = Straggling([1.2, 1.0, 1.0], 0.5)
    progress = agreed(drive(training, 2400, move))
    assert progress.kept is not None
    assert training.knobs[2].value > training.knobs[0].value == training.knobs[1].value
    saving, slowdown = training.gain(limits_of(training))
    assert slowdown <= 0.03
    assert saving >= 0.9 * training.best(0.03)


@pytest.mark.parametrize("after", [1.0, 1.15])
def test_one_that_vanishes_or_is_less_slow_leaves_nobody_to_wait_for_those_with_a_lower_limit(after: float) -> None:
    """Steps stay as long as they were: only that the rank which was slow waits now tells it."""

    def vanish(step: int, members: list[ModelRank]) -> None:
        if step == 900:
            training.slower = [after, 1.0, 1.0]

    training = Straggling([1.4, 1.0, 1.0], 0.5)
    progress = agreed(drive(training, 2400, vanish))
    assert progress.kept is not None
    saving, slowdown = training.gain(limits_of(training))
    assert slowdown <= 0.03 + task_of(0.03).promise
    assert saving >= 0.9 * training.best(0.03)
    assert (len(set(limits_of(training))) == 1) == (after == 1.0)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_fails_while_the_others_search_ends_it_for_all(rank: int) -> None:
    def lose(step: int, members: list[ModelRank]) -> None:
        if training.knobs[1].value < training.knobs[0].value and not members[rank].trouble:
            members[rank].lose("measuring failed")
            training.knobs[rank].close()  # as a limiter does

    training = Straggling([1.2, 1.0, 1.0], 0.5)
    progresses = drive(training, 700, lose)
    assert [progress.searches for progress in progresses] == [2] * 3
    assert [progress.kept for progress in progresses] == [None] * 3
    assert limits_of(training) == [FOUND_W] * 3
    assert progresses[rank].why == "measuring failed"
    assert progresses[1].why == "windows told nothing, one after another"


def test_a_gpu_that_fails_while_the_others_search_ends_it_for_all() -> None:
    healthy = Straggling([1.2, 1.0, 1.0], 0.5)
    drive(healthy, 700)
    training = Straggling([1.2, 1.0, 1.0], 0.5)
    training.knobs[1].fails_at = len(healthy.knobs[0].turns) + 1  # the first that is not for all
    with pytest.warns(RuntimeWarning, match="the GPU is lost"):
        progresses = drive(training, 900)
    assert [progress.kept for progress in progresses] == [None] * 3
    assert limits_of(training) == [FOUND_W] * 3


def test_ranks_that_share_a_gpu_have_one_limit_for_all() -> None:
    """Whoever turns a GPU does not know whether the other one waits."""
    training = Straggling([1.2, 1.0, 1.0], 0.5)
    training.sharing = {1}
    progress = agreed(drive(training, 900))
    assert progress.kept is not None
    assert (progress.searches, progress.kept.limits) == (1, None)
    assert training.knobs[0].value == training.knobs[2].value == progress.kept.limit


def test_a_remembered_limit_is_that_of_all() -> None:
    training = Straggling([1.2, 1.0, 1.0], 0.5)
    progress = agreed(drive(training, 700, remembered=605.0))
    kept = progress.kept
    assert kept is not None
    assert (kept.source, kept.limit, training.knobs[0].value) == ("memory", 605.0, 605.0)
    assert training.knobs[1].value == training.knobs[2].value < 400
    assert training.gain(limits_of(training))[1] <= 0.03


def test_without_time_for_it_the_limit_of_all_stays() -> None:
    training = Straggling([1.2, 1.0, 1.0], 0.5, planned_s=600.0)
    progress = agreed(drive(training, 700, search_share=0.06))
    assert progress.kept is not None
    assert (progress.searches, progress.kept.limits) == (1, None)
    assert limits_of(training) == [progress.kept.limit] * 3


def test_where_the_end_is_not_known_it_waits_until_there_is_time() -> None:
    training = Straggling([1.2, 1.0, 1.0], 0.5, planned_s=None)
    progress = agreed(drive(training, 700))
    assert progress.kept is not None
    assert (progress.searches, progress.kept.limits) == (1, None)
    training = Straggling([1.2, 1.0, 1.0], 0.5, planned_s=None)
    progress = agreed(drive(training, 1100))
    assert (progress.searches, len(set(limits_of(training)))) == (2, 2)
    assert progress.search_s < 0.2 * training.now_s


@pytest.mark.parametrize(("rank", "own_w"), [(0, 600.0), (1, 400.0)])
def test_a_report_has_the_limit_of_its_rank_and_those_of_all(rank: int, own_w: float) -> None:
    limiter = Limiter(PowerLimitConfig(), None, who=Rank(rank=rank, world_size=2), sum_over_ranks=lambda own: own)
    kept = Kept(limit=600.0, saving=0.1, slowdown=0.02, confidence=1.0, binding=True, source="search")
    limiter._course.progress.kept = kept
    assert (limiter.part().chosen, limiter.part().by_rank) == (600.0, ())
    limiter._course.progress.kept = replace(kept, limits=RankLimits(400.0, (1,), 600.0))
    assert (limiter.part().chosen, limiter.part().by_rank) == (own_w, (600.0, 400.0))


@given(st.floats(-0.5, math.inf), st.floats(-0.01, 0.05))
def test_both_searches_together_keep_the_bound(max_slowdown: float, slowdown: float) -> None:
    task = task_of(max_slowdown)
    reserved = with_reserve(task).max_slowdown
    assert reserved <= max_slowdown
    common = Kept(limit=600.0, saving=0.1, slowdown=slowdown, confidence=1.0, binding=True, source="search")
    own = apart(task, common, 60.0)
    assert 0 <= own.max_slowdown <= LONGER
    assert own.max_slowdown == 0 or (1 + slowdown) * (1 + own.max_slowdown) <= (1 + max_slowdown) * (1 + 1e-9)
    assert (own.start, own.limits) == (600.0, (LOWEST_W, 600.0))
