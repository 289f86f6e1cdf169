"""The meter on simulated GPUs in virtual time: what it says against what the GPUs really drew."""

from __future__ import annotations

import math
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import MS, SECOND, Simulated, lasted_s, until

from energy_plugins.errors import EnergyError
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.testing import Constant, Script, SimulatedDevice, Simulation, Step, random_load, simulated_gpus

POWER_W = 300.0


@pytest.fixture
def steady(simulated: Simulated) -> Simulation:
    return simulated(Constant(POWER_W), virtual=True, start_s=10)


def truth_j(gpu: SimulatedDevice, meter_start_ns: int, start_s: float, end_s: float) -> float:
    return gpu.true_energy_j(meter_start_ns + round(start_s * 1e9), meter_start_ns + round(end_s * 1e9))


def kinds_of(report: Report) -> dict[str, float]:
    return {kind.kind: kind.energy_j if kind.energy_j is not None else math.nan for kind in report.kinds}


def assert_laws(report: Report) -> None:
    """Everything that is true of every complete report of measured GPUs."""
    assert report.total_j is not None
    assert sum(kinds_of(report).values()) == pytest.approx(report.total_j, rel=1e-9)
    assert sum(kind.duration_s for kind in report.kinds) == pytest.approx(report.duration_s, rel=1e-9)
    assert sum(joules or 0.0 for joules in report.gpu_j.values()) == pytest.approx(report.total_j, rel=1e-12)
    whole = {phase.kind: phase for phase in report.phases}
    assert whole["run"].energy_j == pytest.approx(report.total_j, rel=1e-9)


def test_constant_power_gives_power_times_time(steady: Simulation) -> None:
    with EnergyMeter() as meter:
        for _ in range(150):
            with meter.step(samples=4, tokens=100):
                steady.advance(0.1)
            steady.advance(0.02)
    report = meter.report()
    assert_laws(report)
    assert report.total_j == pytest.approx(POWER_W * report.duration_s, rel=1e-3)
    assert report.avg_power_w == pytest.approx(POWER_W, rel=1e-3)
    true_j = POWER_W * lasted_s(report.steps)
    assert report.steps["energy_j"] == pytest.approx(true_j, rel=0.01)
    assert (np.abs(report.steps["energy_j"] - true_j) <= report.steps["error_bound_j"]).mean() > 0.95
    assert true_j == pytest.approx(np.full(150, 30.0), rel=1.5)
    assert report.steps["index"].tolist() == list(range(150))
    assert (report.work.steps, report.work.samples, report.work.tokens) == (150, 600, 15000)
    assert kinds_of(report)["step"] == pytest.approx(true_j.sum(), rel=1e-3)
    assert {kind.kind: kind.count for kind in report.kinds} == {"run": 150, "step": 150}
    assert (report.coverage, report.complete, report.simulated, report.warnings) == (1.0, True, True, ())
    assert (report.cpu_j, report.idle_j) == (None, None)
    assert {"cpu_j", "dram_j", "idle_j", "peer_wait_j", "underfilled_j"} <= report.missing.keys()


def test_children_and_the_rest_are_the_parent(steady: Simulation) -> None:
    with EnergyMeter() as meter, meter.span(Kind.FIT):
        for _ in range(60):
            with meter.step():
                with meter.span(Kind.FORWARD):
                    steady.advance(0.03)
                with meter.span("loss"):
                    steady.advance(0.005)
                with meter.span(Kind.BACKWARD):
                    steady.advance(0.05)
                steady.advance(0.015)
        with meter.span(Kind.VALIDATE):
            steady.advance(1.0)
    report = meter.report()
    assert_laws(report)
    inside = kinds_of(report)
    whole = {phase.kind: phase.energy_j for phase in report.phases}
    lasted_s = {phase.kind: phase.duration_s for phase in report.phases}
    assert report.steps["energy_j"].sum() == pytest.approx(
        inside["step"] + inside["forward"] + inside["backward"] + inside["loss"], rel=1e-9
    )
    assert whole["forward"] == pytest.approx(inside["forward"], rel=1e-9)
    assert whole["fit"] == pytest.approx(sum(inside.values()) - inside.get("run", 0.0), rel=1e-9)
    assert 60 * 0.03 <= lasted_s["forward"] < 60 * 0.04
    for kind in ("forward", "backward", "validate", "fit"):
        assert whole[kind] == pytest.approx(POWER_W * lasted_s[kind], rel=0.02)
    spans = report.spans
    names = [report.span_kinds[code] for code in spans["kind"]]
    assert names.count("forward") == 60
    of_forward = np.array([name == "forward" for name in names])
    assert spans["energy_j"][of_forward].sum() == pytest.approx(whole["forward"], rel=1e-9)


