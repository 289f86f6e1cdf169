"""Which groups of batches are checked before they run otherwise, and what is said once one has not agreed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_plugins.training.micro_batch.doubt import Doubt, first_of
from energy_plugins.training.micro_batch.gate import AGREEING, Gate
from energy_plugins.training.micro_batch.gradient_check import GradientCheck
from energy_plugins.training.micro_batch.later_checks import LaterChecks, alone, is_due, whole_groups
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.micro_batch.sample_counts import SampleCounts

SAME, APART, OVERFLOWN = GradientCheck(1e-8, 1e-5), GradientCheck(0.5, 1e-5), GradientCheck(float("nan"), 1e-5)
CUT, MERGED = MicroBatchPlan(4, 1, 2), MicroBatchPlan(2, 2, 4)


def labels(*kept: int, length: int = 100) -> dict[str, torch.Tensor]:
    """Return labels of sentences, of which so many are not to be ignored."""
    made = torch.arange(1, length + 1).repeat(len(kept), 1)
    return {"labels": made.masked_fill(torch.arange(length) >= torch.tensor(kept)[:, None], -100)}


class Asked:
    """Answers as it is told, and counts."""

    def __init__(self, answer: GradientCheck | Exception | None = SAME) -> None:
        self.answer, self.groups = answer, list[Sequence[Any]]()

    def __call__(self, group: Sequence[Any], plan: MicroBatchPlan) -> GradientCheck | None:
        self.groups.append(group)
        assert plan.batch * plan.accumulation == sum(len(batch["labels"]) for batch in group)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class OnTheirWay(SampleCounts):
    """Counts as a GPU makes them: they are here when they are asked for."""

    @property
    def is_here(self) -> bool:
        return False


class TestSampleCounts:
    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            (torch.tensor([[5, 6, -100, -100], [5, 6, 7, 8]]), 0.5),
            (torch.tensor([[5, 6, 7, 255], [5, 6, 7, 8]], dtype=torch.uint8), 0.25),
            (torch.tensor([[5, 6, 0, 0], [5, 6, 7, 0]]), 1 / 3),
            (torch.tensor([[5, 6, 9, 9, 9], [5, 6, 7, 8, 9]]), 0.5),
            (torch.tensor([[True, False], [True, True]]), 0.5),
            (torch.tensor([[1.0, 0.5], [1.0, 1.0]]), 0.25),
            (torch.tensor([[1.0, float("nan")], [1.0, 1.0]]), 0.5),
            (torch.tensor([3, -1]), 1.0),
            (torch.tensor([[5, 6, 7], [7, 5, 6]]), 0.0),
        ],
    )
    def test_what_a_loss_may_be_divided_by_is_told_apart(self, rows: torch.Tensor, expected: float) -> None:
        assert max(SampleCounts([rows]).spreads([1, 1])) == pytest.approx(expected)
        assert max(SampleCounts([rows[:1], {"x": rows[1:]}]).spreads([1, 1])) == pytest.approx(expected)

    def test_many_numbers_in_floating_point_are_data(self) -> None:
        half = torch.zeros(1025, 1024)
        half[:512] = 1
        assert SampleCounts([half[:1024]]).spreads([512, 512])[1] == 1
        assert SampleCounts([half]).spreads([512, 513]) == []

    def test_what_cannot_be_counted_has_no_spread(self) -> None:
        assert SampleCounts([torch.ones(2, 5000)]).spreads([1, 1]) == []
        assert SampleCounts([torch.ones(2, 3, dtype=torch.complex64)]).spreads([1, 1]) == []
        assert SampleCounts([{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}]).spreads([2, 2]) == []

    @settings(max_examples=30)
    @given(kept=st.lists(st.integers(1, 20), min_size=2, max_size=8), times=st.integers(1, 4))
    def test_parts_have_means_over_their_samples(self, kept: list[int], times: int) -> None:
        """As many copies of each as you like, in parts of as many more samples, are as unequal."""
        one = SampleCounts([labels(*kept, length=20)]).spreads([1] * len(kept))
        more = [each for each in kept for _ in range(times)]
        assert SampleCounts([labels(*more, length=20)]).spreads([times] * len(kept)) == pytest.approx(one)
        assert one[0] == pytest.approx(1 - min(kept) / max(kept))


class TestAllow:
    @pytest.mark.parametrize(("group", "plan"), [([labels(9, 9, 9, 9)], CUT), ([labels(9, 9), labels(9, 9)], MERGED)])
    def test_equal_parts_are_never_checked(self, group: list[Any], plan: MicroBatchPlan) -> None:
        checks, asked = LaterChecks(), Asked(APART)
        assert all(checks.allow(group, plan, asked, step) for step in range(1, 50))
        assert not asked.groups
        assert checks.doubt is None

    @pytest.mark.parametrize(("group", "plan"), [([labels(9, 9, 9, 8)], CUT), ([labels(9, 9), labels(9, 8)], MERGED)])
    def test_unequal_ones_are_checked_before_they_run(self, group: list[Any], plan: MicroBatchPlan) -> None:
        checks, asked = LaterChecks(), Asked(APART)
        assert not checks.allow(group, plan, asked, 7)
        assert asked.groups == [group]
        assert checks.doubt == Doubt(7, 0.5, 0, 0)
        assert "no step is known to have been made with such gradients" in checks.doubt.why()
        assert not checks.allow([labels(9, 9, 9, 9)], CUT, asked, 8)
        assert checks.made == 1

    @settings(max_examples=30)
    @given(kept=st.lists(st.lists(st.integers(1, 100), min_size=4, max_size=4), max_size=60))
    def test_where_all_agree_checks_are_few_and_none_runs_that_is_twice_as_unequal(self, kept: list[list[int]]) -> None:
        checks, asked, known = LaterChecks(), Asked(), 0.0
        for step, each in enumerate(kept, 1):
            group, before = [labels(*each)], len(asked.groups)
            assert checks.allow(group, CUT, asked, step)
            spread = SampleCounts(group).spreads([2, 2])[0]
            if len(asked.groups) > before:
                known = max(known, spread)
            assert spread <= 2 * known + 1e-6
        assert checks.made == len(asked.groups) <= 3 * 9  # of three counts, each twice as unequal: 1/200 to 1

    def test_what_was_seen_at_the_start_is_known(self) -> None:
        checks, asked = LaterChecks(), Asked(APART)
        checks.learn([labels(9, 9, 5, 5)], CUT, SAME, 3)
        assert checks.allow([labels(9, 9, 4, 4)], CUT, asked, 4)
        assert not asked.groups
        part = LaterChecks()
        part.learn([labels(9, 9, 5, 5)], MicroBatchPlan(4, 1, 1), GradientCheck(0.0, 1e-5, samples=2), 3)
        assert not part.allow([labels(9, 9, 4, 4)], CUT, asked, 4)

    @pytest.mark.parametrize(
        "answer", [None, OVERFLOWN, ValueError("no"), torch.OutOfMemoryError("CUDA out of memory")]
    )
    def test_what_cannot_be_compared_runs_as_it_came_and_three_of_it_end_it(self, answer: Any) -> None:
        checks, asked = LaterChecks(), Asked(answer)
        assert [checks.allow([labels(9, 9, 9, 5)], CUT, asked, step) for step in range(1, 6)] == [False] * 5
        assert len(asked.groups) == 3
        assert checks.doubt is not None
        assert checks.doubt.numbers == (3, -1.0, 0, 0)
        assert checks.doubt.raised == (f"{type(answer).__name__}: {answer}" if isinstance(answer, Exception) else "")
        assert "could not be compared" in checks.doubt.why()

    def test_batches_that_are_no_whole_ones_run_otherwise_only_if_they_are_equal(self) -> None:
        checks, asked = LaterChecks(), Asked(APART)
        assert checks.allow([labels(9, 9, 9)], CUT, asked, 1)
        assert not checks.allow([labels(9, 9, 5)], CUT, asked, 2)
        assert checks.allow([{"labels": "no tensor"}], CUT, asked, 3)
        assert not asked.groups

    def test_whoever_allows_batch_statistics_is_not_asked(self) -> None:
        asked = Asked(APART)
        assert LaterChecks(is_on=False).allow([labels(9, 9, 5, 5)], CUT, asked, 1, due=True)
        assert not asked.groups


class TestHardest:
    """Which batches of a window are run both ways before anything changes."""

    def test_the_batch_with_the_most_unequal_parts_tells_most_and_others_have_their_turn(self) -> None:
        window = [labels(9, 9, 9, 9), labels(9, 9, 5, 5), labels(9, 9, 8, 8)]
        checks, plan = LaterChecks(), MicroBatchPlan(4, 3, 2)
        for other in (0, 2, 0):
            assert checks.hardest(whole_groups(window, plan), plan) == [window[1], window[other]]
            checks.made += 1

    def test_batches_that_run_together_are_one_group(self) -> None:
        window = [labels(9, 9), labels(9, 9), labels(9, 9), labels(9, 5)]
        plan = MicroBatchPlan(2, 4, 4)
        assert LaterChecks().hardest(whole_groups(window, plan), plan) == [*window[2:], *window[:2]]
        assert LaterChecks().hardest(whole_groups(window, plan), plan, most=1) == window[2:]
        plan = MicroBatchPlan(2, 4, 8)
        assert LaterChecks().hardest(whole_groups(window, plan), plan) == window

    def test_one_that_is_cut_short_tells_nothing(self) -> None:
        short = [labels(9, 9, 9, 9), labels(9, 1)]
        assert whole_groups(short, MicroBatchPlan(4, 2, 2)) == [short[:1]]
        assert whole_groups(short, MicroBatchPlan(4, 2, 8)) == []
        assert whole_groups([], MicroBatchPlan(4, 2, 2)) == []

    @pytest.mark.parametrize(
        ("plan", "batches", "size"),
        [((4, 6, 2), 1, 2), ((4, 6, 2), 2, 2), ((4, 6, 8), 2, 8), ((4, 6, 8), 4, 8), ((4, 6, 12), 2, 8)],
    )
    def test_they_run_as_they_would_in_their_window(self, plan: tuple[int, int, int], batches: int, size: int) -> None:
        assert alone(MicroBatchPlan(*plan), batches) == MicroBatchPlan(4, batches, size)


class TestDue:
    def test_steps_are_fixed_and_rarer_as_time_goes_on(self) -> None:
        assert [step for step in range(1, 300_000) if is_due(step)] == [1, 10, 100, 20_000, 200_000]

    def test_one_group_of_such_a_step_is_checked_and_the_steps_before_are_in_doubt(self) -> None:
        checks, asked, equal = LaterChecks(), Asked(), [labels(9, 9, 9, 9)]
        assert checks.allow(equal, CUT, asked, 4, due=True)
        assert checks.allow(equal, CUT, asked, 4, due=True)
        assert checks.made == 1
        asked.answer = APART
        assert not checks.allow(equal, CUT, asked, 13, due=True)
        assert checks.doubt == Doubt(13, 0.5, 5, 12)
        assert "those of steps 5 to 12 may have differed by as much" in checks.doubt.why()

    def test_it_is_another_group_of_the_step_each_time(self) -> None:
        """Tasks may take turns in a window, and one of them may be the only one whose gradients differ."""
        checks, asked, plan = LaterChecks(), Asked(), MicroBatchPlan(4, 3, 2)
        for step, group in ((1, 0), (10, 1), (100, 2), (20_000, 0)):
            for batch in range(3):
                before = len(asked.groups)
                assert checks.allow([labels(9, 9, 9, 9)], plan, asked, step, due=True)
                assert len(asked.groups) - before == (batch == group)

    def test_one_that_tells_nothing_changes_nothing(self) -> None:
        checks, asked = LaterChecks(), Asked(OVERFLOWN)
        assert all(checks.allow([labels(9, 9, 9, 9)], CUT, asked, step, due=True) for step in range(1, 9))
        assert checks.doubt is None


class TestOnAGpu:
    def test_counts_are_read_when_the_next_group_comes(self) -> None:
        checks, asked = LaterChecks(count=OnTheirWay), Asked(APART)
        unequal, equal = [labels(9, 9, 9, 5)], [labels(9, 9, 9, 9)]
        assert checks.allow(equal, CUT, asked, 1)
        assert checks.allow(unequal, CUT, asked, 2)
        assert not asked.groups
        assert not checks.allow(equal, CUT, asked, 3)
        assert asked.groups == [unequal]
        assert checks.doubt == Doubt(2, 0.5, 2, 2)
        assert "those of steps 2 to 2 may have differed" in checks.doubt.why()

    def test_after_one_that_could_not_be_compared_they_are_waited_for(self) -> None:
        checks, asked, unequal = LaterChecks(count=OnTheirWay), Asked(None), [labels(9, 9, 9, 5)]
        assert checks.allow(unequal, CUT, asked, 1)
        assert not checks.allow(unequal, CUT, asked, 2)  # the first is asked for, and this one, too
        assert len(asked.groups) == 2
        asked.answer = SAME
        assert checks.allow(unequal, CUT, asked, 3)
        assert checks.doubt is None


class Ranks:
    """What a rank of several hears: itself, and another that says what it is told."""

    def __init__(self, *other: float) -> None:
        self.other = other

    def hear(self, own: Sequence[float]) -> list[tuple[float, ...]]:
        return [tuple(own), self.other] if self.other else [tuple(own)]


class TestGate:
    def test_several_windows_have_to_agree(self) -> None:
        gate = Gate(Ranks())  # type: ignore[arg-type]
        for _ in range(AGREEING):
            assert gate.is_open is None
            gate.look(lambda: SAME)
        assert gate.is_open

    def test_one_that_does_not_shuts_it(self) -> None:
        gate = Gate(Ranks())  # type: ignore[arg-type]
        gate.look(lambda: SAME)
        gate.look(lambda: APART)
        assert gate.is_open is False
        assert gate.difference == 0.5

    @pytest.mark.parametrize("ranks", [Ranks(), Ranks(1.0, 0.0, 1.0)])
    def test_one_is_enough_where_whole_batches_do_not_fit_on_some_rank(self, ranks: Ranks) -> None:
        gate = Gate(ranks)  # type: ignore[arg-type]
        gate.look(lambda: SAME if ranks.other else GradientCheck(0.0, 1e-5, samples=2))
        assert gate.is_open


def test_all_ranks_say_the_same_of_what_some_have_found() -> None:
    nothing = Doubt(0, 0, 0, 0)
    assert first_of([nothing, nothing]) is None
    assert first_of([nothing, Doubt(9, 0.2, 0, 0)]) == Doubt(9, 0.2, 0, 0)
    assert first_of([Doubt(9, 0.2, 7, 8), Doubt(8, 0.3, 0, 0)]) == Doubt(8, 0.3, 7, 8)


class TestWhatCannotBeCounted:
    def test_batches_that_nobody_can_count_run_all_the_same(self) -> None:
        def fails(_batches: Sequence[Any]) -> SampleCounts:
            raise torch.OutOfMemoryError("CUDA out of memory")

        checks, asked = LaterChecks(count=fails), Asked()
        checks.learn([labels(9, 9, 9, 9)], CUT, SAME, 1)
        assert checks.allow([labels(9, 9, 9, 8)], CUT, asked, 2)
        assert checks.allow([labels(9, 9, 9, 8)], CUT, asked, 10, due=True)
        assert (checks.made, checks.doubt) == (1, None)
