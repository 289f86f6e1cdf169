"""What pictures are made of: long columns as few points, shares of time, sums that add up, curves without drift."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from _made_report import KINDS, Made, made_report
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.micro_batch_part import MicroBatchPart, TriedMicroBatch
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import SPAN_COLUMNS, STEP_COLUMNS
from energy_plugins.report.pictures.doing import Cover, doing
from energy_plugins.report.pictures.limit_search import limit_search_picture
from energy_plugins.report.pictures.micro_batch_search import micro_batch_search_picture
from energy_plugins.report.pictures.picture import Missing, edges
from energy_plugins.report.pictures.power import PowerPicture, power_picture
from energy_plugins.report.pictures.ranks import RankPicture, rank_picture
from energy_plugins.report.pictures.search import SearchPicture, Tried, compared, means
from energy_plugins.report.pictures.steps import StepPicture, step_picture
from energy_plugins.report.pictures.trace import MOST_POINTS, MOST_ROWS, Stretches, trace_of
from energy_plugins.report.pictures.where import WherePicture, where_picture


@pytest.fixture(scope="module")
def training() -> Report:
    return made_report(Made())


values = hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e6, 1e6))


@given(values=values, count=st.integers(1, 30), pieces=st.integers(1, 5))
def test_no_peak_and_no_joule_is_lost_however_the_rows_come(
    values: np.ndarray[tuple[int], np.dtype[np.float64]], count: int, pieces: int
) -> None:
    at = np.arange(len(values), dtype=np.float64)
    stretches = Stretches(float(len(values)), count)
    for part in np.array_split(np.random.default_rng(1).permutation(len(values)), pieces):
        stretches.add(at[part], values[part])
    trace = stretches.trace()
    assert trace.low is not None
    assert trace.high is not None
    rows, _ = np.histogram(at, edges(float(len(values)), count))
    full = rows > 0
    assert np.nanmax(trace.high) == values.max()
    assert np.nanmin(trace.low) == values.min()
    assert np.isnan(trace.mean[~full]).all()
    assert (trace.mean[full] * rows[full]).sum() == pytest.approx(values.sum(), abs=1e-3)
    assert (trace.low[full] <= trace.mean[full] + 1e-6).all()
    assert (trace.mean[full] <= trace.high[full] + 1e-6).all()


def test_short_columns_are_drawn_row_by_row() -> None:
    t_s = np.linspace(0.0, 1.0, MOST_ROWS)
    columns = Columns.of({"t_s": t_s, "power_w": np.arange(MOST_ROWS, dtype=np.float64)})
    trace = trace_of(columns, "t_s", "power_w", 1.0)
    assert trace.low is None
    assert trace.mean.tolist() == columns["power_w"].tolist()


def test_a_gap_stays_a_gap_and_a_peak_of_one_row_a_peak() -> None:
    t_s = np.arange(100_000) / 100_000
    power_w = np.where((t_s > 0.4) & (t_s < 0.5), np.nan, 300.0)
    power_w[77_777] = 700.0
    trace = trace_of(Columns.of({"t_s": t_s, "power_w": power_w}), "t_s", "power_w", 1.0)
    assert len(trace.at) == MOST_POINTS
    assert np.isnan(trace.mean[(trace.at > 0.401) & (trace.at < 0.499)]).all()
    assert trace.highest[round(0.77777 * MOST_POINTS) - 1 : round(0.77777 * MOST_POINTS) + 1].max() == 700.0
    assert np.nanmax(trace.mean) < 320.0


@given(starts=st.lists(st.integers(-2, 11), max_size=6, unique=True), length=st.floats(-1.0, 1.0))
def test_cover_is_what_counting_moments_gives(starts: list[int], length: float) -> None:
    cover = Cover(edges(10.0, 4))
    for part in np.array_split(np.array(starts, np.float64), 2):
        cover.add(part, part + length)
    moments = (np.arange(20_000) + 0.5) / 2_000
    inside = np.isin(np.floor(moments), starts) & (moments % 1 < length)
    assert cover.shares() == pytest.approx(inside.reshape(4, -1).mean(axis=1), abs=2e-3)


def test_time_is_spent_once(training: Report) -> None:
    shares = doing(training)
    by_name = dict(shares.by_name)
    assert set(by_name) == {"step", "data wait", "validation", "checkpoint"}
    assert sum(by_name.values()).max() <= 1.0 + 1e-9  # type: ignore[union-attr] # a sum of arrays
    width_s = shares.edges_s[1]
    assert by_name["data wait"].sum() * width_s == pytest.approx(0.15 * 0.2 * 2400, rel=1e-6)
    assert by_name["validation"].sum() * width_s == pytest.approx(6 * 1.2, rel=1e-6)


def test_waits_outside_of_steps_do_not_shorten_them() -> None:
    step = {name: np.zeros(2, code) for name, code in STEP_COLUMNS.items()}
    steps = Columns.of({**step, "start_s": np.array([1.0, 3.0]), "end_s": np.array([2.0, 4.0])})
    span = {name: np.zeros(2, code) for name, code in SPAN_COLUMNS.items()}
    spans = Columns.of({**span, "start_s": np.array([0.0, 2.0]), "end_s": np.array([1.0, 3.0])})
    shares = doing(
        replace(made_report(Made(steps=10)), duration_s=4.0, steps=steps, spans=spans, span_kinds=("data_wait",))
    )
    assert {name: share.mean() for name, share in shares.by_name} == pytest.approx({"step": 0.5, "data wait": 0.5})


def test_the_limit_in_force_keeps_its_value_until_it_changes(training: Report) -> None:
    picture = power_picture(training)
    assert isinstance(picture, PowerPicture)
    (gpu,) = picture.gpus
    assert gpu.limit_w is not None
    state = next(iter(training.state.values()))
    steps = np.searchsorted(gpu.limit_w.at, state["t_s"], side="right") - 1
    assert gpu.limit_w.mean[steps].tolist() == state["enforced_limit_w"].tolist()
    assert len(gpu.limit_w.at) < 30


def test_what_held_the_clocks_down_is_told_apart(training: Report) -> None:
    picture = power_picture(training)
    assert isinstance(picture, PowerPicture)
    assert picture.held_back is not None
    assert [name for name, _ in picture.held_back.by_name] == ["power limit"]
    uuid, state = next(iter(training.state.items()))
    for reasons, names in ((0x20, ["heat"]), (0x8, ["another reason"]), (0x1 | 0x2, None), (-1, None)):
        columns = Columns.of({**state, "clock_reasons": np.full(state.rows, reasons)})
        held = power_picture(replace(training, state={uuid: columns}))
        assert isinstance(held, PowerPicture)
        assert names == (None if held.held_back is None else [name for name, _ in held.held_back.by_name])


def test_steps_have_their_error_band(training: Report) -> None:
    picture = step_picture(training)
    assert isinstance(picture, StepPicture)
    assert picture.energy_j.mean == pytest.approx(training.steps["energy_j"])
    assert picture.error_bound_j == pytest.approx(training.steps["error_bound_j"])


def test_of_many_steps_the_bound_is_that_of_one_and_not_of_their_mean() -> None:
    picture = step_picture(made_report(Made(steps=MOST_ROWS * 3)))
    assert isinstance(picture, StepPicture)
    assert picture.energy_j.low is not None
    assert picture.error_bound_j == pytest.approx(0.03 * picture.energy_j.mean, rel=1e-6)


def test_the_bars_of_work_add_up_to_the_total(training: Report) -> None:
    picture = where_picture(training)
    assert isinstance(picture, WherePicture)
    assert sum(bar.energy_j for bar in picture.work) == pytest.approx(training.total_j)
    assert sum(bar.share for bar in picture.work) == pytest.approx(1.0)
    joules = {bar.name: bar.energy_j for bar in picture.work}
    # In the marked steps forward takes 30 % of a step, backward 50 %, at one power.
    assert joules["backward"] / joules["forward"] == pytest.approx(5 / 3, rel=0.01)
    assert "48 steps of 2,400" in picture.caption
    assert {bar.name for bar in picture.waste} == {"stall", "data wait", "underfilled", "idle"}


def test_without_marked_phases_a_step_is_one_bar(training: Report) -> None:
    kinds = tuple(kind for kind in training.kinds if kind.kind not in ("forward", "backward", "optimizer"))
    picture = where_picture(replace(training, kinds=kinds, span_kinds=KINDS[:4]))
    assert isinstance(picture, WherePicture)
    assert "step" in [bar.name for bar in picture.work]
    assert "estimate" not in picture.caption


def test_ranks_stand_side_by_side_with_the_straggler() -> None:
    picture = rank_picture(made_report(Made(steps=100, ranks=8)))
    assert isinstance(picture, RankPicture)
    assert picture.stragglers == (6,)
    assert [bar.rank for bar in picture.bars if bar.straggles] == [6]
    assert "waited for rank 6" in picture.caption
    assert next(bar for bar in picture.bars if bar.rank == 6).peer_wait_j == 0


def test_a_search_is_drawn_without_the_drift_of_its_windows(training: Report) -> None:
    picture = limit_search_picture(training)
    assert isinstance(picture, SearchPicture)
    assert (picture.found, picture.chosen) == (700.0, 520.0)
    best = min(picture.means, key=lambda mean: mean.energy)
    assert best.setting == 520.0
    truth = (0.84 + 0.16 * 0.1**2) / 1.0 - 1.0
    assert best.energy == pytest.approx(truth, abs=0.002)
    assert {mean.setting: mean.energy for mean in picture.means}[700.0] == pytest.approx(0.0, abs=1e-9)


@given(
    drift=st.floats(-0.1, 0.1),
    ratios=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=6),
)
def test_a_steady_drift_cancels(drift: float, ratios: list[float]) -> None:
    settings_ = [setting for place in range(len(ratios)) for setting in (100.0, float(place))] + [100.0]
    true = {float(place): ratio for place, ratio in enumerate(ratios, start=0)} | {100.0: 1.0}
    tried = [
        Tried(setting + 1.0, 10.0, 50.0 * true[setting] * (1 + drift * at / len(settings_)), 0.5 * true[setting])
        for at, setting in enumerate(settings_)
    ]
    for mean in means(compared(tried, 101.0)):
        assert mean.energy == pytest.approx(true[mean.setting - 1.0] - 1.0, abs=1e-6)
        assert mean.time == pytest.approx(true[mean.setting - 1.0] - 1.0, abs=1e-6)


def test_ranks_of_which_none_has_told_are_no_picture() -> None:
    report = made_report(Made(steps=50, ranks=2))
    assert report.ranks is not None
    found = rank_picture(replace(report, ranks=replace(report.ranks, rows=())))
    assert isinstance(found, Missing)
    assert found.why == "no rank has told of itself"


def test_limits_of_some_ranks_are_not_mixed_with_those_of_all(training: Report) -> None:
    part = training.power_limit
    assert part is not None
    some = tuple(replace(one, ranks=(0, 2), step_energy_j=1.0) for one in part.tried)
    both = limit_search_picture(replace(training, power_limit=replace(part, tried=(*some, *part.tried))))
    alone = limit_search_picture(training)
    assert isinstance(both, SearchPicture)
    assert isinstance(alone, SearchPicture)
    assert both.means == alone.means
    assert "13 windows for other ranks are not drawn" in both.caption
    only = limit_search_picture(replace(training, power_limit=replace(part, tried=some)))
    assert isinstance(only, SearchPicture)
    assert "The limits were those of ranks 0, 2." in only.caption


def test_windows_that_cannot_be_are_left_out() -> None:
    good, bad = Tried(700.0, 10.0, 50.0, 0.5), Tried(600.0, 10.0, 0.0, 0.5)
    assert [one.setting for one in compared([good, bad, good], 700.0)] == [700.0, 700.0]
    assert compared([bad], 600.0) == ()
    assert compared([good], 500.0) == ()


def test_sizes_of_micro_batches_are_drawn_against_the_users(training: Report) -> None:
    tried = (
        TriedMicroBatch(size=4, step_time_s=1.2, step_energy_j=500.0, saving=-0.1),
        TriedMicroBatch(size=8, step_time_s=1.0, step_energy_j=450.0, saving=None),
        TriedMicroBatch(size=16, step_time_s=0.9, step_energy_j=405.0, saving=0.1),
        TriedMicroBatch(size=32, why="out of memory"),
    )
    part = MicroBatchPart(asked="least energy", batch=8, accumulation=4, chosen=16, source="search", tried=tried)
    picture = micro_batch_search_picture(replace(training, micro_batch=part))
    assert isinstance(picture, SearchPicture)
    assert [mean.setting for mean in picture.means] == [4.0, 8.0, 16.0]
    assert [mean.energy for mean in picture.means] == pytest.approx([0.1, 0.0, -0.1])
    assert [mean.time for mean in picture.means] == pytest.approx([0.2, 0.0, -0.1])
    assert (picture.found, picture.chosen) == (8.0, 16.0)
    assert "Not usable: 32 (out of memory)." in picture.caption
    nothing = micro_batch_search_picture(replace(training, micro_batch=replace(part, tried=(), why="BatchNorm")))
    assert isinstance(nothing, Missing)
    assert nothing.why == "BatchNorm"
    assert isinstance(micro_batch_search_picture(training), Missing)


def test_what_there_is_nothing_of_says_why(training: Report) -> None:
    bare = replace(
        training,
        total_j=None,
        missing={"total_j": "the driver is not there"},
        steps=Columns.empty(STEP_COLUMNS),
        power={},
        power_limit=None,
    )
    why = {}
    for picture in (where_picture, power_picture, step_picture, rank_picture, limit_search_picture):
        found = picture(bare)
        assert isinstance(found, Missing)
        why[found.name] = found.why
    assert why["where"] == "the driver is not there"
    assert why["steps"] == "no step was marked"
    assert all(why.values())
    assert math.isfinite(training.duration_s)
