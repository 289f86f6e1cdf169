"""The state lane and the activity lane, from the driver's calls to the report."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import SECOND, Simulated

from energy_plugins.measure.activity import ActivitySum, bound_by
from energy_plugins.measure.drivers import current_drivers, use_drivers
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.profilers import dcgm_processes
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import ACTIVITY_COLUMNS, STATE_COLUMNS, KindActivity
from energy_plugins.measure.state import StateSum
from energy_plugins.testing import Constant, GpuLost, MissingSymbol, NoPermission, SimulatedDevice, Simulation, Step

Work: TypeAlias = Callable[[SimulatedDevice], None]

_STATE = [("t_ns", "i8"), *((name, code) for name, code in STATE_COLUMNS.items() if name != "t_s")]
_ACTIVITY = [(f"{name[:-2]}_ns", "i8") if name in {"start_s", "end_s"} else (name, "f8") for name in ACTIVITY_COLUMNS]
_SYMBOLS = {
    "nvmlDeviceGetClockInfo": ("sm_clock_mhz",),
    "nvmlDeviceGetTemperature": ("max_temperature_c",),
    "nvmlDeviceGetUtilizationRates": ("utilisation",),
    "nvmlDeviceGetEnforcedPowerLimit": ("min_limit_w", "max_limit_w"),
    "nvmlDeviceGetPowerManagementLimit": ("requested_limit_w",),
    "nvmlDeviceGetPowerManagementDefaultLimit": ("default_limit_w",),
}
_FIELDS = (*(name for names in _SYMBOLS.values() for name in names), "throttled")


@pytest.fixture
def idle(simulated: Simulated) -> Simulation:
    """Give a GPU that draws its idle power until work is launched."""
    return simulated(Constant(125.0), virtual=True, start_s=10)


def product(gpu: SimulatedDevice) -> None:
    gpu.launch(ops=8e12, bytes=1e9, wait=True)


def copy(gpu: SimulatedDevice) -> None:
    gpu.launch(bytes=4.3e10, wait=True)


def tiny(gpu: SimulatedDevice) -> None:
    for _ in range(500):
        gpu.launch(ops=1e6, bytes=1e3)
    gpu.synchronize()


def worked(simulation: Simulation, work: Work, seconds: float, *, folder: Path | None = None) -> Report:
    """Measure steps of one kind of work, one after the other."""
    gpu, clock = simulation.gpus[0], simulation.clock
    with EnergyMeter(folder=folder, activity=True) as meter:
        until_ns = clock.now_ns() + round(seconds * SECOND)
        while clock.now_ns() < until_ns:
            with meter.step():
                work(gpu)
    return meter.report()


def limit(watts: float) -> None:
    """Set the limit of the simulated GPU."""
    pynvml.nvmlInit()
    try:
        pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(0), round(watts * 1e3))
    finally:
        pynvml.nvmlShutdown()


# State


def test_state_is_read_once_a_drain_and_summed_up(idle: Simulation) -> None:
    report = worked(idle, product, 12.0)
    (columns,), (state,) = report.state.values(), report.gpu_states
    assert dict(columns.schema) == dict(STATE_COLUMNS)
    assert 10 <= columns.rows == state.readings <= 13
    assert 0.5 <= np.diff(columns["t_s"]).min() <= np.diff(columns["t_s"]).max() <= 1.3
    assert (state.uuid, state.throttled) == (idle.gpus[0].uuid, 0.0)
    assert (state.min_limit_w, state.max_limit_w, state.requested_limit_w, state.default_limit_w) == (700,) * 4
    assert state.sm_clock_mhz == pytest.approx(1980)
    assert state.utilisation == pytest.approx(1.0, abs=0.15)
    assert "throttled" not in str(report)
    assert "power limit" not in str(report)
    assert not any(state.uuid in name for name in report.missing)


def test_a_limit_that_binds_shows_as_throttling_and_lower_clocks(idle: Simulation) -> None:
    limit(350)
    try:
        report = worked(idle, product, 12.0)
    finally:
        limit(700)
    (state,) = report.gpu_states
    assert (state.min_limit_w, state.max_limit_w, state.requested_limit_w, state.default_limit_w) == (
        350,
        350,
        350,
        700,
    )
    assert state.throttled is not None
    assert state.throttled > 0.8
    assert state.reasons["sw_power_cap"] == state.throttled
    assert state.sm_clock_mhz is not None
    assert 1000 < state.sm_clock_mhz < 1700
    text = " ".join(str(report).split())
    assert f"throttled gpu 0 {100 * state.throttled:.1f} % of the time (sw_power_cap" in text
    assert "power limit gpu 0 350.0 W, below its default 700.0 W" in text


def test_a_limit_changed_on_the_way_shows_as_its_range(idle: Simulation) -> None:
    gpu = idle.gpus[0]
    with EnergyMeter() as meter:
        for watts in (700, 500, 300):
            limit(watts)
            idle.advance(5)
            product(gpu)
    limit(700)
    (state,), (columns,) = meter.report().gpu_states, meter.report().state.values()
    assert (state.min_limit_w, state.max_limit_w) == (300, 700)
    assert set(columns["enforced_limit_w"]) == {700, 500, 300}


def test_the_temperature_follows_the_power(simulated: Simulated) -> None:
    simulation = simulated(Step(125.0, 650.0, at_s=15.0), virtual=True, start_s=10)
    with EnergyMeter() as meter:
        simulation.advance(25)
    (columns,), (state,) = meter.report().state.values(), meter.report().gpu_states
    assert columns["temperature_c"][0] < 45
    assert columns["temperature_c"][-1] == state.max_temperature_c
    assert (np.diff(columns["temperature_c"]) >= 0).all()
    assert state.max_temperature_c is not None
    assert state.max_temperature_c > 55


@pytest.mark.parametrize("symbol", _SYMBOLS)
def test_a_missing_symbol_costs_its_own_field_alone(simulated: Simulated, symbol: str) -> None:
    simulation = simulated(Constant(300.0), virtual=True, start_s=10, faults=[MissingSymbol(symbol)])
    with EnergyMeter() as meter:
        simulation.advance(8)
    report = meter.report()
    (state,) = report.gpu_states
    absent = {name for name in _FIELDS if getattr(state, name) is None}
    assert absent == set(_SYMBOLS[symbol])
    assert all(f"{name} {state.uuid}" in report.missing for name in absent)
    assert (report.coverage, report.warnings) == (1.0, ())


@pytest.mark.parametrize(
    ("symbols", "known"),
    [
        (["nvmlDeviceGetCurrentClocksEventReasons"], True),
        (["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"], False),
    ],
)
def test_older_drivers_tell_the_reasons_by_their_older_name(
    simulated: Simulated, symbols: list[str], known: bool
) -> None:
    faults = [MissingSymbol(symbol) for symbol in symbols]
    simulation = simulated(Constant(125.0), virtual=True, start_s=10, faults=faults)
    with EnergyMeter() as meter:
        simulation.advance(8)
    report = meter.report()
    (state,), (columns,) = report.gpu_states, report.state.values()
    assert (state.throttled == 0.0) == known
    assert state.reasons == ({"gpu_idle": 1.0} if known else {})
    assert (columns["clock_reasons"] == (1 if known else -1)).all()
    if not known:
        assert "nvmlDeviceGetCurrentClocksThrottleReasons" in report.missing[f"throttled {state.uuid}"]


def test_without_any_of_its_calls_there_is_no_state_and_all_else_goes_on(simulated: Simulated) -> None:
    calls = [*_SYMBOLS, "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
    simulation = simulated(Constant(300.0), virtual=True, start_s=10, faults=[MissingSymbol(call) for call in calls])
    with EnergyMeter() as meter:
        simulation.advance(8)
    report = meter.report()
    assert [state.readings for state in report.gpu_states] == [0]
    assert report.missing[f"state {simulation.gpus[0].uuid}"] == "no reading of it arrived"
    assert report.avg_power_w == pytest.approx(300, rel=0.01)


def test_lanes_pause_with_a_lost_gpu_and_go_on_when_it_is_back(simulated: Simulated) -> None:
    simulation = simulated(Constant(300.0), virtual=True, start_s=10, faults=[GpuLost(at_s=10, back_s=16)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with EnergyMeter(activity=True) as meter:
            simulation.advance(40)
    report = meter.report()
    assert len([warning for warning in caught if "GPU is lost" in str(warning.message)]) <= 2  # samples and counter
    (state,), (activity,) = report.state.values(), report.activity.values()
    lost = (state["t_s"] > 10.5) & (state["t_s"] < 15.5)
    assert not lost.any()
    assert state["t_s"].max() > 38
    assert ((activity["end_s"] <= 10.5) | (activity["start_s"] >= 15.5)).all()
    assert activity["end_s"].max() > 38
    assert np.isfinite(activity["sm"]).all()


readings = st.lists(
    st.tuples(
        st.integers(0, 10**9),
        *(st.just(float("nan")) | st.floats(0, 2000) for _ in range(5)),
        st.just(-1) | st.integers(0, 2**12),
    ),
    max_size=12,
)


@given(rows=readings, cut=st.integers(0, 12))
def test_state_in_any_batches_is_the_same(rows: list[tuple[Any, ...]], cut: int) -> None:
    whole, parts = StateSum(), StateSum()
    table = np.array(rows, _STATE)
    whole.add(table)
    parts.add(table[:cut])
    parts.add(table[cut:])
    one, other = (sums.summary("", None) for sums in (whole, parts))
    assert replace(one, sm_clock_mhz=None, utilisation=None, requested_limit_w=None) == replace(
        other, sm_clock_mhz=None, utilisation=None, requested_limit_w=None
    )
    clocks = table["sm_clock_mhz"][np.isfinite(table["sm_clock_mhz"])]
    for sums in (one, other):
        assert sums.sm_clock_mhz == (pytest.approx(clocks.mean()) if len(clocks) else None)
    assert one.throttled is None or 0 <= one.throttled <= min(1.0, sum(one.reasons.values()) + 1e-9)


# Activity


@pytest.mark.parametrize(
    ("work", "bound"), [(product, "compute-bound"), (copy, "memory-bound"), (tiny, "launch-bound")]
)
def test_a_kind_is_called_by_what_limits_it(idle: Simulation, work: Work, bound: str) -> None:
    report = worked(idle, work, 10.0)
    (kind,) = (one for one in report.kind_activity if one.kind == "step")
    assert kind.bound == bound
    assert kind.own > 0.95
    assert kind.duration_s == pytest.approx(10.0, abs=1.5)
    assert f"limited by step {bound} (SM" in " ".join(str(report).split())
    assert kind.sm is not None
    assert (kind.sm > 0.9) == (bound != "launch-bound")
    assert "activity" not in report.missing


def test_kinds_one_after_the_other_each_have_their_own_figures(idle: Simulation) -> None:
    gpu, clock = idle.gpus[0], idle.clock
    with EnergyMeter(activity=True) as meter:
        for name, work in (("product", product), ("copy", copy), ("tiny", tiny)):
            with meter.span(name):
                until_ns = clock.now_ns() + 15 * SECOND
                while clock.now_ns() < until_ns:
                    work(gpu)
    kinds = {kind.kind: kind for kind in meter.report().kind_activity}
    bounds = {name: kind.bound for name, kind in kinds.items()}
    assert bounds == {"product": "compute-bound", "copy": "memory-bound", "tiny": "launch-bound"}
    assert all(0.85 < kind.own <= 1 for kind in kinds.values())


def test_kinds_that_take_turns_share_their_readings_and_it_is_said(idle: Simulation) -> None:
    gpu, clock = idle.gpus[0], idle.clock
    with EnergyMeter(activity=True) as meter:
        until_ns = clock.now_ns() + 15 * SECOND
        while clock.now_ns() < until_ns:
            for name, work in (("product", product), ("copy", copy)):
                with meter.span(name):
                    work(gpu)
    first, second = (kind for kind in meter.report().kind_activity if kind.kind in {"product", "copy"})
    assert first.sm is not None
    assert first.tensor == pytest.approx(second.tensor, rel=0.05)
    assert first.own == pytest.approx(0.5, abs=0.05)
    assert str(meter.report()).count("readings shared with") == 2


def activity_rows(*rows: tuple[int, int, float]) -> np.ndarray[Any, np.dtype[np.void]]:
    return np.array([(start, end, *(value,) * 6) for start, end, value in rows], _ACTIVITY)


def test_a_reading_is_shared_out_by_time_over_any_cuts_of_the_run() -> None:
    rows = activity_rows((0, 4 * SECOND, 0.2), (4 * SECOND, 8 * SECOND, 0.8))
    at_once, in_parts = ActivitySum(), ActivitySum()
    at_once.add(rows, np.array([0, 3, 8]) * SECOND, np.array([1, 2]))
    in_parts.add(rows, np.array([0, 1]) * SECOND, np.array([1]))
    in_parts.add(rows, np.array([1, 3, 6]) * SECOND, np.array([1, 2]))
    in_parts.add(rows, np.array([6, 8]) * SECOND, np.array([2]))
    for sums in (at_once, in_parts):
        one, two = sums.summary(("unattributed", "one", "two"))
        assert (one.kind, one.duration_s) == ("one", 3.0)
        assert one.sm == pytest.approx(0.2)
        assert (two.kind, two.duration_s) == ("two", 5.0)
        assert two.dram == pytest.approx((0.2 + 4 * 0.8) / 5)


def test_a_value_the_driver_did_not_give_is_none_and_not_zero() -> None:
    rows = activity_rows((0, 4 * SECOND, 0.9))
    rows["tensor"] = np.nan
    sums = ActivitySum()
    sums.add(rows, np.array([0, 4]) * SECOND, np.array([0]))
    (kind,) = sums.summary(("unattributed",))
    assert (kind.tensor, kind.bound) == (None, "memory-bound")
    assert kind.sm == pytest.approx(0.9)


def test_a_kind_of_a_moment_gets_no_label() -> None:
    sums = ActivitySum()
    sums.add(activity_rows((0, 4 * SECOND, 0.9)), np.array([0, SECOND, 4 * SECOND]), np.array([0, 1]))
    assert [kind.kind for kind in sums.summary(("unattributed", "one"))] == ["one"]


@pytest.mark.parametrize(
    ("sm", "tensor", "dram", "bound"),
    [
        (0.94, 0.90, 0.18, "compute-bound"),  # a large matrix product on an H200
        (0.98, 0.0, 0.88, "memory-bound"),  # a copy
        (0.01, 0.0, 0.88, "memory-bound"),  # one by a copy engine
        (0.0, 0.0, 0.0, "launch-bound"),
        (0.49, 0.6, 0.5, "launch-bound"),
        (0.9, 0.7, 0.65, "compute-bound"),
        (0.9, 0.62, 0.65, "memory-bound"),
        (0.9, 0.3, 0.3, "mixed"),
        (0.9, None, 0.7, "memory-bound"),
        (0.9, None, None, "mixed"),
        (None, 0.9, 0.1, None),
    ],
)
def test_labels(sm: float | None, tensor: float | None, dram: float | None, bound: str | None) -> None:
    assert bound_by({"sm": sm, "tensor": tensor, "dram": dram}) == bound


# When the activity lane is on


def test_activity_is_off_unless_asked_for(idle: Simulation) -> None:
    with EnergyMeter() as meter:
        idle.advance(5)
    report = meter.report()
    assert (report.activity, report.kind_activity) == ({}, ())
    assert "activity=True" in report.missing["activity"]
    assert not (report_folder(meter) / "activity").exists()


def report_folder(meter: EnergyMeter) -> Path:
    """Return where a meter's last report lies."""
    (columns, *_) = meter.report().state.values()
    folder = columns._folder
    assert folder is not None
    return folder.parents[1]


