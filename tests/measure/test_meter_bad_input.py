"""What is wrong is said, once, and neither stops the training nor loses what was measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import COUNTER, POWER_W, SAMPLES, Simulated, lasted_s

from energy_plugins.errors import DeviceError, EnergyError, ReportError
from energy_plugins.measure.devices import Gpu, visible_gpus
from energy_plugins.measure.drivers import Drivers, use_drivers
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.measure.spans import Kind
from energy_plugins.testing import (
    Constant,
    CounterReset,
    Fault,
    GpuLost,
    MissingSymbol,
    NoCounter,
    NoPermission,
    NoSampleBuffer,
    NotSupported,
    Simulation,
)

POWER_CALLS = (SAMPLES, COUNTER, "nvmlDeviceGetPowerUsage", "nvmlDeviceGetFieldValues")


@contextmanager
def warned(text: str) -> Iterator[None]:
    """Expect a warning that says ``text`` and stands in no other words twice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = [str(warning.message) for warning in caught]
    assert any(text in message for message in messages), messages
    assert len(set(messages)) == len(messages)
    assert all(warning.category is RuntimeWarning for warning in caught)


def trained(meter: EnergyMeter, simulation: Simulation, steps: int = 100, step_s: float = 0.1) -> Report:
    """Return the report of a training that looks at its progress all the time."""
    with meter:
        for _ in range(steps):
            with meter.step(samples=1):
                simulation.advance(step_s)
            meter.latest()
    report = meter.report()
    assert report.steps.rows == steps
    str(report)
    return report


def assert_nothing_measured(report: Report, reason: str) -> None:
    assert report.total_j is None
    assert report.error_bound_j is None
    assert report.avg_power_w is None
    assert report.stall_j is None
    assert report.coverage == 0
    assert reason in report.missing["total_j"]
    assert all(kind.energy_j is None for kind in report.kinds)
    assert np.isnan(report.steps["energy_j"]).all()
    assert report.work.steps == report.steps.rows
    assert report.complete


@pytest.fixture
def steady(simulated: Simulated) -> Simulation:
    return simulated(Constant(POWER_W), virtual=True, start_s=10)


def test_without_a_driver_training_goes_on_and_the_report_says_why() -> None:
    with use_drivers(Drivers(nvml="/nowhere/libnvidia-ml.so.1", cuda="/nowhere/libcuda.so.1")):
        meter = EnergyMeter()
        with warned("Is a driver installed"), meter:
            for _ in range(3):
                with meter.step(samples=4):
                    pass
            assert meter.latest() is None
        report = meter.report()
    assert_nothing_measured(report, "Is a driver installed")
    assert report.gpu_j == {}
    assert report.work.samples == 12
    assert len(report.warnings) == 1
    assert not report.simulated


def test_devices_asked_for_without_a_driver_are_an_error() -> None:
    with use_drivers(Drivers(nvml="/nowhere/libnvidia-ml.so.1")), pytest.raises(DeviceError, match="Is a driver"):
        EnergyMeter(devices=[0]).start()


@pytest.mark.parametrize(
    ("devices", "complaint"),
    [
        ([3], "devices names GPU 3, but there are 1"),
        ([-1], "devices names GPU '-1'"),
        (["GPU-0"], "devices names GPU 'GPU-0', which matches 0 GPUs"),
        (["MIG-0"], "MIG slice 'MIG-0', which is not there"),
        ([Gpu("GPU-0000", 0, "none", "none")], "GPU GPU-0000 is not there"),
    ],
)
def test_an_unknown_device_is_named(steady: Simulation, devices: list[int | str | Gpu], complaint: str) -> None:
    meter = EnergyMeter(devices=devices)
    with pytest.raises(DeviceError, match=complaint):
        meter.start()
    assert not meter.running
    meter.stop()
    with pytest.raises(EnergyError, match="nothing to report"):
        meter.report()


