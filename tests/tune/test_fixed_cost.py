"""The curve of fixed cost is that of the sizes it was fitted to, and says no more than they do."""

from __future__ import annotations

import pytest
from batch_trainings import Model
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.tune import FixedCost
from energy_plugins.tune.micro_batch.fixed_cost import SizeCost

SIZES = (4, 8, 16, 32, 64, 128, 256)


def costs(model: Model, sizes: tuple[int, ...] = SIZES) -> list[SizeCost]:
    return [SizeCost(size, model.time_s(size), size * model.sample_energy_j(size)) for size in sizes]


def fitted(model: Model, sizes: tuple[int, ...] = SIZES) -> FixedCost:
    curve = FixedCost.fit(costs(model, sizes))
    assert curve is not None
    return curve


@given(floor_s=st.floats(0.01, 0.02), sample_s=st.floats(2e-4, 5e-4), idle_w=st.floats(50, 200), j=st.floats(0.02, 0.5))
def test_it_finds_what_the_sizes_were_made_of(floor_s: float, sample_s: float, idle_w: float, j: float) -> None:
    model = Model(floor_s, sample_s, idle_w, j)
    curve = fitted(model)
    assert curve.floor_s == pytest.approx(floor_s)
    assert curve.sample_s == pytest.approx(sample_s)
    assert curve.busy_from == pytest.approx(floor_s / sample_s)
    for size in (*SIZES, 512):
        assert curve.energy_j(size) == pytest.approx(size * model.sample_energy_j(size), rel=0.02)
        assert curve.time_s(size) == pytest.approx(model.time_s(size))
    share = 1024
    assert curve.step_energy_j(256, share) == pytest.approx(share * model.sample_energy_j(256), rel=0.02)
    assert curve.idle_share(8) > curve.idle_share(256)


@given(sizes=st.lists(st.integers(1, 512), min_size=2, max_size=8, unique=True), factor=st.floats(0.1, 10.0))
def test_twice_the_joules_make_twice_the_curve(sizes: list[int], factor: float) -> None:
    one = costs(Model(), tuple(sizes))
    more = [SizeCost(cost.size, cost.time_s, factor * cost.energy_j) for cost in one]
    first, second = FixedCost.fit(one), FixedCost.fit(more)
    assert first is not None
    assert second is not None
    assert second.energy_j(100) == pytest.approx(factor * first.energy_j(100), rel=1e-6)
    assert min(second.idle_w, second.sample_j, second.floor_s) >= 0


def test_where_the_gpu_was_never_busy_it_does_not_say_when_it_will_be() -> None:
    curve = fitted(Model(), (4, 8, 16))
    assert curve.sample_s is None
    assert curve.busy_from is None
    assert curve.fixed_j == pytest.approx(130 * 0.02, rel=1e-3)


def test_a_host_that_scatters_is_not_a_busy_gpu() -> None:
    # ResNet-50 on an H200, 4 and 8 samples: 19.7 and 24.0 ms, though 64 take 20.9 ms.
    curve = FixedCost.fit([SizeCost(4, 0.0197, 3.11), SizeCost(8, 0.0240, 4.02)])
    assert curve is not None
    assert curve.sample_s is None


def test_where_the_gpu_was_always_busy_there_is_no_fixed_cost() -> None:
    curve = fitted(Model(floor_s=0.0))
    assert (curve.floor_s, curve.fixed_j, curve.idle_w) == (0.0, 0.0, 0.0)
    assert curve.energy_j(64) == pytest.approx(64 * Model(floor_s=0.0).sample_energy_j(64))


def test_one_size_makes_no_curve() -> None:
    assert FixedCost.fit(costs(Model(), (8,))) is None


def test_noise_makes_no_negative_power() -> None:
    # Energy falls while time rises, as no GPU does: the idle power that would explain it is below 0.
    curve = FixedCost.fit([SizeCost(4, 0.03, 1.0), SizeCost(8, 0.02, 3.0), SizeCost(16, 0.02, 8.0)])
    assert curve is not None
    assert curve.idle_w == 0.0
    assert curve.sample_j > 0
    work = FixedCost.fit([SizeCost(4, 0.02, 3.0), SizeCost(8, 0.022, 2.9), SizeCost(16, 0.02, 2.0)])
    assert work is not None
    assert work.sample_j == 0.0
    assert work.idle_w > 0