def test_steps_side_by_side_are_the_run(simulated: Simulated) -> None:
    simulation = simulated(random_load(np.random.default_rng(5), 30.0), virtual=True, start_s=10)
    with EnergyMeter() as meter:
        for _ in range(300):
            with meter.step():
                simulation.advance(0.07)
    report = meter.report()
    assert_laws(report)
    assert report.steps["energy_j"].sum() == pytest.approx(report.total_j, rel=1e-6)


@pytest.mark.parametrize(("before_w", "after_w"), [(150.0, 650.0), (650.0, 150.0)])
def test_a_step_down_is_charged_as_exactly_as_a_step_up(simulated: Simulated, before_w: float, after_w: float) -> None:
    simulation = simulated(Step(before_w, after_w, at_s=15.0), virtual=True, start_s=10)
    gpu, clock = simulation.gpus[0], simulation.clock
    with EnergyMeter() as meter:
        start_ns = clock.now_ns()
        for number in range(1, 101):
            with meter.step():
                until(simulation, start_ns + number * 100 * MS)
        end_ns = clock.now_ns()
    report = meter.report()
    assert abs((report.total_j or 0) - gpu.true_energy_j(start_ns, end_ns)) <= (report.error_bound_j or 0)
    bounds_s = zip(report.steps["start_s"].tolist(), report.steps["end_s"].tolist(), strict=True)
    truths = [truth_j(gpu, start_ns, begin_s, end_s) for begin_s, end_s in bounds_s]
    errors = report.steps["energy_j"] - np.array(truths)
    assert np.abs(errors).max() < 0.12 * 50  # of the 50 J by which one step more or less would be wrong
    assert abs(errors.sum()) <= (report.error_bound_j or 0)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), length_s=st.floats(1.5, 14.0))
def test_the_bound_of_a_run_holds_the_truth_whatever_the_load(seed: int, length_s: float) -> None:
    rng = np.random.default_rng(seed)
    start_s = 5 + float(rng.uniform())
    with simulated_gpus(random_load(rng, 20.0), virtual=True, start_s=start_s, seed=seed) as simulation:
        with EnergyMeter() as meter:
            start_ns = simulation.clock.now_ns()
            while simulation.clock.now_ns() < start_ns + length_s * 1e9:
                with meter.step():
                    simulation.advance(float(rng.uniform(0.01, 0.3)))
            end_ns = simulation.clock.now_ns()
        report = meter.report()
        true_j = simulation.gpus[0].true_energy_j(start_ns, end_ns)
    assert_laws(report)
    assert report.total_j == pytest.approx(true_j, rel=0.02)
    assert abs((report.total_j or 0) - true_j) <= 2 * (report.error_bound_j or 0)  # twice: 95 % is not always


def test_short_steps_of_two_kinds_in_any_order_are_told_apart(simulated: Simulated) -> None:
    simulation = simulated(Constant(125), virtual=True, start_s=10)
    gpu, rng = simulation.gpus[0], random.Random(1)
    pieces = [(rng.uniform(0.01, 0.04), rng.choice([300.0, 520.0])) for _ in range(2000)]
    true_j = {300.0: 0.0, 520.0: 0.0}
    with EnergyMeter() as meter:
        t_ns = simulation.clock.now_ns() + 50 * MS
        gpu.play_from(Script(pieces, repeat=False), t_ns)
        for length_s, power_w in pieces:
            end_ns = t_ns + round(length_s * 1e9)
            until(simulation, t_ns)
            meter.begin(f"{power_w:.0f}", at_ns=t_ns)
            until(simulation, end_ns)
            meter.end(f"{power_w:.0f}", at_ns=end_ns)
            true_j[power_w] += gpu.true_energy_j(t_ns, end_ns)
            t_ns = end_ns
    report = meter.report()
    assert_laws(report)
    for power_w, joules in true_j.items():
        assert kinds_of(report)[f"{power_w:.0f}"] == pytest.approx(joules, rel=0.02)


def test_each_gpu_has_its_own_joules(simulated: Simulated) -> None:
    simulation = simulated([Constant(200), Constant(500), Constant(700)], virtual=True, start_s=10)
    choices: list[list[int | str] | None] = [None, [1], [simulation.gpus[2].uuid, 0], [0, 0]]
    meters = [EnergyMeter(devices=devices) for devices in choices]
    for meter in meters:
        meter.start()
    simulation.advance(20)
    for meter in meters:
        meter.stop()
    uuids = [gpu.uuid for gpu in simulation.gpus]
    expected: list[dict[int, float]] = [{0: 200, 1: 500, 2: 700}, {1: 500}, {2: 700, 0: 200}, {0: 200}]
    for meter, powers_w in zip(meters, expected, strict=True):
        report = meter.report()
        assert list(report.gpu_j) == [uuids[number] for number in powers_w]
        for number, power_w in powers_w.items():
            assert report.gpu_j[uuids[number]] == pytest.approx(power_w * report.duration_s, rel=2e-3)
        assert_laws(report)


