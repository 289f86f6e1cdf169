"""The few CUDA calls: events follow the device's queue, on the device's own clock."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from energy_plugins.testing import Simulation, library

NOT_INITIALIZED, INVALID_CONTEXT, NOT_READY, CAPTURE_UNSUPPORTED, CAPTURED = 3, 201, 600, 900, 907
RELAXED = 2
Simulated = Callable[..., Simulation]


@pytest.fixture
def simulation(simulated: Simulated) -> Simulation:
    return simulated(virtual=True, count=2)


def call(name: str, *arguments: object) -> int:
    return int(getattr(library.cuda(), name)(*arguments))


def record(stream: ctypes.c_void_p | None = None) -> ctypes.c_void_p:
    event = ctypes.c_void_p()
    assert call("cuEventCreate", ctypes.byref(event), 0) == 0
    assert call("cuEventRecord", event, stream) == 0
    return event


def elapsed_ms(start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
    value = ctypes.c_float()
    assert call("cuEventElapsedTime", ctypes.byref(value), start, end) == 0
    return value.value


def test_an_event_on_an_idle_device_is_complete_at_once(simulation: Simulation) -> None:
    assert call("cuEventQuery", record()) == 0


def test_run_ahead_an_event_completes_with_the_work_before_it(simulation: Simulation) -> None:
    gpu = simulation.gpus[0]
    start = record()
    gpu.launch(ops=8e12)
    middle = record()
    gpu.launch(ops=8e12)
    end = record()
    assert simulation.clock.now_ns() == 0
    assert [call("cuEventQuery", event) for event in (start, middle, end)] == [0, NOT_READY, NOT_READY]
    simulation.advance(0.015)
    assert [call("cuEventQuery", event) for event in (start, middle, end)] == [0, 0, NOT_READY]
    assert call("cuEventSynchronize", end) == 0
    assert simulation.clock.now_ns() == pytest.approx(20e6, rel=0.01)
    assert elapsed_ms(start, middle) == pytest.approx(10.0, rel=0.01)
    assert elapsed_ms(start, end) == pytest.approx(20.0, rel=0.01)


def test_a_gap_between_work_is_on_the_devices_clock(simulation: Simulation) -> None:
    simulation.gpus[0].launch(ops=8e11, wait=True)
    end = record()
    simulation.advance(0.5)
    assert elapsed_ms(end, record()) == pytest.approx(500.0, rel=1e-4)


def test_a_private_stream_does_not_wait_for_the_queue(simulation: Simulation) -> None:
    stream = ctypes.c_void_p()
    assert call("cuStreamCreate", ctypes.byref(stream), 1) == 0
    simulation.gpus[0].launch(ops=8e12)
    assert call("cuEventQuery", record(stream)) == 0
    assert call("cuEventQuery", record()) == NOT_READY
    assert call("cuEventQuery", record(ctypes.c_void_p(0xABC0))) == NOT_READY
    assert call("cuStreamDestroy_v2", stream) == 0


def test_the_devices_clock_drifts_by_3_ppm(simulation: Simulation) -> None:
    start = record()
    simulation.advance(100.0)
    drift = elapsed_ms(start, record()) / 100e3 - 1
    assert drift == pytest.approx(3e-6, abs=1e-7)  # a float32 of milliseconds resolves 6e-8


def test_elapsed_time_of_unfinished_work_is_not_ready(simulation: Simulation) -> None:
    start = record()
    simulation.gpus[0].launch(ops=8e12)
    value = ctypes.c_float()
    assert call("cuEventElapsedTime_v2", ctypes.byref(value), start, record()) == NOT_READY


def test_events_belong_to_the_device_of_the_current_context(simulation: Simulation) -> None:
    first = ctypes.c_void_p()
    assert call("cuCtxGetCurrent", ctypes.byref(first)) == 0
    second = ctypes.c_void_p()
    assert call("cuDevicePrimaryCtxRetain", ctypes.byref(second), 1) == 0
    simulation.gpus[1].launch(ops=8e12)
    assert call("cuEventQuery", record()) == 0
    assert call("cuCtxSetCurrent", second) == 0
    try:
        assert call("cuEventQuery", record()) == NOT_READY
    finally:
        call("cuCtxSetCurrent", first)


def test_a_query_during_capture_breaks_it_unless_the_thread_is_relaxed(simulation: Simulation) -> None:
    event, status = record(), ctypes.c_int()
    simulation.capturing(1)
    try:
        assert call("cuStreamIsCapturing", None, ctypes.byref(status)) == 0
        assert status.value == 1
        assert call("cuEventQuery", record()) == CAPTURED
        mode = ctypes.c_int(RELAXED)
        call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        assert call("cuEventQuery", event) == 0
        call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        assert mode.value == RELAXED
        assert call("cuEventQuery", event) == CAPTURE_UNSUPPORTED
    finally:
        assert simulation.capturing(0) == 2


def uuids() -> list[str]:
    count = ctypes.c_int()
    assert call("cuDeviceGetCount", ctypes.byref(count)) == 0
    found = []
    for ordinal in range(count.value):
        raw = (ctypes.c_ubyte * 16)()
        assert call("cuDeviceGetUuid_v2", raw, ordinal) == 0
        text = bytes(raw).hex()
        found.append(f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
    return found


def test_cuda_and_nvml_agree_about_uuids(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [gpu.uuid for gpu in simulation.gpus]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert uuids() == both
    for setting, expected in [("1,0", both[::-1]), (both[1], both[1:]), ("0,7,1", both[:1]), ("", []), ("-1", [])]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
        assert uuids() == expected


def test_without_contexts_cuda_looks_untouched(simulated: Simulated) -> None:
    simulated(cuda=False)
    context, count = ctypes.c_void_p(), ctypes.c_int()
    assert call("cuCtxGetCurrent", ctypes.byref(context)) == NOT_INITIALIZED
    assert call("cuDeviceGetCount", ctypes.byref(count)) == NOT_INITIALIZED
    assert call("cuEventCreate", ctypes.byref(context), 0) == INVALID_CONTEXT


def test_attributes_are_those_of_the_profile(simulation: Simulation) -> None:
    def attribute(number: int, device: int = 0) -> tuple[int, int]:
        value = ctypes.c_int(-1)
        return call("cuDeviceGetAttribute", ctypes.byref(value), number, device), value.value

    assert [attribute(number) for number in (16, 36, 37, 38, 75, 76, 81)] == [
        (0, value) for value in (132, 3_201_000, 6144, 60 << 20, 9, 0, 228 << 10)
    ]
    assert attribute(12345) == (1, -1)
    assert attribute(38, device=7) == (101, -1)