@pytest.mark.parametrize(
    ("visible", "reason"),
    [
        ("", "CUDA_VISIBLE_DEVICES hides them all"),
        ("-1", "CUDA_VISIBLE_DEVICES hides them all"),
        ("7", "CUDA_VISIBLE_DEVICES names GPU 7, but there are 1"),
        ("GPU-nobody", "which matches 0 GPUs"),
        ("MIG-nobody", "MIG slice 'MIG-nobody', which is not there"),
    ],
)
def test_where_no_gpu_is_visible_nothing_is_measured(
    steady: Simulation, monkeypatch: pytest.MonkeyPatch, visible: str, reason: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with warned(reason):
        report = trained(EnergyMeter(), steady, steps=30)
    assert_nothing_measured(report, reason)


def test_an_empty_list_of_devices_is_not_blamed_on_the_environment(steady: Simulation) -> None:
    with warned("list of devices to measure is empty"):
        report = trained(EnergyMeter(devices=[]), steady, steps=20)
    assert_nothing_measured(report, "list of devices")


def test_only_visible_gpus_are_measured(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulated([Constant(200), Constant(400)], virtual=True, start_s=10)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", simulation.gpus[1].uuid[:12])
    report = trained(EnergyMeter(devices=[0]), simulation)
    assert list(report.gpu_j) == [simulation.gpus[1].uuid]
    assert report.total_j == pytest.approx(4000, rel=5e-3)


@pytest.mark.parametrize("slices", [["MIG-a"], ["MIG-a", "MIG-b"]])
def test_a_slice_has_no_joules_of_its_own(steady: Simulation, slices: list[str]) -> None:
    (gpu,) = visible_gpus()
    parts = [Gpu(gpu.uuid, gpu.index, gpu.name, gpu.driver, mig=mig) for mig in slices]
    report = trained(EnergyMeter(devices=parts), steady, steps=200)
    assert report.total_j is None
    assert report.gpu_j == dict.fromkeys(slices)
    assert "slices" in report.missing["total_j"]
    for mig in slices:
        assert f"its whole GPU, {gpu.uuid}, drew" in report.missing[f"gpu_j {mig}"]
    shared = report.extra["shared_gpu_j"]
    assert isinstance(shared, dict)
    assert shared[gpu.uuid] == pytest.approx(200 * 0.1 * POWER_W, rel=2e-3)
    assert [device.uuid for device in report.devices] == slices
    assert np.isnan(report.steps["energy_j"]).all()


def test_a_slice_beside_a_whole_gpu_is_not_added_to_it(simulated: Simulated) -> None:
    simulation = simulated([Constant(200), Constant(400)], virtual=True, start_s=10)
    whole, shared = visible_gpus()
    part = Gpu(shared.uuid, shared.index, shared.name, shared.driver, mig="MIG-x")
    report = trained(EnergyMeter(devices=[whole, part]), simulation, steps=200)
    assert report.gpu_j[whole.uuid] == pytest.approx(4000, rel=5e-3)
    assert report.gpu_j["MIG-x"] is None
    assert report.total_j == report.gpu_j[whole.uuid]
    assert report.steps["energy_j"].sum() == pytest.approx(report.total_j, rel=1e-6)


def test_a_slice_of_a_gpu_that_says_nothing_is_not_said_to_have_drawn_nothing(simulated: Simulated) -> None:
    simulation = simulated(
        Constant(POWER_W), virtual=True, start_s=10, faults=[NotSupported(call) for call in POWER_CALLS]
    )
    (gpu,) = visible_gpus()
    with warned("no reading of power or energy"):
        report = trained(EnergyMeter(devices=[Gpu(gpu.uuid, 0, "", "", mig="MIG-x")]), simulation, steps=200)
    assert report.extra["shared_gpu_j"] == {gpu.uuid: None}
    assert "was not measured" in report.missing["gpu_j MIG-x"]


def test_a_span_ended_twice_is_said_and_counts_once(steady: Simulation) -> None:
    meter = EnergyMeter()
    with warned("ended twice"), meter:
        for _ in range(20):
            meter.begin(Kind.STEP)
            steady.advance(0.1)
            meter.end(Kind.STEP)
            meter.end(Kind.STEP)
        meter.end("never begun")
    report = meter.report()
    assert report.steps.rows == 20
    assert report.steps["energy_j"] == pytest.approx(POWER_W * lasted_s(report.steps), rel=0.02)
    assert ["ended twice" in text for text in report.warnings] == [True]


def test_a_span_never_ended_is_said_and_closed_with_the_run(steady: Simulation) -> None:
    meter = EnergyMeter()
    with warned("'validate' was never ended"), meter:
        steady.advance(2)
        meter.begin(Kind.VALIDATE)
        steady.advance(4)
    report = meter.report()
    whole = {phase.kind: phase.energy_j for phase in report.phases}
    assert whole["validate"] == pytest.approx(4 * POWER_W, rel=0.01)
    assert report.total_j == pytest.approx(6 * POWER_W, rel=0.01)


def test_overlapping_spans_are_said_and_keep_the_sum(steady: Simulation) -> None:
    meter = EnergyMeter()
    with warned("overlap"), meter:
        meter.begin("copy")
        steady.advance(1)
        meter.begin("compute")
        steady.advance(2)
        meter.end("copy")
        steady.advance(3)
        meter.end("compute")
    report = meter.report()
    whole = {phase.kind: phase.energy_j for phase in report.phases}
    inside = {kind.kind: kind.energy_j for kind in report.kinds}
    assert [whole["copy"], whole["compute"]] == pytest.approx([900, 1500], rel=0.02)
    assert [inside["copy"], inside["compute"]] == pytest.approx([300, 1500], rel=0.04)
    assert sum(joules or 0 for joules in inside.values()) == pytest.approx(report.total_j)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("samples", -1, "negative int"),
        ("samples", -(10**12), "negative int"),
        ("tokens", -3, "negative int"),
        ("tokens", 2**63, "huge int"),
        ("samples", 2.5, "float"),
        ("tokens", "many", "str"),
    ],
)
def test_a_count_that_is_none_is_named_and_stops_nothing(steady: Simulation, name: str, value: Any, what: str) -> None:
    complaint = f"{name} must be a whole number from 0 on, got a {what}; it was left out"
    with warned(complaint), EnergyMeter() as meter:
        with meter.step(**{name: value}):
            steady.advance(1)
        with meter.step(samples=2):
            steady.advance(1)
        step = meter.step()
        step.__enter__()
        setattr(step, name, value)
        steady.advance(1)
        step.__exit__(KeyError, KeyError("the user's own"), None)  # must not put an error of its own in its place
        with meter.step(samples=2):
            steady.advance(1)
    report = meter.report()
    assert any(complaint in warning for warning in report.warnings)
    assert report.steps["energy_j"].tolist() == pytest.approx([300] * 4, rel=0.02)
    assert report.work.samples == 4
    assert report.work.tokens is None