@pytest.mark.parametrize("symbol", ["nvmlGpmQueryDeviceSupport", "nvmlGpmSampleGet"])
def test_a_gpu_without_gpm_has_no_activity_and_the_report_says_why(simulated: Simulated, symbol: str) -> None:
    simulation = simulated(Constant(300.0), virtual=True, start_s=10, faults=[MissingSymbol(symbol)])
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with EnergyMeter(activity=True) as meter:
            simulation.advance(10)
    report = meter.report()
    assert report.kind_activity == ()
    assert all(columns.rows == 0 for columns in report.activity.values())
    assert ("GPM" in report.missing["activity"]) == (symbol == "nvmlGpmQueryDeviceSupport")
    assert report.avg_power_w == pytest.approx(300, rel=0.01)


def test_who_may_not_read_activity_is_told_so_once(simulated: Simulated) -> None:
    simulation = simulated(Constant(300.0), virtual=True, start_s=10, faults=[NoPermission("nvmlGpmSampleGet")])
    with (
        pytest.warns(RuntimeWarning, match=r"nvmlGpmSampleGet: Insufficient Permissions") as caught,
        EnergyMeter(activity=True) as meter,
    ):
        simulation.advance(40)
    assert len(caught) == 1
    assert "warning" in meter.report().missing["activity"]


