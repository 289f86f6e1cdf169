"""The search for the least energy to a target: what it finds of trainings whose law is known, and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_plugins.errors import ConfigError, WindowError
from energy_plugins.tune import Evaluation, Sweep, SweepTrial, search_energy_to_target
from energy_plugins.tune.sweep.energy_to_target import given_up, next_limit, propose

LIMITS_W = (100.0, 150.0, 200.0, 250.0)
BATCHES = tuple(2**place for place in range(3, 13))
SWEEP = Sweep(BATCHES, LIMITS_W, start_batch=1024)
WINDOW_EPOCHS = 0.01


@dataclass
class World:
    """Trainings that need more epochs the larger the batch, and less energy for each; one limit is best for all."""

    critical: float
    overhead: float
    best_w: float
    most_epochs: int = 500
    never: frozenset[int] = frozenset()
    spent_j: float = 0.0
    begun: list[int] = field(default_factory=list)

    def epochs(self, batch: int) -> int:
        return math.ceil(20 * (1 + batch / self.critical))

    def epoch_j(self, batch: int, limit_w: float) -> float:
        return 1e3 * (1 + self.overhead / batch) * (1 + ((limit_w - self.best_w) / 200) ** 2)

    def to_target_j(self, batch: int, limit_w: float) -> float:
        return self.epochs(batch) * self.epoch_j(batch, limit_w)

    def start(self, batch: int) -> Training:
        self.begun.append(batch)
        return Training(self, batch)

    @property
    def least_j(self) -> float:
        return min(self.to_target_j(batch, limit_w) for batch in BATCHES for limit_w in LIMITS_W)


@dataclass
class Training:
    world: World
    batch: int
    trained: float = 0.0
    told: int = 0

    def window(self, limit_w: float) -> float:
        self.world.spent_j += WINDOW_EPOCHS * self.world.epoch_j(self.batch, limit_w)
        self.trained += WINDOW_EPOCHS
        return self.world.epoch_j(self.batch, limit_w)

    def until_evaluated(self, limit_w: float) -> Evaluation:
        self.told += 1
        self.world.spent_j += (self.told - self.trained) * self.world.epoch_j(self.batch, limit_w)
        self.trained = self.told
        share = 0.5 if self.batch in self.world.never else 1.0
        value = share * min(self.told / self.world.epochs(self.batch), 1.0)
        return Evaluation(self.told, value, value >= 1.0, self.told >= self.world.most_epochs)


@given(critical=st.floats(50.0, 1e5), overhead=st.floats(1.0, 2000.0), best_w=st.sampled_from(LIMITS_W))
@settings(max_examples=60, deadline=None)
def test_of_smooth_trainings_it_finds_nearly_the_best_and_trains_few_to_their_end(
    critical: float, overhead: float, best_w: float
) -> None:
    world = World(critical, overhead, best_w)
    best = search_energy_to_target(world.start, SWEEP, most_trials=30).best
    assert best is not None
    assert best.limit_w == best_w
    assert world.to_target_j(best.batch, best.limit_w) <= 1.05 * world.least_j
    assert len(set(world.begun)) == len(world.begun)
    whole_j = sum(world.to_target_j(batch, best_w) for batch in BATCHES)
    assert world.spent_j < whole_j


def test_only_the_first_training_tries_all_limits() -> None:
    world = World(critical=500.0, overhead=100.0, best_w=150.0)
    first, *others = search_energy_to_target(world.start, SWEEP, most_trials=30).trials
    assert set(first.epoch_j) == set(LIMITS_W)
    assert others
    assert all(set(trial.epoch_j) == {100.0, 150.0, 200.0} for trial in others)


def test_limits_are_followed_beyond_those_that_were_best_before() -> None:
    known = Sweep((8, 16), LIMITS_W, 8).with_trial(SweepTrial(8, {250.0: 1.0, 200.0: 1.1, 150.0: 2.0, 100.0: 3.0}))
    trial, tried = SweepTrial(16), []
    truth = {250.0: 4.0, 200.0: 3.0, 150.0: 2.0, 100.0: 2.5}
    while (limit_w := next_limit(known, trial)) is not None:
        tried.append(limit_w)
        trial = replace(trial, epoch_j={**trial.epoch_j, limit_w: truth[limit_w]})
    assert tried == [250.0, 200.0, 150.0, 100.0]
    assert trial.limit_w == 150.0


def told(
    epoch_j: float, values: Mapping[float, float | None], batch: int = 512, *, reached: bool = False
) -> SweepTrial:
    return SweepTrial(batch, {150.0: epoch_j}, tuple(values.items()), reached)


BEST = told(10.0, {epoch: 0.1 * epoch for epoch in range(1, 11)}, 1024, reached=True)
KNOWN = SWEEP.with_trial(BEST)


def test_behind_at_a_rung_of_joules_is_stopped_and_ahead_goes_on() -> None:
    """The best one had 0.25 at a quarter of its 100 J."""
    behind = given_up(KNOWN, told(10.0, {1: 0.05, 2: 0.1, 3: 0.2}))
    assert behind is not None
    assert behind.behind == pytest.approx(1.5)  # 30 J for what took the best one 20 J
    assert given_up(KNOWN, told(10.0, {1: 0.1, 2: 0.2, 3: 0.31})) is None


def test_a_cheaper_epoch_may_bring_less() -> None:
    """Half of the joules for an epoch, and two thirds of the progress: behind by epochs, ahead by joules."""
    cheap = {float(epoch): 0.066 * epoch for epoch in range(1, 6)}
    assert given_up(KNOWN, told(5.0, cheap)) is None
    assert given_up(KNOWN, told(10.0, cheap)) is not None


def test_it_is_judged_at_rungs_alone() -> None:
    slow = {float(epoch): 0.066 * epoch for epoch in range(1, 5)}
    assert given_up(KNOWN, told(10.0, slow)) is None  # 40 J, with rungs at 25 J and 50 J


def test_what_can_only_be_late_is_stopped_whatever_its_metric() -> None:
    assert given_up(KNOWN, told(10.0, dict.fromkeys(range(1, 10), 0.9))) is None
    assert given_up(KNOWN, told(10.0, dict.fromkeys(range(1, 11), 0.9))) is not None
    assert given_up(KNOWN, SweepTrial(512, {150.0: 101.0})) is not None


def test_no_metric_is_not_a_bad_one_and_nan_ends_a_training() -> None:
    assert given_up(KNOWN, told(10.0, {1: None, 2: None, 3: None})) is None
    assert given_up(KNOWN, told(10.0, {1: None, 2: math.nan})) is not None
    assert given_up(SWEEP, told(10.0, {1: math.nan})) is not None
    assert given_up(SWEEP, told(10.0, {1: 0.01})) is None


def test_a_usual_size_that_never_reaches_the_target_is_left_for_its_neighbours() -> None:
    world = World(critical=500.0, overhead=100.0, best_w=150.0, most_epochs=90, never=frozenset({1024, 2048, 512}))
    sweep = search_energy_to_target(world.start, SWEEP, most_trials=30)
    assert world.begun[0] == 1024
    assert sweep.best is not None
    assert sweep.best.batch not in world.never


def test_nothing_may_reach_the_target() -> None:
    world = World(critical=500.0, overhead=100.0, best_w=150.0, most_epochs=5, never=frozenset(BATCHES))
    sweep = search_energy_to_target(world.start, SWEEP, most_trials=30)
    assert sweep.best is None
    assert sorted(world.begun) == list(BATCHES)
    assert propose(sweep) is None


def test_trials_are_capped_and_a_sweep_goes_on_where_it_was() -> None:
    whole, halted = World(500.0, 100.0, 150.0), World(500.0, 100.0, 150.0)
    at_once = search_energy_to_target(whole.start, SWEEP, most_trials=30)
    some = search_energy_to_target(halted.start, SWEEP, most_trials=2)
    assert len(some.trials) == 2
    assert search_energy_to_target(halted.start, some, most_trials=30) == at_once


@pytest.mark.parametrize(
    ("batches", "limits_w", "start"),
    [((8, 16), LIMITS_W, 32), ((), LIMITS_W, 8), ((0, 8), LIMITS_W, 8), ((8,), (), 8), ((8,), (math.nan,), 8)],
)
def test_a_space_that_cannot_be(batches: tuple[int, ...], limits_w: tuple[float, ...], start: int) -> None:
    with pytest.raises(ConfigError, match="to choose from are"):
        Sweep(batches, limits_w, start)


@pytest.mark.parametrize("joules", [0.0, -1.0, math.nan, math.inf])
def test_joules_that_cannot_be(joules: float) -> None:
    with pytest.raises(WindowError, match="150 W draws"):
        SweepTrial(8, {150.0: joules})
