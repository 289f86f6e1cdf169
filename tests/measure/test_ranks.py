"""The merge of many ranks: sums that hold in any order, count nothing twice and never take what is missing for 0."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import POWER_W

from energy_plugins.errors import ReportError
from energy_plugins.measure.columns import Columns
from energy_plugins.measure.rank_part import MOST_BYTES, Backward, GpuPart, Rank, RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import SPAN_COLUMNS, STEP_COLUMNS


def part(rank: int, world_size: int = 4, **changes: Any) -> RankPart:
    """Return what a healthy rank with a GPU of its own tells."""
    energy_j = changes.pop("energy_j", 1000.0 + rank)
    boot_id = changes.pop("boot_id", f"boot-{rank // 2}")
    told = RankPart(
        who=Rank(
            rank=rank, world_size=world_size, local_rank=rank % 2, local_world_size=2, pid=100 + rank, boot_id=boot_id
        ),
        node=f"node{rank // 2}",
        run_id=f"run-{rank}",
        started="2026-11-21T10:00:00Z",
        duration_s=60.0,
        complete=True,
        energy_j=energy_j,
        error_bound_j=3.0,
        coverage=0.9,
        gpus=(GpuPart(uuid=f"GPU-{rank}", energy_j=energy_j, error_bound_j=3.0),),
        steps=100,
        samples=1600,
        tokens=None,
        step_j=10.0,
        stall_j=5.0,
        cpu_j=500.0 if rank % 2 == 0 else None,
    )
    return dataclasses.replace(told, **changes)


def backward(seconds: float, spread_s: float = 0.0001, power_w: float = 500.0) -> Backward:
    return Backward(steps=20, seconds=seconds, spread_s=spread_s, energy_j=seconds * power_w)


maybe_joules = st.none() | st.floats(0, 1e9)


@st.composite
def some_parts(draw: st.DrawFn) -> list[RankPart]:
    """Return parts of ranks that may share GPUs and nodes, some of them told twice."""
    made = []
    for rank in draw(st.lists(st.integers(0, 5), max_size=8)):
        uuids = draw(st.lists(st.sampled_from(["GPU-a", "GPU-b", "GPU-c"]), max_size=2, unique=True))
        gpus = tuple(
            GpuPart(uuid=uuid, energy_j=draw(maybe_joules), error_bound_j=draw(maybe_joules)) for uuid in uuids
        )
        made.append(
            part(
                rank,
                6,
                gpus=gpus,
                duration_s=draw(st.floats(0, 100)),
                complete=draw(st.booleans()),
                coverage=draw(st.floats(0, 1)),
                boot_id=draw(st.sampled_from(["x", "y"])),
                backward=draw(st.none() | st.floats(0.001, 1).map(backward)),
                samples=draw(st.none() | st.integers(0, 1000)),
                cpu_j=draw(maybe_joules),
            )
        )
    return made


@given(some_parts(), st.randoms())
def test_order_and_duplicates_change_nothing(parts: list[RankPart], random: Any) -> None:
    merged = Ranks.merge(parts, 6)
    shuffled = [*parts, *parts[:3]]
    random.shuffle(shuffled)
    assert Ranks.merge(shuffled, 6) == merged
    assert Ranks.merge([row.part for row in merged.rows], 6) == merged


@given(some_parts())
def test_what_is_none_has_a_reason_and_what_is_there_is_no_more_than_was_told(parts: list[RankPart]) -> None:
    merged = Ranks.merge(parts, 6)
    for name in ("total_j", "samples", "tokens", "stall_j", "data_wait_j", "peer_wait_j", "cpu_j", "dram_j"):
        assert (getattr(merged, name) is None) == (name in merged.missing)
    assert sorted([*merged.absent, *(row.part.who.rank for row in merged.rows)]) == list(range(6))
    told_j = [gpu.energy_j for row in merged.rows for gpu in row.part.gpus if gpu.energy_j is not None]
    assert (merged.total_j is None) == (not told_j)
    if merged.total_j is not None:
        assert max(told_j) <= merged.total_j <= math.fsum(told_j)
    assert 0 <= merged.coverage <= 1
    assert all(row.peer_wait_j is None or row.peer_wait_j >= 0 for row in merged.rows)


def test_ranks_with_gpus_of_their_own_add_up() -> None:
    merged = Ranks.merge([part(rank) for rank in range(4)], 4)
    assert merged.total_j == 4006.0
    assert merged.error_bound_j == 6.0
    assert (merged.gpus, merged.nodes, merged.complete, merged.absent, merged.notes) == (4, 2, True, (), ())
    assert (merged.steps, merged.samples, merged.stall_j) == (400, 6400, 20.0)
    assert merged.coverage == pytest.approx(0.9)
    assert merged.cpu_j == 1000.0
    assert merged.tokens is None
    assert merged.missing["tokens"] == "no rank said"


def test_a_gpu_of_two_ranks_counts_once_as_the_one_that_saw_most_of_it() -> None:
    shared = GpuPart(uuid="GPU-0", energy_j=900.0, error_bound_j=2.0)
    merged = Ranks.merge([part(0), part(1, gpus=(shared,), duration_s=50.0)], 2)
    assert (merged.total_j, merged.gpus, merged.stall_j) == (1000.0, 1, 5.0)
    assert [row.counted for row in merged.rows] == [True, False]
    assert merged.notes == ("ranks 0, 1 share GPU-0 of node0: it counts once, as rank 0 saw it",)


def test_equal_names_on_two_nodes_are_two_gpus() -> None:
    gpu = (GpuPart(uuid="GPU-0", energy_j=10.0, error_bound_j=1.0),)
    merged = Ranks.merge([part(0, gpus=gpu), part(2, gpus=gpu)], 3)
    assert (merged.total_j, merged.gpus) == (20.0, 2)


def test_who_is_absent_is_named_and_lowers_the_coverage() -> None:
    merged = Ranks.merge([part(0), part(2, complete=False)], 4)
    assert merged.absent == (1, 3)
    assert not merged.complete
    assert merged.coverage == pytest.approx(0.45)
    absent, unfinished = merged.shortcomings()
    assert "ranks 1, 3 of 4" in absent
    assert "rank 2 never told the end" in unfinished


def test_of_two_parts_of_a_rank_the_later_counts() -> None:
    early = part(1, energy_j=10.0, duration_s=5.0, complete=False)
    assert Ranks.merge([early, part(1), early], 2).total_j == 1001.0


def test_a_node_whose_cpu_nobody_measured_leaves_no_sum() -> None:
    merged = Ranks.merge([part(0), part(2, cpu_j=None)], 4)
    assert merged.cpu_j is None
    assert merged.missing["cpu_j"] == "not measured on node1"


def test_a_rank_of_another_training_is_left_out() -> None:
    merged = Ranks.merge([part(0, 2), part(3)], 2)
    assert merged.total_j == 1000.0
    assert merged.notes == ("a part of rank 3, of 2 ranks, was left out",)


def test_ranks_wait_for_the_one_with_the_shortest_backward() -> None:
    parts = [part(rank, backward=backward(seconds)) for rank, seconds in enumerate((0.150, 0.100, 0.152, 0.151))]
    merged = Ranks.merge(parts, 4)
    assert merged.stragglers == (1,)
    waited = {row.part.who.rank: (row.peer_wait_s, row.peer_wait_j) for row in merged.rows}
    assert waited[1] == (0.0, 0.0)
    assert waited[0] == pytest.approx((5.0, 2500.0))
    assert merged.peer_wait_j == pytest.approx((0.05 + 0.052 + 0.051) * 100 * 500)


@pytest.mark.parametrize(("seconds", "spread_s"), [((0.100, 0.101), 0.0), ((0.100, 0.120), 0.02)])
def test_noise_names_no_straggler(seconds: tuple[float, float], spread_s: float) -> None:
    parts = [part(rank, backward=backward(each, spread_s)) for rank, each in enumerate(seconds)]
    assert Ranks.merge(parts, 2).stragglers == ()


def test_without_phases_nothing_is_known_of_waiting() -> None:
    merged = Ranks.merge([part(0, backward=backward(0.1)), part(1)], 2)
    assert merged.peer_wait_j is None
    assert merged.missing["peer_wait_j"] == "fewer than two ranks marked their backward phases"
    assert merged.stragglers == ()


# What is told.


@pytest.mark.parametrize("gpus", [0, 1, 8, 5000])
def test_a_message_is_small_whatever_it_tells(gpus: int) -> None:
    each = tuple(GpuPart(uuid=f"GPU-{i:032}", energy_j=1.0 / 3, error_bound_j=1.0 / 7) for i in range(gpus))
    told = part(0, 1, gpus=each, node="n" * 100_000, energy_j=gpus / 3)
    heard = RankPart.decode(told.encode(), "rank 0")
    assert len(told.encode()) <= MOST_BYTES
    assert len(heard.gpus) + heard.gpus_left_out == gpus
    merged = Ranks.merge([heard], 1)
    assert merged.gpus == gpus
    assert merged.total_j == (pytest.approx(gpus / 3) if gpus else None)
    assert bool(merged.notes) == (gpus == 5000)


@given(some_parts())
def test_what_is_told_is_heard(parts: list[RankPart]) -> None:
    assert [RankPart.decode(one.encode(), "a rank") for one in parts] == parts


@pytest.mark.parametrize(
    "change",
    [
        {"who": 3},
        {"duration_s": "long"},
        {"gpus": [{"uuid": "GPU-0"}]},
        {"energy_j": 1e999},
        {"samples": -1},
        {"node": None},
    ],
)
def test_what_cannot_be_is_refused_and_named(change: dict[str, Any]) -> None:
    data = json.dumps({**json.loads(part(0).encode()), **change}).encode()
    with pytest.raises(ReportError, match=f"rank 7: .*{next(iter(change))}"):
        RankPart.decode(data, "rank 7")


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff\xfe", b"[]", b'{"who":', b"[" * 100_000])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ReportError, match="rank 7"):
        RankPart.decode(data, "rank 7")


def test_a_rank_beyond_its_training_is_refused() -> None:
    told = json.loads(part(0).encode())
    told["who"]["rank"] = told["who"]["world_size"] = 10**12
    with pytest.raises(ReportError, match="cannot be"):
        RankPart.decode(json.dumps(told).encode(), "rank 7")


def test_a_part_tells_what_the_report_says(typical_report: Report) -> None:
    count = 40
    start_s = np.arange(count) * 1.0
    steps = {name: np.zeros(count, code) for name, code in STEP_COLUMNS.items()}
    steps |= {"start_s": start_s, "end_s": start_s + 1, "energy_j": np.where(np.arange(count) < 30, POWER_W, np.nan)}
    # Two backward spans, of 0.1 and 0.2 s, in each of the steps 0, 10, 20 and 30.
    begin_s = np.repeat(start_s[::10], 2) + np.tile([0.3, 0.6], 4)
    length_s = np.tile([0.1, 0.2], 4)
    spans = {name: np.zeros(8, code) for name, code in SPAN_COLUMNS.items()}
    spans |= {"kind": np.ones(8, "i2"), "start_s": begin_s, "end_s": begin_s + length_s, "energy_j": length_s * 400}
    report = dataclasses.replace(
        typical_report, steps=Columns.of(steps), spans=Columns.of(spans), span_kinds=("step", "backward")
    )
    told = RankPart.of(report, Rank(rank=1, world_size=2))
    assert told.step_j == POWER_W
    assert told.backward is not None
    assert told.backward.steps == 4
    assert told.backward.seconds == pytest.approx(0.3)
    assert told.backward.energy_j == pytest.approx(120)
    assert told.backward.spread_s == pytest.approx(0, abs=1e-12)
    assert told.gpus == (GpuPart(uuid=next(iter(report.gpu_j)), energy_j=12351.0, error_bound_j=118.2),)
    assert Ranks.merge([told], 2).total_j == report.total_j


def test_one_bound_of_several_gpus_is_divided_in_squares(typical_report: Report) -> None:
    report = dataclasses.replace(
        typical_report, total_j=4000.0, error_bound_j=50.0, gpu_j={"a": 1000.0, "b": 3000.0, "c": None}
    )
    told = RankPart.of(report)
    merged = Ranks.merge([told], 1)
    assert merged.error_bound_j == pytest.approx(50.0)
    assert told.gpus[2].error_bound_j is None


@pytest.mark.parametrize(
    ("environ", "group", "expected"),
    [
        ({}, None, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, None, (3, 4, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, None, (3, 4, 0, 0)),
        ({"LOCAL_RANK": "1"}, (1, 2), (1, 2, 1, 0)),
        ({"RANK": "4", "WORLD_SIZE": "4"}, None, (0, 1, 0, 1)),
        ({"RANK": "1"}, None, (0, 1, 0, 1)),
        ({"RANK": "-1", "WORLD_SIZE": "x"}, None, (0, 1, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "99999999"}, None, (0, 1, 0, 1)),
    ],
)
def test_who_this_is(environ: dict[str, str], group: tuple[int, int] | None, expected: tuple[int, ...]) -> None:
    who = Rank.of(environ, group)
    assert (who.rank, who.world_size, who.local_rank, who.local_world_size) == expected