def test_a_bad_count_is_not_looked_into_and_said_once(steady: Simulation) -> None:
    class Tensor:
        """As a tensor on a GPU: to read it is to wait, or to fail."""

        def __int__(self) -> int:
            raise RuntimeError("read")

        __index__ = __int__

        def __repr__(self) -> str:
            raise RuntimeError("read")

    tensor: Any = Tensor()
    with warned("got a Tensor"), EnergyMeter() as meter:
        for number in range(20):
            with meter.step(samples=tensor, tokens=-number - 1):
                steady.advance(0.1)
    said = [text for text in meter.report().warnings if "whole number" in text]
    assert sorted(text.split(" must")[0] for text in said) == ["samples", "tokens"]
    assert meter.report().steps.rows == 20


def test_marks_outside_a_window_are_nothing(steady: Simulation) -> None:
    meter = EnergyMeter()
    with meter.step(samples=3), meter.span("copy"):
        pass
    meter.end(Kind.STEP)
    with meter:
        steady.advance(1)
    with meter.step():
        pass
    assert meter.report().steps.rows == 0
    assert meter.report().warnings == ()


def test_starting_twice_is_an_error_and_the_window_goes_on(steady: Simulation) -> None:
    with EnergyMeter() as meter:
        steady.advance(2)
        with pytest.raises(EnergyError, match="stop it before starting it again"):
            meter.start()
        steady.advance(2)
    assert meter.report().total_j == pytest.approx(4 * POWER_W, rel=0.01)


