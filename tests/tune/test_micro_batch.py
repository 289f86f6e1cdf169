"""What a search for a micro-batch promises: it saves, is never worse than the user's setting, and says why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from batch_trainings import BatchTraining, Model
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_plugins.errors import ConfigError, WindowError
from energy_plugins.tune import (
    Measurement,
    MicroBatchChoice,
    MicroBatchTask,
    OutOfMemory,
    Refused,
    candidates,
    search_micro_batch,
)
from energy_plugins.tune.micro_batch.search import Done, begin, step

WORTH = 0.005
BUDGET_S = 60.0
few = settings(max_examples=30, deadline=None)

models = st.builds(
    Model,
    floor_s=st.floats(0.0, 0.05),
    sample_s=st.floats(1e-4, 1e-3),
    idle_w=st.floats(50.0, 200.0),
    sample_j=st.floats(0.02, 0.5),
)
batches = st.sampled_from([(8, 32), (4, 16), (1, 64), (32, 8), (64, 1), (256, 1), (12, 4), (7, 1), (16, 1), (96, 2)])
seeds = st.integers(0, 2**32 - 1)


def chosen(training: BatchTraining, batch: int, **asked: Any) -> MicroBatchChoice:
    sizes = candidates(batch, training.share // batch)
    return search_micro_batch(training.measure, sizes, start=batch, share=training.share, **asked)


def saving(training: BatchTraining, size: int, batch: int) -> float:
    return 1 - training.model.sample_energy_j(size) / training.model.sample_energy_j(batch)


@few
@given(model=models, given_batch=batches)
def test_without_noise_it_is_the_best_size(model: Model, given_batch: tuple[int, int]) -> None:
    batch, accumulation = given_batch
    training = BatchTraining(model, batch * accumulation)
    found = chosen(training, batch)
    best = model.best(candidates(batch, accumulation))
    assert saving(training, found.size, batch) >= saving(training, best, batch) - 2 * WORTH
    assert found.expected_saving == pytest.approx(saving(training, found.size, batch), abs=1e-6)


@few
@given(model=models, given_batch=batches, noise=st.sampled_from([0.002, 0.005, 0.02]), seed=seeds)
def test_with_noise_it_is_not_worse_than_the_users_setting(
    model: Model, given_batch: tuple[int, int], noise: float, seed: int
) -> None:
    batch, accumulation = given_batch
    training = BatchTraining(model, batch * accumulation, noise, seed)
    found = chosen(training, batch)
    assert saving(training, found.size, batch) >= -4 * noise
    assert training.now_s <= BUDGET_S


@pytest.mark.parametrize(("batch", "share"), [(8, 256), (4, 64), (32, 256)])
def test_with_noise_it_reaches_nearly_all_of_the_best(batch: int, share: int) -> None:
    rng = np.random.default_rng(3)
    saved, best = [], []
    for seed in range(25):
        model = Model(floor_s=rng.uniform(0.01, 0.03), sample_j=rng.uniform(0.05, 0.2))
        training = BatchTraining(model, share, 0.005, seed)
        saved.append(saving(training, chosen(training, batch).size, batch))
        best.append(saving(training, model.best(candidates(batch, share // batch)), batch))
    assert np.mean(saved) >= 0.95 * np.mean(best)
    assert min(saved) >= 0.0


def test_where_sizes_cost_the_same_the_users_setting_is_kept() -> None:
    flat = Model(floor_s=0.0)
    kept = [chosen(BatchTraining(flat, 256, 0.005, seed), 32).size for seed in range(40)]
    assert kept.count(32) >= 36


def test_of_equals_the_smaller_is_chosen() -> None:
    saturated = Model(floor_s=0.02, sample_s=0.02 / 32)  # nothing is left to save from 32 on
    sizes = [chosen(BatchTraining(saturated, 256, 0.002, seed), 4).size for seed in range(20)]
    assert sizes.count(32) >= 18
    assert chosen(BatchTraining(saturated, 256), 4).size == 32
    assert any("leaves more memory" in line for line in chosen(BatchTraining(saturated, 256), 4).explanation)


def test_a_setting_that_is_too_large_for_a_cache_is_split() -> None:
    model = Model(floor_s=1e-4, spill_from=128)
    task = MicroBatchTask(
        start=1024,
        candidates=candidates(1024, 1),
        share=1024,
        levels=tuple("L2" if size <= 128 else "HBM" for size in candidates(1024, 1)),
    )
    for seed in range(10):
        training = BatchTraining(model, 1024, 0.005, seed)
        found = driven(training, task)
        assert saving(training, found.size, 1024) >= saving(training, 128, 1024) - 0.01
        assert any("a layer's activations left the L2 for the HBM" in line for line in found.explanation)


def test_a_cache_below_is_looked_for_though_larger_sizes_save() -> None:
    # 64 leaves the L2, where 32 is cheaper than any larger size; fixed costs fall up to 256 all the same.
    class Both(Model):
        def sample_energy_j(self, size: int) -> float:
            return (0.05 if size <= 32 else 0.2) + 0.6 / size

    sizes = (16, 32, 64, 128, 256)
    levels = ("L2", "L2", "HBM", "HBM", "HBM")
    known = MicroBatchTask(start=64, candidates=sizes, share=256, levels=levels)
    assert driven(BatchTraining(Both(), 256, 0.003), known).size == 32
    unknown = replace(known, levels=())
    training = BatchTraining(Both(), 256, 0.003)
    assert driven(training, unknown).size > 64
    assert min(size for size, _ in training.asked) == 64  # nothing said that a smaller one could save


def driven(training: BatchTraining, task: MicroBatchTask) -> MicroBatchChoice:
    state, action = begin(task)
    while True:
        state, following = step(state, training.measure(action.size, action.seconds))
        if isinstance(following, Done):
            return following.choice
        action = following


@few
@given(model=models, given_batch=batches, seed=st.integers(0, 1000))
def test_equal_outcomes_give_equal_choices(model: Model, given_batch: tuple[int, int], seed: int) -> None:
    batch, accumulation = given_batch
    one, two = (BatchTraining(model, batch * accumulation, 0.005, seed) for _ in range(2))
    assert chosen(one, batch) == chosen(two, batch)
    assert one.asked == two.asked


outcomes = st.one_of(
    st.tuples(st.floats(0.01, 20.0), st.floats(1.0, 1e4), st.floats(0.0, 0.5)),
    st.sampled_from(["oom", "refused"]),
)


@settings(max_examples=60, deadline=None)
@given(given_batch=batches, told=st.lists(outcomes, min_size=1, max_size=80), budget_s=st.floats(1.0, 100.0))
def test_whatever_it_is_told_it_ends_with_a_size_that_ran(
    given_batch: tuple[int, int], told: list[Any], budget_s: float
) -> None:
    batch, accumulation = given_batch
    sizes = candidates(batch, accumulation)
    task = MicroBatchTask(start=batch, candidates=sizes, share=batch * accumulation, budget_s=budget_s)
    state, action = begin(task)
    too_large, failed, ran = math.inf, set(), set()
    for count in range(500):
        assert action.size in sizes
        assert action.size < too_large
        assert action.size not in failed
        match told[count % len(told)]:
            case "oom":
                outcome: Any = OutOfMemory(action.size)
                too_large = min(too_large, action.size)
            case "refused":
                outcome = Refused(action.size, "no")
                failed.add(action.size)
            case (float(time_s), float(energy_j), float(error)):
                outcome = Measurement(time_s, energy_j, time_s * error, energy_j * error, 100.0)
                ran.add(action.size)
        state, following = step(state, outcome)
        if isinstance(following, Done):
            break
        action = following
    else:
        pytest.fail("it does not end")
    choice = following.choice
    usable = {size for size in ran if size < too_large and size not in failed}
    assert choice.size in usable or (not usable and choice.size == batch) or batch in failed
    assert 0 <= choice.confidence <= 1
    assert choice.explanation
    assert {one.size for one in choice.tried if one.why is None} == usable


@few
@given(model=models, given_batch=batches, budget_s=st.floats(5.0, 200.0), noise=st.sampled_from([0.005, 0.05]))
def test_a_budget_is_kept(model: Model, given_batch: tuple[int, int], budget_s: float, noise: float) -> None:
    batch, accumulation = given_batch
    training = BatchTraining(model, batch * accumulation, noise)
    chosen(training, batch, budget_s=budget_s)
    step_s = training.share * model.sample_time_s(batch)
    assert training.now_s <= max(budget_s, 5.0 + 2 * step_s)


@few
@given(given_batch=batches, beside_s=st.floats(0.0, 6.0))
def test_what_windows_take_beside_their_steps_is_in_the_budget(given_batch: tuple[int, int], beside_s: float) -> None:
    batch, accumulation = given_batch
    training = BatchTraining(Model(), batch * accumulation, 0.005)
    state, action = begin(MicroBatchTask.of(batch, accumulation))
    now_s = 0.0
    while not isinstance(action, Done):
        began_s = training.now_s
        outcome = training.measure(action.size, action.seconds)
        took_s = training.now_s - began_s + beside_s
        now_s += took_s
        state, action = step(state, outcome, took_s)  # type: ignore[assignment]
    assert now_s <= BUDGET_S
    middles_s = [window.middle_s for window in action.choice.windows]
    assert middles_s == sorted(middles_s)
    assert middles_s[-1] <= now_s


def test_windows_at_the_users_setting_lie_between() -> None:
    training = BatchTraining(Model(), 256, 0.01)
    chosen(training, 8)
    sizes = [size for size, _ in training.asked]
    assert sizes[0] == 8
    assert all(8 in sizes[place : place + 3] for place in range(len(sizes) - 2))
    assert max(seconds for _, seconds in training.asked) <= 5.0
    assert min(seconds for _, seconds in training.asked) >= 2.5


@pytest.mark.parametrize(
    "drift",
    [lambda t: 0.01 * t / 60, lambda t: -0.01 * t / 60, lambda t: 0.03 * math.exp(-t / 60)],
    ids=["dearer", "cheaper", "warm-up"],
)
def test_drift_cancels(drift: Any) -> None:
    flat = Model(floor_s=0.0)
    kept = [chosen(BatchTraining(flat, 256, 0.003, seed, drift=drift), 32).size for seed in range(20)]
    assert kept.count(32) >= 17
    best = [chosen(BatchTraining(Model(), 256, 0.003, seed, drift=drift), 8).size for seed in range(10)]
    assert min(best) >= 128


def test_a_hump_does_not_end_the_climb() -> None:
    class Hump(Model):
        def sample_energy_j(self, size: int) -> float:
            return {8: 0.2, 16: 0.206, 32: 0.15}.get(size, 0.25)

    assert chosen(BatchTraining(Hump(), 256, 0.002), 8).size == 32
    hopeless = BatchTraining(Model(floor_s=0.0, spill_from=8, spill_per_decade=10.0), 256, 0.002)
    assert chosen(hopeless, 8).size == 8
    assert max(size for size, _ in hopeless.asked) == 16  # twice the energy: no hump


def test_where_it_keeps_the_setting_it_says_how_surely_nothing_saves() -> None:
    flat = Model(floor_s=0.0)
    quiet, loud = (chosen(BatchTraining(flat, 32, noise, 4), 32) for noise in (0.001, 0.05))
    assert quiet.size == loud.size == 32
    assert quiet.confidence > 0.95
    assert 0.0 < loud.confidence < 0.9


def test_out_of_memory_is_an_answer() -> None:
    training = BatchTraining(Model(), 256, 0.005, fits=64)
    found = chosen(training, 8)
    assert found.size == 64
    assert [size for size, _ in training.asked].count(128) == 1
    assert max(size for size, _ in training.asked) == 128
    assert {one.size: one.why for one in found.tried}[128] == "out of memory"
    assert "128 samples at once cannot be used: out of memory" in found.explanation


def test_a_setting_that_does_not_fit_is_split() -> None:
    training = BatchTraining(Model(), 1024, 0.005, fits=300)
    found = chosen(training, 1024)
    assert found.size == 256
    assert found.expected_saving == 0.0
    assert found.explanation[0] == "256 samples at once: the 1024 that were set do not fit"
    assert saving(training, found.size, 256) == 0.0


def test_where_nothing_fits_the_setting_is_left_alone() -> None:
    found = chosen(BatchTraining(Model(), 64, fits=0), 16)
    assert (found.size, found.expected_saving, found.confidence) == (16, 0.0, 0.0)
    assert found.curve is None
    assert "no micro-batch could be measured" in found.explanation[0]


def test_memory_that_runs_out_later_takes_a_size_with_it() -> None:
    training = BatchTraining(Model(), 256, 0.005)

    def longer_sequences_later(size: int, seconds: float) -> Measurement | OutOfMemory | Refused:
        again = size in [asked for asked, _ in training.asked]
        outcome = training.measure(size, seconds)
        return OutOfMemory(size) if again and size >= 128 else outcome

    found = search_micro_batch(longer_sequences_later, candidates(8, 32), start=8, share=256)
    assert found.size == 64
    assert {one.size: one.why for one in found.tried}[256] == "out of memory"
    assert {window.size for window in found.windows} == {8, 16, 32, 64}


def test_a_size_that_is_refused_is_left_out_alone() -> None:
    training = BatchTraining(Model(), 256, 0.005, refused=(256, 32))
    found = chosen(training, 8)
    assert found.size == 128
    assert "32 samples at once cannot be used: its gradients differ" in found.explanation
    refused = chosen(BatchTraining(Model(), 256, refused=(8,)), 8)
    assert (refused.size, refused.expected_saving) == (8, 0.0)


def test_what_may_not_fit_is_guarded() -> None:
    def guarded(fits: int | None) -> dict[int, bool]:
        task = MicroBatchTask(start=8, candidates=(4, 8, 16, 32, 64), share=64, fits=fits)
        training = BatchTraining(Model(), 64)
        seen: dict[int, bool] = {}
        state, action = begin(task)
        while True:
            seen.setdefault(action.size, action.guarded)
            state, following = step(state, training.measure(action.size, action.seconds))
            if isinstance(following, Done):
                return seen
            action = following

    assert guarded(32) == {8: False, 16: False, 32: False, 64: True}
    assert guarded(None) == {8: False, 16: True, 32: True, 64: True}
    assert guarded(4)[8]

    ran = MicroBatchTask(start=8, candidates=(4, 8, 16), share=16, fits=4)
    state, action = begin(ran)
    training, again = BatchTraining(Model(), 16, 0.01), []
    while not isinstance(action, Done):
        if any(window.size == action.size for window in state.windows):
            again.append(action.guarded)
        state, action = step(state, training.measure(action.size, action.seconds))  # type: ignore[assignment]
    assert again
    assert not any(again)  # it ran: the prediction was wrong


def test_what_it_says_of_itself_is_so() -> None:
    training = BatchTraining(Model(), 256, 0.005)
    found = chosen(training, 8)
    assert found.expected_saving == pytest.approx(saving(training, found.size, 8), abs=0.01)
    faster = training.model.sample_time_s(found.size) / training.model.sample_time_s(8) - 1
    assert found.expected_slowdown == pytest.approx(faster, abs=0.02)
    assert found.confidence >= 0.99
    tried = {one.size: one for one in found.tried}
    assert tried[8].saving == 0.0
    for one in found.tried:
        assert one.saving == pytest.approx(saving(training, one.size, 8), abs=max(5 * (one.saving_sem or 0), 1e-9))
    assert sum(one.seconds for one in found.tried) == pytest.approx(training.now_s, rel=0.03)


def test_it_explains_fixed_cost_and_saturation() -> None:
    found = chosen(BatchTraining(Model(), 256), 8)  # 0.02 s at 130 W, busy from 100 samples on
    said = "\n".join(found.explanation)
    assert "each micro-batch costs 2.6 J whatever its size: it takes 20 ms at least, at 130 W" in said
    assert "idle power is 76% of the energy with 8 samples at once, and 21% with 128" in said
    assert "from about 100 samples at once the GPU is kept busy" in said
    waiting = chosen(BatchTraining(Model(floor_s=0.06), 256), 8)
    assert any("every size took the same time" in line for line in waiting.explanation)


def test_host_power_makes_longer_steps_dear() -> None:
    # Without the host the small size costs less, though it takes longer.
    class Slow(Model):
        def sample_energy_j(self, size: int) -> float:
            return 0.1 if size <= 16 else 0.11

        def sample_time_s(self, size: int) -> float:
            return 4e-4 if size <= 16 else 2e-4

    assert chosen(BatchTraining(Slow(), 64), 64).size <= 16
    assert chosen(BatchTraining(Slow(), 64), 64, host_power_w=500.0).size == 64


def test_a_single_size_takes_one_window() -> None:
    training = BatchTraining(Model(), 7)
    found = search_micro_batch(training.measure, (7,), start=7, share=7)
    assert (found.size, found.confidence, len(training.asked)) == (7, 1.0, 1)


def test_an_answer_about_another_size_is_refused() -> None:
    state, _ = begin(MicroBatchTask(start=8, candidates=(4, 8), share=8))
    with pytest.raises(WindowError, match="about 16 samples at once, but 8 were asked about"):
        step(state, OutOfMemory(16))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"share": 0}, "the share is 0"),
        ({"candidates": ()}, r"the candidates are \(\)"),
        ({"candidates": (16, 8)}, "in rising order"),
        ({"candidates": (8, 8)}, "different sizes"),
        ({"candidates": tuple(2**power for power in range(9)), "share": 256}, "one to 8"),
        ({"start": 2}, "the start is 2, not one of"),
        ({"candidates": (8, 24)}, "24 samples at once do not divide the 64"),
        ({"budget_s": 0.0}, "budget_s is 0.0"),
        ({"host_power_w": math.nan}, "host_power_w is nan"),
        ({"levels": ("L2",)}, "1 levels for 2 candidates"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"start": 8, "candidates": (8, 16), "share": 64}
    MicroBatchTask(**good)
    with pytest.raises(ConfigError, match=said):
        MicroBatchTask(**{**good, **asked})


def test_a_remembered_size_is_verified_by_a_search_of_two() -> None:
    for seed in range(10):
        training = BatchTraining(Model(), 256, 0.005, seed)
        found = search_micro_batch(training.measure, (8, 128), start=8, share=256)
        assert found.size == 128
        assert training.now_s <= 20
        stale = BatchTraining(Model(floor_s=0.0, spill_from=64), 256, 0.005, seed)
        assert search_micro_batch(stale.measure, (8, 128), start=8, share=256).size == 8
        assert stale.now_s <= 20