def test_stall_is_what_the_gpu_drew_between_steps_and_waits_are_part_of_it(simulated: Simulated) -> None:
    simulation = simulated(Script([(0.3, 500.0), (0.2, 100.0)]), virtual=True)
    until(simulation, 10 * SECOND)
    with EnergyMeter() as meter:
        begin_ns = 11 * SECOND
        for number in range(40):
            t_ns = begin_ns + number * SECOND // 2
            until(simulation, t_ns)
            with meter.step():
                until(simulation, t_ns + 300 * MS)
            until(simulation, t_ns + 350 * MS)
            with meter.span(Kind.DATA_WAIT):
                until(simulation, t_ns + 450 * MS)
    report = meter.report()
    assert_laws(report)
    assert report.stall_j == pytest.approx(39 * 0.2 * 100, rel=0.1)
    assert report.data_wait_j == pytest.approx(39 * 0.1 * 100, rel=0.1)
    assert np.isnan(report.steps["stall_j"][0])
    assert np.isnan(report.steps["data_wait_j"][0])
    assert np.isfinite(report.steps["stall_j"][1:]).all()
    assert report.steps["energy_j"].sum() == pytest.approx(40 * 0.3 * 500, rel=0.01)


def test_what_was_not_marked_is_missing_with_the_reason(steady: Simulation) -> None:
    with EnergyMeter() as meter:
        steady.advance(3)
    report = meter.report()
    assert (report.stall_j, report.data_wait_j, report.work.samples) == (None, None, None)
    assert report.missing["stall_j"] == "no steps were marked"
    assert report.missing["data_wait_j"] == "no steps were marked"


def test_samples_may_be_said_inside_the_step(steady: Simulation) -> None:
    with EnergyMeter() as meter:
        for number in range(3):
            with meter.step() as step:
                steady.advance(0.5)
                step.samples = number
                step.tokens = 10 * number if number else None
    report = meter.report()
    assert report.steps["samples"].tolist() == [0, 1, 2]
    assert report.steps["tokens"].tolist() == [-1, 10, 20]
    assert (report.work.samples, report.work.tokens) == (3, 30)


def test_an_exception_in_a_step_ends_it_and_goes_on(steady: Simulation) -> None:
    meter = EnergyMeter()
    with suppress(KeyboardInterrupt), meter, meter.step():
        steady.advance(2)
        raise KeyboardInterrupt
    report = meter.report()
    assert report.steps["energy_j"].tolist() == pytest.approx([600], rel=0.01)
    assert report.warnings == ()