def test_stopping_twice_or_never_started_is_nothing(steady: Simulation) -> None:
    EnergyMeter().stop()
    with EnergyMeter() as meter:
        steady.advance(2)
    report = meter.report()
    meter.stop()
    assert meter.report() is report


def test_a_folder_that_holds_a_report_is_left_as_it_is(steady: Simulation, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = trained(EnergyMeter("first", folder=folder), steady)
    meter = EnergyMeter("second", folder=folder)
    with pytest.raises(ReportError, match="another folder|holds a report|overwrite"):
        meter.start()
    assert not meter.running
    assert Report.load(folder) == first


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(steady: Simulation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(ReportError, match="file"):
        EnergyMeter(folder=tmp_path / "file" / "run").start()


def test_a_disk_that_fills_up_ends_the_columns_but_not_the_training(
    steady: Simulation, tmp_path: Path, disk_of: Callable[[int], AbstractContextManager[None]]
) -> None:
    meter = EnergyMeter(folder=tmp_path / "run")
    with disk_of(16384), warned("columns end early"), meter:
        for _ in range(800):
            with meter.step(samples=1):
                steady.advance(0.1)
    report = meter.report()
    assert report.total_j == pytest.approx(80 * POWER_W, rel=2e-3)
    assert report.work.steps == 800
    assert 0 < report.steps.rows < 800
    assert any("columns end early" in text and "too large" in text for text in report.warnings)
    assert np.isfinite(report.steps["energy_j"]).all()


def test_a_full_disk_keeps_the_report_in_memory(
    steady: Simulation, tmp_path: Path, disk_of: Callable[[int], AbstractContextManager[None]]
) -> None:
    meter = EnergyMeter(folder=tmp_path / "run")
    with disk_of(0), warned("could not be written"), meter:
        for _ in range(200):
            with meter.step():
                steady.advance(0.1)
    assert meter.report().total_j == pytest.approx(20 * POWER_W, rel=2e-3)
    assert meter.report().work.steps == 200
    with pytest.raises(ReportError):
        Report.load(tmp_path / "run")
    saved = meter.report().save(tmp_path / "elsewhere")
    assert Report.load(saved).total_j == meter.report().total_j


@pytest.mark.parametrize("fault", [NoPermission(SAMPLES), NoSampleBuffer(), MissingSymbol(SAMPLES)])
def test_without_samples_power_is_polled(simulated: Simulated, fault: Fault) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[fault])
    report = trained(EnergyMeter(), simulation, steps=300)
    assert report.total_j == pytest.approx(POWER_W * report.duration_s, rel=2e-3)
    assert report.devices[0].sensors == ("instant power", "energy counter")
    assert SAMPLES in report.devices[0].reasons["power samples"]


def test_without_any_sensor_nothing_is_measured_and_the_report_says_so(simulated: Simulated) -> None:
    faults = [NotSupported(call) for call in POWER_CALLS]
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=faults)
    with warned("no reading of power or energy"):
        report = trained(EnergyMeter(), simulation, steps=300)
    assert_nothing_measured(report, "no reading of power or energy")
    assert report.gpu_j == {simulation.gpus[0].uuid: None}
    assert report.devices[0].sensors == ()
    assert report.devices[0].reasons.keys() >= {"power samples", "instant power", "average power", "energy counter"}


@pytest.mark.parametrize("fault", [NoPermission(COUNTER), NoCounter(), MissingSymbol(COUNTER)])
def test_without_a_counter_samples_are_enough(simulated: Simulated, fault: Fault) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[fault])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = trained(EnergyMeter(), simulation, steps=300)
    assert report.total_j == pytest.approx(9000, rel=5e-3)
    assert (report.error_bound_j or 0) > 0.01 * 9000
    assert report.coverage == pytest.approx(1)
    assert "energy counter" in report.devices[0].reasons
    assert [COUNTER in text for text in report.warnings] == [True] * isinstance(fault, NoPermission)


def test_a_counter_that_starts_again_is_left_out(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[CounterReset(at_s=7)])
    with warned("went backwards"):
        report = trained(EnergyMeter(), simulation, steps=300)
    assert abs((report.total_j or 0) - 9000) <= (report.error_bound_j or 0)
    assert report.coverage == pytest.approx(1)