def process(proc: Path, number: int, name: str, *arguments: str) -> None:
    folder = proc / str(number)
    folder.mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_bytes("\0".join((name, *arguments, "")).encode())


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("nv-hostengine", (), True),
        ("dcgm-exporter", ("-f", "x"), True),
        ("dcgmi", ("dmon", "-e", "1002"), True),
        ("dcgmi", ("discovery", "-l"), False),
        ("python", ("dmon",), False),
    ],
)
def test_dcgm_profilers_are_found(tmp_path: Path, name: str, arguments: tuple[str, ...], found: bool) -> None:
    process(tmp_path, 1, "init")
    process(tmp_path, 4711, name, *arguments)
    (tmp_path / "42").mkdir()  # has just ended
    (tmp_path / "self").mkdir()
    assert dcgm_processes(tmp_path) == ((f"{name} (process 4711)",) if found else ())
    assert dcgm_processes(tmp_path / "nowhere") == ()


def test_beside_a_dcgm_profiler_the_lane_stays_off_and_says_so(idle: Simulation, tmp_path: Path) -> None:
    process(tmp_path, 7, "nv-hostengine")
    with use_drivers(replace(current_drivers(), proc=tmp_path)):
        with pytest.warns(RuntimeWarning, match="nv-hostengine"), EnergyMeter(activity=True) as meter:
            idle.advance(8)
        report = meter.report()
    assert report.activity == {}
    assert "stop it" in report.missing["activity"]
    assert any("nv-hostengine (process 7)" in warning for warning in report.warnings)
    assert report.avg_power_w == pytest.approx(125, rel=0.01)