def test_progress_is_unknown_at_first_and_then_close_to_the_truth(steady: Simulation) -> None:
    meter = EnergyMeter()
    assert meter.latest() is None
    with meter:
        start_ns = steady.clock.now_ns()
        assert meter.latest() is None
        for _ in range(50):
            with meter.step(samples=6, tokens=60):
                steady.advance(0.1)
        progress = meter.latest()
        now_ns = steady.clock.now_ns()
        assert progress is not None
        assert progress.total_j <= steady.gpus[0].true_energy_j(start_ns, now_ns) * 1.01
        assert progress.total_j >= steady.gpus[0].true_energy_j(start_ns, now_ns - 3 * SECOND // 2) * 0.99
        assert progress.avg_power_w == pytest.approx(POWER_W, rel=0.01)
        assert progress.step_j == pytest.approx(30, rel=0.01)
        assert progress.samples_per_j == pytest.approx(6 / 30, rel=0.01)
        assert progress.tokens_per_j == pytest.approx(60 / 30, rel=0.01)
        assert progress.stall_j == pytest.approx(0, abs=0.01)
        assert list(progress.gpu_j) == list(progress.gpu_power_w) == [steady.gpus[0].uuid]
        assert progress.gpu_power_w[steady.gpus[0].uuid] == pytest.approx(POWER_W, rel=0.02)
        seen = progress.steps
        steady.advance(2)
        later = meter.latest()
        assert later is not None
        assert 35 <= seen < 50
        assert seen + later.steps == 50
        again = meter.latest()
        assert again is not None
        assert (again.steps, again.step_j, again.samples_per_j) == (0, None, None)
    assert meter.latest() is None


def test_progress_of_steps_longer_than_a_block_is_whole(steady: Simulation) -> None:
    with EnergyMeter() as meter:
        meter.latest()
        for _ in range(3):
            with meter.step():
                steady.advance(35)
            steady.advance(1.5)
            progress = meter.latest()
            assert progress is not None
            assert progress.steps == 1
            assert progress.step_j == pytest.approx(35 * POWER_W, rel=0.01)
    assert meter.report().steps["energy_j"] == pytest.approx(np.full(3, 35 * POWER_W), rel=1e-3)


def test_a_report_of_a_running_meter_is_what_has_been_settled(steady: Simulation) -> None:
    with EnergyMeter("half way") as meter:
        for _ in range(500):
            with meter.step():
                steady.advance(0.1)
        part = meter.report()
        assert part.name == "half way"
        assert not part.complete
        assert 29 <= part.duration_s <= 50
        assert part.total_j == pytest.approx(POWER_W * part.duration_s, rel=1e-2)
        assert part.steps.rows >= 290
    whole = meter.report()
    assert whole.complete
    assert whole.run_id == part.run_id
    assert whole.steps.rows == 500
    assert whole.steps["energy_j"][: part.steps.rows].tolist() == part.steps["energy_j"].tolist()


def test_a_meter_can_be_started_again_and_forgets_the_window_before(steady: Simulation) -> None:
    meter = EnergyMeter()
    reports: list[Report] = []
    for length_s in (3.0, 6.0):
        with meter:
            assert meter.running
            with meter.step():
                steady.advance(length_s)
        assert not meter.running
        reports.append(meter.report())
    assert [report.total_j for report in reports] == pytest.approx([900, 1800], rel=5e-3)
    assert [report.steps.rows for report in reports] == [1, 1]
    assert [report.steps["end_s"][0] for report in reports] == pytest.approx([3, 6], rel=1e-3)
    assert reports[0].run_id != reports[1].run_id


def test_several_meters_run_side_by_side(steady: Simulation) -> None:
    outer, inner = EnergyMeter("outer"), EnergyMeter("inner")
    with outer:
        steady.advance(4)
        with inner, outer.step(), inner.step():
            steady.advance(5)
        steady.advance(3)
    assert inner.report().total_j == pytest.approx(5 * POWER_W, rel=3e-3)
    assert outer.report().total_j == pytest.approx(outer.report().duration_s * POWER_W, rel=3e-3)
    assert outer.report().duration_s == pytest.approx(12.3, abs=0.1)
    assert outer.report().steps["energy_j"][0] == pytest.approx(5 * POWER_W, rel=0.07)
    assert_laws(outer.report())
    assert_laws(inner.report())


def test_a_window_of_no_length_is_not_an_error(steady: Simulation) -> None:
    with EnergyMeter() as meter:
        pass
    assert meter.report().duration_s == pytest.approx(0, abs=1e-3)
    assert meter.report().total_j in (None, pytest.approx(0, abs=0.5))
    str(meter.report())


@pytest.mark.parametrize("length_s", [0.005, 0.05, 0.15, 0.4])
def test_short_windows_are_measured(steady: Simulation, length_s: float) -> None:
    with EnergyMeter() as meter:
        start_ns = steady.clock.now_ns()
        steady.advance(length_s)
        true_j = steady.gpus[0].true_energy_j(start_ns, steady.clock.now_ns())
    report = meter.report()
    assert abs((report.total_j or 0) - true_j) <= (report.error_bound_j or 0)
    assert report.coverage == pytest.approx(1)
    assert_laws(report)


def test_the_report_knows_its_name_config_and_folder(steady: Simulation, tmp_path: Path) -> None:
    with EnergyMeter("digits", folder=tmp_path / "run", config={"lr": 0.1, "layers": [1, 2]}) as meter:
        for _ in range(120):
            with meter.step(samples=2):
                steady.advance(0.1)
    report, loaded = meter.report(), Report.load(tmp_path / "run")
    assert loaded == report
    assert (loaded.name, loaded.config["lr"], loaded.work.samples) == ("digits", 0.1, 240)
    assert loaded.power[steady.gpus[0].uuid].rows == pytest.approx(12.2 * 50, rel=0.05)
    assert loaded.power[steady.gpus[0].uuid]["power_w"].mean() == pytest.approx(POWER_W, rel=0.01)
    assert "SIMULATED" in str(loaded)


def test_tables_of_a_gpu_are_made_with_their_first_rows(steady: Simulation, tmp_path: Path) -> None:
    with EnergyMeter(folder=tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"steps", "spans"}
        steady.advance(5)
    assert {path.name for path in tmp_path.iterdir()} >= {"steps", "spans", "power", "state"}


def test_power_need_not_be_kept(steady: Simulation, tmp_path: Path) -> None:
    with EnergyMeter(folder=tmp_path, keep_power=False) as meter:
        steady.advance(30)
    report = meter.report()
    assert report.total_j == pytest.approx(30 * POWER_W, rel=0.01)
    assert [power.rows for power in report.power.values()] == [0]
    assert list(tmp_path.glob("power/*/*")) == []
    assert Report.load(tmp_path).complete


def test_a_report_before_start_is_an_error(steady: Simulation) -> None:
    with pytest.raises(EnergyError, match="start the meter first"):
        EnergyMeter().report()