def test_a_gpu_that_is_lost_and_comes_back_leaves_a_gap(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[GpuLost(at_s=15, back_s=20)])
    with warned("GPU is lost"):
        report = trained(EnergyMeter(), simulation, steps=400)
    assert 0.8 < report.coverage < 0.95
    assert report.total_j == pytest.approx(400 * 0.1 * POWER_W, rel=5e-3)
    energy_j, coverage = report.steps["energy_j"], report.steps["coverage"]
    assert (np.isnan(energy_j) == (coverage == 0)).all()
    assert 25 < np.isnan(energy_j).sum() < 75  # the driver buffers the last 2.4 s before the GPU is back
    whole = coverage == 1
    assert energy_j[whole] == pytest.approx(POWER_W * lasted_s(report.steps)[whole], rel=0.02)
    assert sum(kind.energy_j or 0 for kind in report.kinds) == pytest.approx(report.total_j)


def test_a_gpu_that_is_lost_for_good_keeps_what_was_measured(simulated: Simulated) -> None:
    simulation = simulated([Constant(POWER_W), Constant(200)], virtual=True, start_s=10)
    simulation.gpus[1].inject(GpuLost(at_s=15))
    with warned("GPU is lost"):
        report = trained(EnergyMeter(), simulation, steps=600)
    first, second = (report.gpu_j[gpu.uuid] for gpu in simulation.gpus)
    assert first == pytest.approx(600 * 0.1 * POWER_W, rel=5e-3)
    assert second == pytest.approx(15 * 200, rel=0.1)
    assert 0.5 < report.coverage < 0.75
    assert report.steps["coverage"][:120] == pytest.approx(1)
    assert report.steps["coverage"][-120:] == pytest.approx(0.5)
    assert report.steps["energy_j"][-120:] == pytest.approx(POWER_W * lasted_s(report.steps)[-120:], rel=0.02)
    assert any(simulation.gpus[1].uuid in text for text in report.warnings)


def test_a_gpu_that_is_lost_at_the_start_is_said(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[GpuLost()])
    with warned("GPU is lost"):
        report = trained(EnergyMeter(), simulation, steps=30)
    assert_nothing_measured(report, "GPU is lost")


def test_a_gpu_that_is_lost_does_not_hide_the_others(simulated: Simulated) -> None:
    simulation = simulated([Constant(200), Constant(400)], virtual=True, start_s=10)
    simulation.gpus[1].inject(GpuLost())
    report = trained(EnergyMeter(), simulation)
    assert list(report.gpu_j) == [simulation.gpus[0].uuid]
    assert report.total_j == pytest.approx(2000, rel=5e-3)


def test_a_gpu_that_is_lost_between_listing_and_probing_may_come_back(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
    gpus = visible_gpus()
    simulation.gpus[0].inject(GpuLost(back_s=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = trained(EnergyMeter(devices=gpus), simulation, steps=300)
    assert report.total_j is not None
    assert 0.7 < report.coverage < 0.9
    assert report.steps["energy_j"][-100:] == pytest.approx(POWER_W * lasted_s(report.steps)[-100:], rel=0.02)
    assert "GPU is lost" in report.devices[0].reasons["all"]


def test_warnings_made_errors_do_not_end_the_training(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[GpuLost(at_s=5, back_s=8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = trained(EnergyMeter(), simulation, steps=200)
    assert any("GPU is lost" in text for text in report.warnings)
    assert report.total_j == pytest.approx(6000, rel=0.01)


def test_a_kind_that_was_never_measured_has_no_joules(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[GpuLost(at_s=10, back_s=22)])
    meter = EnergyMeter()
    with warned("GPU is lost"), meter:
        simulation.advance(13)
        with meter.span("blind"):
            simulation.advance(2)
        simulation.advance(25)
    report = meter.report()
    blind = {phase.kind: phase for phase in report.phases}["blind"]
    assert (blind.energy_j, blind.error_bound_j, blind.coverage) == (None, None, 0)
    spans = report.spans
    assert math.isnan(spans["energy_j"][spans["kind"] == report.span_kinds.index("blind")][0])
