"""Micro-batch and power limit together: batch first, then limit, then the neighbours once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from batch_trainings import Model
from trainings import Gpu

from energy_plugins.errors import WindowError
from energy_plugins.tune import (
    JointChoice,
    Measurement,
    MicroBatchTask,
    OutOfMemory,
    Refused,
    Task,
    candidates,
    search_jointly,
)
from energy_plugins.tune.joint import JointDone, begin, step

LIMITS_W, START_W = (200.0, 700.0), 700.0
SHARE = 256


@dataclass
class Both:
    """A training whose samples cost what a model says, on a GPU that a limit slows."""

    model: Model = field(default_factory=Model)
    gpu: Gpu = field(default_factory=Gpu)
    noise: float = 0.0
    seed: int = 0
    fails: tuple[tuple[int, float], ...] = ()
    """Sizes that run out of memory below a limit."""
    bonus: dict[int, float] = field(default_factory=dict)
    """Factors of the energy of a size under any limit below the start."""
    asked: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def truth(self, size: int, limit_w: float) -> tuple[float, float]:
        """Return a step's seconds and joules."""
        time_s = SHARE * self.model.sample_time_s(size) * self.gpu.time(limit_w)
        power = self.gpu.power_w(limit_w) / self.gpu.power_w(START_W)
        energy_j = SHARE * self.model.sample_energy_j(size) * self.gpu.time(limit_w) * power
        return time_s, energy_j * (self.bonus.get(size, 1.0) if limit_w < START_W else 1.0)

    def measure(self, size: int, limit_w: float, seconds: float) -> Measurement | OutOfMemory:
        self.asked.append((size, limit_w))
        if any(size == failing and limit_w < below_w for failing, below_w in self.fails):
            return OutOfMemory(size)
        time_s, energy_j = self.truth(size, limit_w)
        error = self.noise * math.sqrt(5.0 / seconds)
        of_time, of_energy, of_power = (1 + error * self.rng.normal(size=3)).tolist()
        drawn_w = self.gpu.power_w(limit_w) * of_power
        return Measurement(time_s * of_time, energy_j * of_energy, time_s * error, energy_j * error, drawn_w)


def batch_task(**asked: Any) -> MicroBatchTask:
    return MicroBatchTask(start=8, candidates=candidates(8, 32), share=SHARE, **asked)


def limit_task(max_slowdown: float = 0.05) -> Task:
    return Task(limits=LIMITS_W, start=START_W, max_slowdown=max_slowdown)


def found(training: Both) -> JointChoice:
    return search_jointly(training.measure, batch_task(), limit_task())


@pytest.mark.parametrize("seed", range(5))
def test_both_save_and_the_parts_make_up_the_whole(seed: int) -> None:
    training = Both(noise=0.003, seed=seed)
    choice = found(training)
    before, after = training.truth(8, START_W)[1], training.truth(choice.size, choice.limit)[1]
    assert choice.size >= 128
    assert choice.limit < 650
    assert choice.saving == pytest.approx(1 - after / before, abs=0.01)
    assert 1 - choice.saving == pytest.approx((1 - choice.saving_of_batch) * (1 - choice.saving_of_limit))
    assert choice.saving_of_batch > 0.5
    assert choice.saving_of_limit > 0.02
    assert training.gpu.time(choice.limit) <= 1.05 * 1.01


def test_batch_first_then_limit_then_neighbours_once() -> None:
    training = Both(noise=0.003)
    choice = found(training)
    limits_w = [limit_w for _, limit_w in training.asked]
    first_limited = next(place for place, limit_w in enumerate(limits_w) if limit_w < START_W)
    last_of_batch = max(place for place, (size, _) in enumerate(training.asked[:first_limited]) if size != choice.size)
    searched = {size for size, _ in training.asked[last_of_batch + 1 : -5]}
    assert searched == {choice.batch.size}
    check = training.asked[-len(_check(choice)) :]
    assert check == _check(choice)


def _check(choice: JointChoice) -> list[tuple[int, float]]:
    size = choice.batch.size
    sizes = [one.size for one in choice.batch.tried]
    place = sizes.index(size)
    beside = [*sizes[place - 1 : place], *sizes[place + 1 : place + 2]]
    return [(each, choice.limit) for each in (size, *(one for other in beside for one in (other, size)))]


def test_a_neighbour_that_is_better_under_the_limit_is_taken() -> None:
    alone = found(Both(noise=0.002)).batch.size
    above = 2 * alone
    choice = found(Both(noise=0.002, bonus={above: 0.8}))
    assert (choice.batch.size, choice.size) == (alone, above)
    assert choice.saving_of_neighbour > 0.05
    assert choice.saving_of_batch > choice.batch.expected_saving


def test_a_neighbour_that_is_slower_than_allowed_is_not() -> None:
    class Slow(Model):
        def sample_time_s(self, size: int) -> float:
            return 2e-4 * (1.2 if size == 64 else 1.0)

        def sample_energy_j(self, size: int) -> float:
            return {128: 0.100, 64: 0.104}.get(size, 0.2)

    training = Both(Slow(), noise=0.002, bonus={64: 0.8})
    choice = found(training)
    assert choice.size == choice.batch.size == 128


def test_where_the_limit_is_kept_there_is_nothing_to_check() -> None:
    training = Both(gpu=Gpu(drawn_w=150.0, idle_w=50.0), noise=0.003)
    choice = found(training)
    assert choice.limit == START_W
    assert choice.saving == pytest.approx(choice.batch.expected_saving)
    assert training.asked[-1] == (choice.size, START_W)


def test_a_neighbour_that_fails_is_none() -> None:
    alone = found(Both(noise=0.002)).batch.size
    choice = found(Both(noise=0.002, fails=((2 * alone, START_W),), bonus={2 * alone: 0.8}))
    assert choice.size == alone


def test_a_choice_that_fails_later_is_an_error() -> None:
    alone = found(Both(noise=0.002)).batch.size
    with pytest.raises(WindowError, match=f"{alone} samples at once ran before, but now fail"):
        found(Both(noise=0.002, fails=((alone, START_W),)))


def test_a_refusal_is_an_answer_here_too() -> None:
    training = Both()
    state, action = begin(batch_task(), limit_task())
    while True:
        outcome: Any = training.measure(action.size, action.limit, action.seconds)
        state, following = step(state, Refused(256, "no") if action.size == 256 else outcome)
        if isinstance(following, JointDone):
            break
        action = following
    assert following.choice.size == 128
    assert {one.size: one.why for one in following.choice.batch.tried}[256] == "no"
