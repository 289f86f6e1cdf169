"""What a larger effective batch would save is told, with a rule and its source; it grows where that is asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.errors import ConfigError
from energy_plugins.tune import FixedCost, effective_batch_outlook, grow, rule_of, rule_to_try

CURVE = FixedCost(floor_s=0.02, sample_s=2e-4, idle_w=130.0, sample_j=0.1)
UNSEEN = FixedCost(floor_s=0.02, sample_s=None, idle_w=130.0, sample_j=0.1)
LINEAR = rule_of("linear")

curves = st.builds(
    FixedCost,
    floor_s=st.floats(0.0, 0.1),
    sample_s=st.one_of(st.none(), st.floats(1e-5, 1e-2)),
    idle_w=st.floats(0.0, 200.0),
    sample_j=st.floats(0.01, 1.0),
)


def test_it_tells_what_the_curve_says() -> None:
    outlook = effective_batch_outlook(CURVE, share=8, micro_batch=8, ranks=2, rule=LINEAR)
    assert outlook.effective_batch == 16
    assert [(row.effective_batch, row.micro_batch) for row in outlook.grown] == [
        (32, 16),
        (64, 32),
        (128, 64),
        (256, 128),
    ]  # fmt: skip - busy from 100 on
    now_j = CURVE.energy_j(8) / 8
    for row in outlook.grown:
        assert row.saving == pytest.approx(1 - CURVE.energy_j(row.micro_batch) / row.micro_batch / now_j)
        assert not row.at_most
    best = outlook.best
    assert best is not None
    assert best.micro_batch == 128
    first, second = outlook.sentences
    assert "an effective batch of 256 instead of 16, 128 samples at once, would save about 70%" in first
    assert "nothing was done" in second
    assert "multiply the learning rate by 16 (linear: Goyal et al. 2017, arXiv:1706.02677" in second


@given(curve=curves, share=st.integers(1, 512), ranks=st.integers(1, 8), most_w=st.one_of(st.none(), st.just(700.0)))
def test_each_row_saves_more_than_the_one_before(
    curve: FixedCost, share: int, ranks: int, most_w: float | None
) -> None:
    outlook = effective_batch_outlook(curve, share=share, micro_batch=share, ranks=ranks, rule=LINEAR, most_w=most_w)
    savings = [row.saving for row in outlook.grown]
    assert savings == sorted(savings)
    assert all(0 < saving < 1 for saving in savings)
    assert all(row.effective_batch % (row.micro_batch * ranks) == 0 for row in outlook.grown)
    assert bool(outlook.sentences) == bool(savings)


def test_where_the_gpu_was_never_busy_it_says_at_most() -> None:
    bound = effective_batch_outlook(UNSEEN, share=8, micro_batch=8, rule=LINEAR)
    assert all(row.at_most for row in bound.grown)
    assert "would save at most" in bound.sentences[0]
    # Drawing no more than 400 W above idle, a sample of 0.1 J takes 0.25 ms at least.
    limited = effective_batch_outlook(UNSEEN, share=8, micro_batch=8, rule=LINEAR, most_w=530.0)
    assert bound.best is not None
    assert limited.best is not None
    assert limited.best.saving < bound.best.saving
    assert limited.best.saving == pytest.approx(1 - (0.1 + 130 * 0.1 / 400) / (0.1 + 130 * 0.02 / 8))


def test_what_does_not_fit_is_not_told() -> None:
    fits = effective_batch_outlook(CURVE, share=8, micro_batch=8, rule=LINEAR, fits=32)
    assert [row.micro_batch for row in fits.grown] == [16, 32]
    none = effective_batch_outlook(CURVE, share=8, micro_batch=8, rule=LINEAR, fits=8)
    assert (none.grown, none.best, none.sentences) == ((), None, ())


def test_where_there_is_nothing_to_save_it_says_nothing() -> None:
    assert effective_batch_outlook(CURVE, share=512, micro_batch=512, rule=LINEAR).sentences == ()


@given(k=st.floats(1.0, 1024.0))
def test_rules_are_those_of_their_sources(k: float) -> None:
    assert rule_of("linear").factor(k) == pytest.approx(k)
    assert rule_of("sqrt").factor(k) == pytest.approx(math.sqrt(k))
    assert rule_of("none").factor(k) == 1.0
    assert "1706.02677" in rule_of("linear").source
    assert "1404.5997" in rule_of("sqrt").source
    assert "2205.10287" in rule_of("sqrt").source


def test_the_rule_to_try_goes_with_the_optimizer() -> None:
    assert rule_to_try("SGD").name == "linear"
    assert rule_to_try("AdamW").name == "sqrt"
    assert rule_to_try(None).name == "sqrt"


def test_there_is_no_other_rule() -> None:
    with pytest.raises(ConfigError, match="learning_rate_rule is 'cubic', but must be one of 'linear', 'sqrt', 'none'"):
        rule_of("cubic")


@given(batch=st.integers(1, 64), accumulation=st.integers(1, 16), ranks=st.integers(1, 8), most=st.integers(1, 100_000))
def test_it_grows_as_far_as_is_allowed_and_no_further(batch: int, accumulation: int, ranks: int, most: int) -> None:
    plan = grow(batch, accumulation, ranks=ranks, most=most, rule=rule_of("sqrt"))
    before = batch * accumulation * ranks
    if plan is None:
        assert 2 * before > most
        return
    assert plan.before == before
    assert plan.after <= most < 2 * plan.after
    assert plan.after == batch * plan.accumulation * ranks
    assert plan.learning_rate_factor == pytest.approx(math.sqrt(plan.after / before))
    assert plan.sentence.startswith("TRAINING ITSELF WAS CHANGED")


def test_a_maximum_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_effective_batch is 0"):
        grow(8, 1, ranks=1, most=0, rule=LINEAR)
