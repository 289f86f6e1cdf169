"""What is expected of a fit, and how often its budget is looked at."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.measure.budget import Budget
from energy_plugins.measure.forecast import (
    Forecast,
    Limits,
    Pace,
    Position,
    Spent,
    about,
    batches_left,
    in_short,
)

positive = st.floats(1e-3, 1e3)


def paced(*figures: tuple[int, float, float], rest_s: float = 0.0, rest_j: float = 0.0) -> Pace:
    """Return the pace of stretches of ``(steps, seconds a step, joules a step)``, each with a rest at its end."""
    spent = Spent(t_s=1.0, energy_j=100.0, steps=1, step_s=0.5, step_j=50.0)
    pace = Pace().seen(spent)
    for steps, each_s, each_j in figures:
        spent = Spent(
            t_s=spent.t_s + steps * each_s + rest_s,
            energy_j=spent.energy_j + steps * each_j + rest_j,
            steps=spent.steps + steps,
            step_s=spent.step_s + steps * each_s,
            step_j=spent.step_j + steps * each_j,
        )
        pace = pace.seen(spent)
    return pace


def expected(pace: Pace, left: int, **more: float) -> Forecast:
    assert pace.last is not None
    forecast = pace.forecast(left, made=pace.last.steps, **more)
    assert forecast is not None
    return forecast


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), positive, positive, st.integers(0, 10**6))
def test_a_constant_pace_is_foretold_exactly(stretches: list[int], each_s: float, each_j: float, left: int) -> None:
    pace = paced(*((steps, each_s, each_j) for steps in [*stretches, 10 + math.ceil(10 / each_s)]))
    forecast = expected(pace, left)
    assert pace.last is not None
    assert forecast.left_s == pytest.approx(left * each_s)
    assert forecast.energy_j == pytest.approx(pace.last.energy_j + left * each_j)


@given(st.integers(0, 10**6), st.integers(0, 10**6), positive, positive)
def test_more_steps_and_dearer_steps_cost_no_less(left: int, more: int, each_j: float, extra_j: float) -> None:
    base, dearer = paced((100, 0.2, 5.0), (100, 0.2, each_j)), paced((100, 0.2, 5.0), (100, 0.2, each_j + extra_j))
    assert expected(base, left).energy_j <= expected(base, left + more).energy_j
    assert expected(base, left).left_s <= expected(base, left + more).left_s
    assert expected(base, left).energy_j <= expected(dearer, left).energy_j


def test_validations_so_far_are_taken_to_go_on() -> None:
    pace = paced(*[(100, 0.1, 5.0)] * 4, rest_s=5.0, rest_j=100.0)
    assert expected(pace, 1000).left_s == pytest.approx(1000 * 0.1 + 10 * 5.0)
    assert expected(pace, 1000).energy_j == pytest.approx(100 + 400 * 6.0 + 1000 * 6.0)


def test_a_slow_beginning_is_forgotten_and_a_new_pace_followed() -> None:
    warmed = paced((10, 5.0, 500.0), *[(100, 0.1, 5.0)] * 20)
    assert expected(warmed, 1000).energy_j - expected(warmed, 0).energy_j == pytest.approx(5000, rel=0.02)
    # However long it went at one pace, half of what counts is of the last ten minutes, and 7/8 of the last thirty.
    changed = paced(*[(10_000, 1.0, 100.0)] * 100, *[(100, 1.0, 200.0)] * 18)
    assert expected(changed, 1000).energy_j - expected(changed, 0).energy_j == pytest.approx(187_500, rel=0.01)


@pytest.mark.parametrize(
    ("steps", "each_s", "enough"), [(9, 2.0, False), (10, 2.0, True), (99, 0.1, False), (101, 0.1, True)]
)
def test_nothing_is_said_before_enough_is_known(steps: int, each_s: float, *, enough: bool) -> None:
    pace = paced((steps, each_s, 1.0))
    assert (pace.forecast(5, made=steps + 1) is not None) is enough


def test_nothing_is_said_without_figures_or_an_end() -> None:
    empty = Spent(t_s=99.0, energy_j=1e4, steps=0, step_s=0, step_j=0)
    assert Pace().seen(empty) == Pace()
    assert Pace().forecast(5, made=0) is None
    assert paced((100, 1.0, 1.0)).forecast(None, made=100) is None


def test_figures_without_a_new_step_change_nothing() -> None:
    pace = paced((100, 1.0, 1.0))
    assert pace.last is not None
    assert pace.seen(dataclasses.replace(pace.last, t_s=1e9, energy_j=1e9)) is pace


def test_steps_that_the_figures_lack_are_paid_for_but_take_no_more_time() -> None:
    pace = paced((100, 1.0, 7.0))
    assert pace.last is not None
    late = pace.forecast(50, made=pace.last.steps + 3)
    assert late is not None
    assert late.energy_j == pytest.approx(expected(pace, 50).energy_j + 3 * 7)
    assert late.left_s == expected(pace, 50).left_s


@pytest.mark.parametrize(("seconds", "steps"), [(1e9, 50), (20.0, 20), (0.0, 0), (-3.0, 0)])
def test_a_limit_of_time_ends_it_sooner(seconds: float, steps: int) -> None:
    pace = paced((100, 1.0, 7.0))
    assert expected(pace, 50, seconds_left=seconds) == expected(pace, steps)


def test_a_limit_of_time_alone_is_an_end() -> None:
    pace = paced((100, 1.0, 7.0))
    forecast = pace.forecast(None, made=101, seconds_left=40.0)
    assert forecast == expected(pace, 40)


def walk(limits: Limits, per_epoch: int, each: int, start: int) -> int:
    """Count all batches as a trainer does, and compare those after the first ``start`` with what is foretold."""
    epoch, batch, steps, made = 0, 0, 0, 0
    position = None
    while epoch < (limits.epochs or 10**9) and steps < (limits.optimizer_steps or 10**9):
        if made == start:
            position = Position(epochs=epoch, batches=batch, optimizer_steps=steps)
        batch, made = batch + 1, made + 1
        steps += batch % each == 0 or batch == per_epoch
        if batch == per_epoch:
            epoch, batch = epoch + 1, 0
    left = batches_left(limits, position or Position(epochs=epoch, batches=batch, optimizer_steps=steps))
    assert left == max(made - start, 0) or position is None
    return made


@given(st.data())
def test_batches_left_are_those_that_a_trainer_makes(data: st.DataObject) -> None:
    per_epoch, each = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    limits = Limits(
        batches_per_epoch=per_epoch,
        epochs=data.draw(st.integers(1, 5)),
        optimizer_steps=data.draw(st.none() | st.integers(1, 20)),
        batches_per_optimizer_step=each,
    )
    for start in range(walk(limits, per_epoch, each, 0)):
        walk(limits, per_epoch, each, start)


@pytest.mark.parametrize(
    ("limits", "position", "left"),
    [
        (Limits(), (0, 3, 3), None),
        (Limits(epochs=5), (0, 3, 3), None),
        (Limits(batches_per_epoch=10), (0, 3, 3), None),
        (Limits(optimizer_steps=10), (2, 3, 4), 6),
        (Limits(optimizer_steps=10, batches_per_optimizer_step=4), (0, 6, 1), 34),
        (Limits(optimizer_steps=10), (2, 3, 12), 0),
        (Limits(batches_per_epoch=10, epochs=2), (0, 10, 10), 10),  # the epoch is over, though nobody has said so
        (Limits(batches_per_epoch=10, epochs=2), (2, 0, 20), 0),
        # A training step that optimises itself, twice a batch.
        (Limits(optimizer_steps=100, batches_per_optimizer_step=None), (0, 10, 20), 40),
        (Limits(optimizer_steps=100, batches_per_optimizer_step=None, batches_per_epoch=8), (1, 2, 20), 40),
        (Limits(optimizer_steps=100, batches_per_optimizer_step=None), (1, 10, 20), None),
        (Limits(optimizer_steps=100, batches_per_optimizer_step=None), (0, 0, 0), None),
    ],
)
def test_batches_left(limits: Limits, position: tuple[int, int, int], left: int | None) -> None:
    epochs, batches, steps = position
    assert batches_left(limits, Position(epochs=epochs, batches=batches, optimizer_steps=steps)) == left


def test_in_short() -> None:
    forecast = Forecast(energy_j=756e3, left_s=840)
    assert in_short(12_345, forecast) == "12.35 kJ of ~0.21 kWh, 14 min left"
    assert in_short(12_345, forecast, 360e3) == "12.35 kJ of ~0.31 kWh, 14 min left"
    assert in_short(12_345, None) == "12.35 kJ"
    assert [about(seconds) for seconds in (0.2, 99, 101, 5900, 7620)] == [
        "0 s",
        "99 s",
        "2 min",
        "98 min",
        "2 h 07 min",
    ]


@pytest.mark.parametrize("kwh", [0, -1, math.nan, math.inf, "0.2", True, [1.0]])
def test_a_budget_that_is_none(kwh: object) -> None:
    with pytest.raises(ValueError, match=r"energy_budget_kwh is .*: give a positive number"):
        Budget.of_kwh(kwh)


def test_a_budget() -> None:
    budget = Budget.of_kwh(0.5)
    assert budget.energy_j == 1.8e6
    assert str(budget) == "energy budget of 0.5 kWh"
    assert [budget.spent(total_j) for total_j in (0, 1.79e6, 1.8e6)] == [False, False, True]


@given(st.floats() | st.just(math.nan), st.floats() | st.just(math.inf), st.integers(0, 1000))
def test_looks_come_again_whatever_was_told(total_j: float, drawn_j: float, steps: int) -> None:
    assert 1 <= Budget(1e6).steps_to_next_look(total_j, drawn_j, steps) <= 100


@given(st.floats(1e3, 1e7), st.floats(0.0, 0.9), st.floats(0.1, 1e4))
def test_looks_are_few_and_a_pace_that_doubles_does_not_overspend(
    energy_j: float, earlier: float, step_j: float
) -> None:
    budget = Budget(energy_j)
    total_j = earlier_j = earlier * energy_j
    steps = looks = 0
    while not budget.spent(total_j):
        ahead = budget.steps_to_next_look(total_j, total_j - earlier_j, steps)
        assert ahead == 1 or total_j + 2 * step_j * ahead <= energy_j * (1 + 1e-9)  # were it to double now
        steps, looks = steps + ahead, looks + 1
        total_j = earlier_j + steps * step_j
        assert total_j < energy_j + 2 * step_j
    assert looks <= 40 + steps / 100
