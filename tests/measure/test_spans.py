"""Marks become spans in GPU time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from measuring import RUN, STEP, WAIT, begin, end, log

from energy_plugins.measure.spans import Closed, Kind, KindCodes, Step, Timeline

FORWARD, VALIDATE = 4, 5
NAMES = ("unattributed", "run", "step", "data_wait", "forward", "validate")


def fed(*rows: tuple[int, ...]) -> Timeline:
    timeline = Timeline()
    timeline.feed(log(*rows))
    return timeline


def durations(timeline: Timeline, end_ns: int) -> dict[int, int]:
    """Return how long each kind was the innermost one."""
    lengths = np.diff([*timeline.edges, end_ns])
    return {kind: int(lengths[np.array(timeline.kinds) == kind].sum()) for kind in set(timeline.kinds)}


def test_codes_are_small_and_given_in_order_of_use() -> None:
    codes = KindCodes()
    assert (codes.code(Kind.RUN), codes.code(Kind.STEP), codes.code(Kind.DATA_WAIT)) == (RUN, STEP, WAIT)
    assert codes.code("tokenize") == 4
    assert codes.code(Kind.FORWARD) == 5
    assert codes.code("forward") == 5
    assert codes.names == ("unattributed", "run", "step", "data_wait", "tokenize", "forward")


def test_a_name_for_every_batch_ends_in_one_kind_for_the_rest() -> None:
    codes = KindCodes()
    given = [codes.code(f"batch {number}") for number in range(100_000)]
    assert len(codes.names) == 1001
    assert codes.names[-1] == "other kinds"
    assert set(given[2000:]) == {1000}
    assert (codes.code("batch 5"), codes.code(Kind.STEP)) == (given[5], STEP)


def test_a_moment_belongs_to_the_innermost_span() -> None:
    timeline = fed(begin(RUN, 0), begin(STEP, 10), begin(FORWARD, 12), end(FORWARD, 17), end(STEP, 20), end(RUN, 30))
    assert timeline.edges == [0, 10, 12, 17, 20, 30]
    assert timeline.kinds == [RUN, STEP, FORWARD, STEP, RUN, KindCodes.UNATTRIBUTED]
    assert durations(timeline, 30) == {RUN: 20, STEP: 5, FORWARD: 5, KindCodes.UNATTRIBUTED: 0}
    assert timeline.steps == [Step(10, 20, -1, -1, (), None, ((FORWARD, 5),))]
    assert timeline.spans == [Closed(FORWARD, 12, 17), Closed(RUN, 0, 30)]
    assert timeline.faults == {}


def test_a_step_knows_the_spans_that_lay_in_it_and_no_others() -> None:
    timeline = fed(
        begin(STEP, 0), begin(FORWARD, 1), end(FORWARD, 3), begin(FORWARD, 3), end(FORWARD, 7), end(STEP, 10),
        begin(VALIDATE, 11), end(VALIDATE, 20), begin(STEP, 20), begin(WAIT, 20), end(WAIT, 22), end(STEP, 30),
    )  # fmt: skip
    assert [list(step.phases) for step in timeline.steps] == [[(FORWARD, 2), (FORWARD, 4)], []]


def test_gpu_time_rules_where_it_is_known() -> None:
    timeline = fed(begin(STEP, 0, 100), end(STEP, 10, 300, samples=8, tokens=512))
    assert timeline.steps == [Step(100, 300, 8, 512, (), None)]


def test_a_mark_without_an_event_waits_for_the_work_queued_before_it() -> None:
    timeline = fed(begin(STEP, 0, 100), end(STEP, 10, 300), begin(FORWARD, 20), end(FORWARD, 400))
    assert timeline.spans == [Closed(FORWARD, 300, 400)]


def test_gpu_time_never_runs_backwards() -> None:
    timeline = fed(begin(STEP, 0, 100), end(STEP, 10, 300), begin(STEP, 20, 299), end(STEP, 30, 350))
    assert [(step.start_ns, step.end_ns) for step in timeline.steps] == [(100, 300), (300, 350)]


def test_stall_is_from_the_end_of_one_step_to_the_work_of_the_next() -> None:
    timeline = fed(begin(STEP, 0), end(STEP, 10), begin(STEP, 14), end(STEP, 20))
    assert [step.stall for step in timeline.steps] == [None, (10, 14)]


def test_a_wait_between_steps_is_stall_and_belongs_to_the_step_after_it() -> None:
    timeline = fed(begin(STEP, 0), end(STEP, 10), begin(WAIT, 11), end(WAIT, 14), begin(STEP, 15), end(STEP, 20))
    first, second = timeline.steps
    assert (first.waits, first.stall) == ((), None)
    assert (second.waits, second.stall) == (((11, 14),), (10, 15))


def test_a_wait_at_the_start_of_a_step_delays_its_work() -> None:
    timeline = fed(begin(STEP, 0), end(STEP, 10), begin(STEP, 11), begin(WAIT, 11), end(WAIT, 16), end(STEP, 20))
    assert (timeline.steps[1].waits, timeline.steps[1].stall) == (((11, 16),), (10, 16))


def test_a_wait_hidden_by_run_ahead_has_no_length() -> None:
    timeline = fed(
        begin(STEP, 0, 0), end(STEP, 5, 1000), begin(WAIT, 6), end(WAIT, 400), begin(STEP, 401), end(STEP, 402, 1500)
    )
    second = timeline.steps[1]
    assert second.waits == ((1000, 1000),)
    assert second.stall == (1000, 1000)
    assert (second.start_ns, second.end_ns) == (1000, 1500)


def test_a_wait_that_outlasts_the_queue_is_charged_from_where_the_gpu_ran_dry() -> None:
    timeline = fed(
        begin(STEP, 0, 0), end(STEP, 5, 100), begin(WAIT, 6), end(WAIT, 400), begin(STEP, 401), end(STEP, 402, 900)
    )
    assert timeline.steps[1].waits == ((100, 400),)
    assert timeline.steps[1].stall == (100, 401)


def test_work_between_steps_is_no_stall() -> None:
    timeline = fed(
        begin(STEP, 0), end(STEP, 10), begin(VALIDATE, 11), end(VALIDATE, 50), begin(STEP, 52), end(STEP, 60)
    )
    assert timeline.steps[1].stall is None


def test_waits_of_a_validation_are_not_charged_to_the_next_step() -> None:
    timeline = fed(
        begin(VALIDATE, 0), begin(WAIT, 5), end(WAIT, 9), end(VALIDATE, 10), begin(WAIT, 11), end(WAIT, 13),
        begin(STEP, 14), end(STEP, 20),
    )  # fmt: skip
    assert timeline.steps[0].waits == ((11, 13),)


def test_a_span_ended_twice_is_counted_and_ignored() -> None:
    timeline = fed(begin(RUN, 0), begin(STEP, 1), end(STEP, 5), end(STEP, 6), end(STEP, 7))
    assert len(timeline.steps) == 1
    assert list(timeline.faults.values()) == [2]
    assert "ended twice" in next(iter(timeline.faults))
    assert durations(timeline, 10) == {RUN: 6, STEP: 4}


def test_a_span_never_ended_is_closed_at_the_end_and_named() -> None:
    timeline = fed(begin(RUN, 0), begin(VALIDATE, 2), begin(STEP, 5))
    timeline.close(10, NAMES)
    assert timeline.steps == [Step(5, 10, -1, -1, (), None)]
    assert timeline.spans == [Closed(VALIDATE, 2, 10), Closed(RUN, 0, 10)]
    assert len(timeline.faults) == 2
    assert all("never ended" in text for text in timeline.faults)
    assert any("'validate'" in text for text in timeline.faults)


def test_where_marks_are_lost_on_the_gpu_nobody_is_blamed() -> None:
    timeline = fed(begin(RUN, 0), begin(STEP, 5))
    timeline.close(10, NAMES, cut_short=True)
    assert len(timeline.steps) == 1
    assert timeline.faults == {}


def test_overlapping_spans_are_both_whole_and_share_by_who_came_last() -> None:
    timeline = fed(begin(RUN, 0), begin(FORWARD, 10), begin(VALIDATE, 20), end(FORWARD, 30), end(VALIDATE, 40))
    assert timeline.spans == [Closed(FORWARD, 10, 30), Closed(VALIDATE, 20, 40)]
    assert durations(timeline, 50) == {RUN: 20, FORWARD: 10, VALIDATE: 20}
    assert ["overlap" in text for text in timeline.faults] == [True]


def test_spans_of_one_kind_may_nest() -> None:
    timeline = fed(begin(FORWARD, 0), begin(FORWARD, 5), end(FORWARD, 8), end(FORWARD, 20))
    assert timeline.spans == [Closed(FORWARD, 5, 8), Closed(FORWARD, 0, 20)]
    assert timeline.faults == {}


def test_work_after_the_window_is_cut_or_dropped() -> None:
    timeline = fed(begin(RUN, 0), begin(STEP, 5), end(STEP, 50), begin(STEP, 50), end(STEP, 90), begin(STEP, 95))
    timeline.close(40, NAMES, cut_short=True)
    timeline.clip(40)
    assert [(step.start_ns, step.end_ns) for step in timeline.steps] == [(5, 40)]
    assert timeline.spans == [Closed(RUN, 0, 40)]


def test_forgetting_keeps_the_segment_that_goes_on() -> None:
    timeline = fed(begin(RUN, 0), begin(STEP, 10), end(STEP, 20), begin(STEP, 30))
    timeline.forget(25)
    assert (timeline.edges, timeline.kinds) == ([20, 30], [RUN, STEP])
    timeline.forget(30)
    assert (timeline.edges, timeline.kinds) == ([30], [STEP])
    timeline.forget(1000)
    assert (timeline.edges, timeline.kinds) == ([30], [STEP])


def test_open_spans_and_waits_are_told_so_that_their_starts_are_kept() -> None:
    timeline = fed(begin(RUN, 0), begin(STEP, 1), end(STEP, 10), begin(WAIT, 12), end(WAIT, 15), begin(STEP, 16))
    assert sorted(timeline.open_starts()) == [0, 10, 12, 16]


rows = st.lists(
    st.tuples(st.sampled_from([STEP, WAIT, FORWARD, VALIDATE]), st.booleans(), st.integers(0, 5), st.integers(-1, 40)),
    max_size=40,
)


@given(rows)
def test_any_order_of_marks_partitions_the_run(drawn: list[tuple[int, bool, int, int]]) -> None:
    host_ns, made = 0, [begin(RUN, 0)]
    for code, begins, later_ns, ahead_ns in drawn:
        host_ns += later_ns
        gpu_ns = host_ns + ahead_ns if ahead_ns >= 0 else -1
        made.append((begin if begins else end)(code, host_ns, gpu_ns))
    timeline = fed(*made)
    last_ns = timeline.now_ns + 7
    timeline.close(last_ns, NAMES)
    assert timeline._open == []
    assert all(later > earlier for earlier, later in pairwise(timeline.edges))
    assert sum(durations(timeline, last_ns).values()) == last_ns
    assert durations(timeline, last_ns).get(KindCodes.UNATTRIBUTED, 0) == 0
    for step in timeline.steps:
        assert 0 <= step.start_ns <= step.end_ns <= last_ns
        assert all(start <= stop for start, stop in step.waits)
        assert step.stall is None or step.stall[0] <= step.stall[1]


@given(rows, st.integers(0, 40))
def test_batches_of_marks_change_nothing(drawn: list[tuple[int, bool, int, int]], cut: int) -> None:
    made = [
        (begin if begins else end)(code, 3 * row, 3 * row + ahead_ns if ahead_ns >= 0 else -1)
        for row, (code, begins, _, ahead_ns) in enumerate(drawn)
    ]
    whole, parts = fed(*made), fed(*made[:cut])
    parts.feed(log(*made[cut:]))
    assert (whole.steps, whole.spans, whole.edges, whole.kinds) == (parts.steps, parts.spans, parts.edges, parts.kinds)
    assert whole.faults == parts.faults


def test_closing_twice_changes_nothing() -> None:
    timeline = fed(begin(RUN, 0), begin(STEP, 5))
    timeline.close(10, NAMES)
    before = (list(timeline.steps), list(timeline.spans), dict(timeline.faults))
    timeline.close(12, NAMES)
    assert (timeline.steps, timeline.spans, timeline.faults) == before


def test_steps_work_from_the_end_of_their_stall() -> None:
    timeline = fed(
        begin(RUN, 0),
        begin(STEP, 10),
        end(STEP, 20),
        begin(WAIT, 20),
        end(WAIT, 26),
        begin(STEP, 30),
        end(STEP, 40),
        begin(STEP, 45),
    )
    assert timeline.working(0, 100) == [(10, 20), (30, 40), (45, 100)]
    assert timeline.working(15, 35) == [(15, 20), (30, 35)]
    assert timeline.working(21, 29) == []


def test_a_step_works_after_the_wait_that_it_begins_with() -> None:
    waiting = fed(begin(STEP, 0), end(STEP, 10), begin(STEP, 10), begin(WAIT, 10))
    assert waiting.working(0, 100) == [(0, 10)]
    waiting.feed(log(end(WAIT, 60)))
    assert waiting.working(0, 100) == [(0, 10), (60, 100)]
    waiting.feed(log(begin(FORWARD, 70), end(FORWARD, 80), end(STEP, 90)))
    assert waiting.working(0, 100) == [(0, 10), (60, 90)]
