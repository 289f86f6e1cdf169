"""The text table: what it says, and that it can say it of any report."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.quantity import age_at, bar, bounded, duration, percent, quantity, shares
from energy_plugins.measure.rank_folders import with_ranks
from energy_plugins.measure.rank_part import Backward, Rank, RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import STEP_COLUMNS, GpuState, KindActivity, KindTotal, Work

TYPICAL = """\
digits-cnn                           run 20261121-100000-7f3a on node7, started 2026-11-21T10:00:00Z
----------------------------------------------------------------------------------------------------

energy        12.35 +/- 0.12 kJ (95 %) = 3.431 Wh
duration      1 min 02 s at 198.2 W on average; readings cover 99.8 % of it
accuracy      beside that bound, the sensor's own scale may be off by about 5 %: one factor for all
              joules of a card, so it cancels between runs on one card, not between cards
work          1,875 steps, 120,000 samples
              102.9 mJ/sample, 9.716 samples/J
              a step on average 4.850 J in 32.00 ms (75 more not measured)

gpu 0  12.35 kJ  100.0 %  ####################  NVIDIA H200  GPU-3f8a1c92-0b1d...

where it went               energy   share                            time  covered
  step          9.100 +/- 0.091 kJ  73.7 %  ###############.....   50.20 s   99.9 %
  validate            812 +/- 30 J   6.6 %  #...................   4.100 s   99.0 %
  checkpoint          not measured                                310.0 ms    0.0 %
  unattributed  2.439 +/- 0.070 kJ  19.7 %  ####................   8.000 s   99.8 %

of which       energy  share
  stall      1.032 kJ  8.4 %  ##..................  nothing was queued between steps
  data wait   612.0 J  5.0 %  #...................  the part of stall inside the data loader

whole spans              energy  count      each        time  covered
  fit         12.30 +/- 0.12 kJ      1  12.30 kJ  1 min 02 s   99.8 %
  step       9.712 +/- 0.099 kJ  1,875   5.180 J     52.10 s   99.9 %

measuring     0.29 % of a core in the background (181.4 ms, 60.20 ms of it in the driver); training
              thread 2.100 ms (3,750 marks, 560.0 ns each); nothing lost
WARNINGS      - the GPU was lost for 2.1 s, in which nothing was measured; it answered again
              afterwards