# Columns and memory


def test_columns_survive_saving_and_loading(idle: Simulation, tmp_path: Path) -> None:
    report = worked(idle, product, 8.0, folder=tmp_path / "run")
    assert Report.load(tmp_path / "run") == report
    report.save(tmp_path / "again")
    again = Report.load(tmp_path / "again")
    assert again == report
    assert again.activity[idle.gpus[0].uuid].rows > 4
    assert isinstance(again.kind_activity[0], KindActivity)


def test_a_killed_run_keeps_its_columns(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.testing import Constant, simulated_gpus
with simulated_gpus(Constant(300), virtual=True, start_s=10) as simulation:
    meter = EnergyMeter(folder=sys.argv[1], activity=True).start()
    for _ in range(400):
        with meter.step():
            simulation.advance(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    report = Report.load(tmp_path / "run")
    assert not report.complete
    (state,), (activity,) = report.state.values(), report.activity.values()
    assert state["t_s"].max() > 37
    assert activity["end_s"].max() > 37
    assert report.gpu_states[0].readings > 10


def test_memory_is_flat_with_all_lanes_on(idle: Simulation) -> None:
    sizes = []
    tracemalloc.start()
    try:
        with EnergyMeter(activity=True) as meter:
            for _ in range(3):
                for _ in range(450):
                    with meter.step():
                        idle.advance(0.2)
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert abs(sizes[2] - sizes[1]) < 50_000, sizes