not measured  cpu_j, dram_j: CPU energy is not measured
              peer_wait_j: one process has no peers
              underfilled_j, idle_j: needs the power of an idle GPU"""


def test_a_typical_report(typical_report: Report) -> None:
    assert str(typical_report) == TYPICAL


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_renders_in_width(any_report: st.SearchStrategy[Report], data: st.DataObject) -> None:
    text = str(data.draw(any_report))
    assert all(len(line) <= 100 and (not line or line.isprintable()) for line in text.split("\n"))
    text.encode()  # whatever a terminal can show


def test_our_own_words_are_ascii(typical_report: Report) -> None:
    assert str(dataclasses.replace(typical_report, simulated=True, complete=False)).isascii()


def test_a_simulated_report_says_so_first(typical_report: Report) -> None:
    assert "SIMULATED" not in str(typical_report)
    first, *_ = str(dataclasses.replace(typical_report, simulated=True)).splitlines()
    assert "SIMULATED" in first
    assert len(first) == 100


def test_an_unfinished_report_says_so(typical_report: Report) -> None:
    assert "INCOMPLETE" not in str(typical_report)
    assert "INCOMPLETE    the run had not ended" in str(dataclasses.replace(typical_report, complete=False))


def test_what_is_missing_is_never_zero(typical_report: Report) -> None:
    text = str(dataclasses.replace(typical_report, total_j=None, missing={"total_j": "the driver is not there"}))
    assert "energy        not measured: the driver is not there" in text
    assert "cpu_j, dram_j, peer_wait_j, underfilled_j, idle_j: no reason was recorded" in " ".join(text.split())
    assert text.count("the driver is not there") == 1
    assert " 0 J" not in text
    assert " 0.0 %" not in text.replace("310.0 ms    0.0 %", "")


def test_escape_codes_and_newlines_in_names_do_nothing(typical_report: Report) -> None:
    text = str(dataclasses.replace(typical_report, name="a\x1b[31mb\nc\u202e", warnings=("one\ntwo\x07",)))
    assert "a?[31mb c?" in text
    assert "- one two?" in text


def test_losses_and_many_warnings_stand_out(typical_report: Report) -> None:
    observer = dataclasses.replace(typical_report.observer, dropped=12)
    warnings = tuple(f"warning {i}" for i in range(14))
    text = str(dataclasses.replace(typical_report, observer=observer, warnings=warnings))
    assert "12 samples or marks LOST" in text
    assert "- warning 9\n" in text
    assert "- and 4 more in report.json" in text
    assert "warning 10" not in text


def test_gpus_share_the_total_and_the_host_is_beside_it(typical_report: Report) -> None:
    report = dataclasses.replace(
        typical_report, total_j=1000.0, gpu_j={"GPU-a": 600.0, "GPU-b": None}, cpu_j=300.0, dram_j=100.0, devices=()
    )
    lines = str(report).splitlines()
    assert any(re.fullmatch(r"gpu +600\.0 J +60\.0 % +#{12}\.{8} +GPU-a", line) for line in lines)
    assert any(re.fullmatch(r"gpu +not measured +GPU-b", line) for line in lines)
    for label, joules in (("cpu", "300"), ("dram", "100")):
        row = rf"{label} +{joules}\.0 J +of the whole machine; not in the total"
        assert any(re.fullmatch(row, line) for line in lines)


def test_an_estimate_is_called_one(typical_report: Report) -> None:
    report = dataclasses.replace(typical_report, cpu_estimate_j=1200.0, cpu_estimate_label="ESTIMATE, not measured")
    assert "cpu estimate  1.200 kJ; ESTIMATE, not measured" in str(report).splitlines()


def test_what_held_the_gpus_back_is_said_where_something_did(typical_report: Report) -> None:
    (device,) = typical_report.devices
    state = GpuState(
        uuid=device.uuid,
        readings=50,
        sm_clock_mhz=1410.2,
        max_temperature_c=71.0,
        utilisation=0.9,
        min_limit_w=400.0,
        max_limit_w=700.0,
        requested_limit_w=450.0,
        default_limit_w=700.0,
        throttled=0.35,
        reasons={"gpu_idle": 0.5, "hw_thermal_slowdown": 0.02, "sw_power_cap": 0.34},
    )
    text = " ".join(str(dataclasses.replace(typical_report, gpu_states=(state,))).split())
    assert (
        "throttled gpu 0 35.0 % of the time (sw_power_cap 34 %, hw_thermal_slowdown 2 %), SM clock 1410 MHz on average "
        "power limit gpu 0 400.0 W, below its requested 450.0 W; gpu 0 400.0 W, below its default 700.0 W "
    ) in text
    searched = LimitPart(asked="least energy", found=700.0, chosen=500.0)
    ours = str(dataclasses.replace(typical_report, gpu_states=(state,), power_limit=searched))
    assert "below its default 700.0 W" in ours
    assert "below its requested" not in ours  # what was requested is a mean over limits that the run set itself
    calm = dataclasses.replace(state, throttled=0.01, min_limit_w=None)
    assert str(dataclasses.replace(typical_report, gpu_states=(calm,))) == TYPICAL


def test_a_kinds_limit_stands_with_its_figures(typical_report: Report) -> None:
    step = KindActivity(
        kind="step",
        duration_s=50.0,
        own=0.97,
        bound="compute-bound",
        sm=0.99,
        occupancy=None,
        tensor=0.9,
        dram=None,
        nvlink_rx_bytes_per_s=None,
        nvlink_tx_bytes_per_s=None,
    )
    shared = dataclasses.replace(step, kind="forward", own=0.4, bound="mixed")
    unknown = dataclasses.replace(step, kind="validate", bound=None)
    text = " ".join(str(dataclasses.replace(typical_report, kind_activity=(step, shared, unknown))).split())
    assert (
        "limited by step compute-bound (SM 99 %, tensor 90 %); forward mixed (SM 99 %, tensor 90 %, readings shared"
        in text
    )
    assert "validate (" not in text


def test_tokens_and_an_idle_baseline(typical_report: Report) -> None:
    report = dataclasses.replace(typical_report, work=Work(steps=1, tokens=24_702), idle_j=6175.5, kinds=(), phases=())
    text = str(report)
    assert "1 step, 24,702 tokens" in text
    assert "2.000 tokens/J" in text
    assert re.search(r"idle +6\.176 kJ +50\.0 %", text)
    assert "where it went" not in text


def test_columns_that_cannot_be_read_do_not_hide_the_rest(typical_report: Report, tmp_path: Path) -> None:
    typical_report.save(tmp_path)
    report = Report.load(tmp_path)
    (tmp_path / "steps" / "energy_j.f8").unlink()
    assert "cannot read the column" in str(report)
    assert "12.35 +/- 0.12 kJ" in str(report)


def test_steps_that_were_not_measured_are_left_out_of_the_mean(typical_report: Report) -> None:
    none = {name: np.zeros(3, code) for name, code in STEP_COLUMNS.items()}
    steps = Columns.of({**none, "energy_j": np.array([np.nan, 2.0, 4.0]), "end_s": np.array([9.0, 0.5, 0.25])})
    assert "a step on average 3.000 J in 375.0 ms (1 more not measured)" in str(
        dataclasses.replace(typical_report, steps=steps)
    )


parts_of_a_run = st.lists(st.floats(0, 1e9), min_size=1, max_size=8).filter(lambda parts: sum(parts) > 0)


@given(parts=parts_of_a_run)
def test_shares_of_the_whole_add_up(parts: list[float]) -> None:
    total = sum(parts)
    found = shares(parts, total)
    assert math.isclose(sum(found), 1.0, abs_tol=1e-9)
    assert all(abs(share - part / total) <= 0.001 + 1e-9 for share, part in zip(found, parts, strict=True))


@given(parts=parts_of_a_run)
@settings(max_examples=30, deadline=None)
def test_printed_shares_add_up(typical_report: Report, parts: list[float]) -> None:
    kinds = tuple(
        KindTotal(kind="k", count=1, duration_s=1.0, energy_j=part, error_bound_j=0.0, coverage=1.0) for part in parts
    )
    report = dataclasses.replace(typical_report, total_j=sum(parts), kinds=kinds)
    rows = [line for line in str(report).splitlines() if line.startswith("  k ")]
    tenths = [round(10 * float(row.partition(" %")[0].split()[-1])) for row in rows]
    assert len(tenths) == len(parts)
    assert sum(tenths) == 1000


def test_shares_of_another_total_or_of_nothing() -> None:
    assert shares([1.0, 1.0], 4.0) == [0.25, 0.25]
    assert shares([1.0], 0.0) == pytest.approx([math.nan], nan_ok=True)
    assert shares([1.0], math.nan) == pytest.approx([math.nan], nan_ok=True)
    assert shares([1e308, 1.0], 1e-308)[0] == math.inf


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 J"),
        (12351.0, "12.35 kJ"),
        (999.96, "1.000 kJ"),
        (999.94, "999.9 J"),
        (0.1, "100.0 mJ"),
        (4.2e-6, "4.200 uJ"),
        (3.6e9, "3.600 GJ"),
        (-12.0, "-12.00 J"),
        (1e-30, "1.000e-30 J"),
        (1e300, "1.000e+300 J"),
        (math.nan, "? J"),
    ],
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value, "J") == text


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (12351.0, 118.2, "12.35 +/- 0.12 kJ"),
        (12351.2, 1.2, "12.3512 +/- 0.0012 kJ"),
        (812.2, 30.0, "812 +/- 30 J"),
        (3.0, 20.0, "3 +/- 20 J"),
        (0.0, 5.0, "0.0 +/- 5.0 J"),
        (1200.0, 4.5e7, "0 +/- 45 MJ"),
        (9.96, 0.0996, "9.96 +/- 0.10 J"),
        (5.0, 0.0, "5.000 J +/- 0 J"),
    ],
)
def test_bounds_decide_the_digits(value: float, bound: float, text: str) -> None:
    assert bounded(value, bound, "J") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.85, "850.0 ms"),
        (12.345, "12.35 s"),
        (62.31, "1 min 02 s"),
        (3599.7, "1 h 00 min"),
        (360_000.0, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_percent_and_bars() -> None:
    assert percent(0.1234) == "12.3 %"
    assert percent(math.inf) == "> 1e6 %"
    assert bar(0.5, 4) == "##.."
    assert bar(-1.0, 2) == ".."
    assert bar(7.0, 2) == "##"
    assert bar(math.nan) == percent(math.nan) == ""


def test_what_is_above_idle_and_how_old_the_baseline_is(typical_report: Report) -> None:
    (device,) = typical_report.devices
    device = dataclasses.replace(device, idle_w=120.0, idle_measured="2026-11-18T09:00:00+00:00")
    text = str(dataclasses.replace(typical_report, idle_j=7477.2, devices=(device,)))
    assert "above idle    4.874 kJ more than idle GPUs would have drawn (120.0 W; idle power measured 3 days" in text
    assert "  idle       7.477 kJ  60.5 %" in text


def test_why_it_was_stopped(typical_report: Report) -> None:
    text = str(dataclasses.replace(typical_report, stopped="energy budget of 0.2 kWh spent"))
    assert "\nstopped       energy budget of 0.2 kWh spent\n" in text


@pytest.mark.parametrize(
    ("then", "now", "age"),
    [
        ("2026-11-01T00:00:00+00:00", "2026-11-21T10:00:00Z", "20 days"),
        ("2026-11-21T08:53:00+01:00", "2026-11-21T10:00:00Z", "2 h 07 min"),
        ("2026-11-21T11:00:00Z", "2026-11-21T10:00:00Z", "0 s"),
        ("2026-11-21T11:00:00", "2026-11-21T10:00:00Z", ""),
        ("lately", "2026-11-21T10:00:00Z", ""),
    ],
)
def test_ages(then: str, now: str, age: str) -> None:
    assert age_at(then, now) == age


def test_all_ranks_stand_in_a_table(typical_report: Report) -> None:
    def told(rank: int, backward_s: float) -> RankPart:
        who = Rank(rank=rank, world_size=4, local_rank=rank, local_world_size=4, boot_id="boot")
        backward = Backward(steps=20, seconds=backward_s, spread_s=1e-4, energy_j=backward_s * 500)
        part = RankPart.of(typical_report, who)
        return dataclasses.replace(
            part, gpus=(dataclasses.replace(part.gpus[0], uuid=f"GPU-{rank}"),), step_j=4.85, backward=backward
        )

    parts = [told(0, 0.016), told(1, 0.012), told(3, 0.016)]
    text = str(with_ranks(dataclasses.replace(typical_report, rank=parts[0].who), Ranks.merge(parts, 4)))
    expected = """
ALL RANKS     3 of 4 ranks on 1 node, 3 GPUs: 37.05 +/- 0.20 kJ (95 %) in 1 min 02 s; readings cover
              74.9 % of it
              360,000 samples, 102.9 mJ/sample
              7.500 kJ (20.2 %) drawn while waiting for rank 1
              nothing is known of rank 2 of 4; the joules are in no sum of all ranks
rank  node   GPU      energy  per step  backward   waiting
   0  node7  GPU-0  12.35 kJ   4.850 J  16.00 ms  3.750 kJ
   1  node7  GPU-1  12.35 kJ   4.850 J  12.00 ms       0 J  <- the others wait for it
   3  node7  GPU-3  12.35 kJ   4.850 J  16.00 ms  3.750 kJ
"""
    assert expected.strip() in text
    assert "peer wait" in text
    assert max(map(len, text.splitlines())) <= 100
