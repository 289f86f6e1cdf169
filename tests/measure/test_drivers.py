"""Which libraries and which clock are in force."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from energy_plugins.measure.drivers import Drivers, RealClock, current_drivers, use_drivers
from energy_plugins.testing import simulated_gpus


def test_by_default_they_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVML_LIBRARY", "CUDA_LIBRARY", "POWERCAP_ROOT", "EVENT_SOURCES_ROOT"):
        monkeypatch.delenv(f"ENERGY_{name}", raising=False)
    drivers = current_drivers()
    assert (drivers.nvml, drivers.cuda) == ("libnvidia-ml.so.1", "libcuda.so.1")
    assert (drivers.powercap, drivers.event_sources) == ("/sys/class/powercap", "/sys/bus/event_source/devices")
    assert drivers.clock.threaded


def test_the_environment_names_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_NVML_LIBRARY", "/a/nvml.so")
    monkeypatch.setenv("ENERGY_CUDA_LIBRARY", "/a/cuda.so")
    monkeypatch.setenv("ENERGY_POWERCAP_ROOT", "/a/powercap")
    monkeypatch.setenv("ENERGY_EVENT_SOURCES_ROOT", "/a/devices")
    assert (current_drivers().nvml, current_drivers().cuda) == ("/a/nvml.so", "/a/cuda.so")
    assert (current_drivers().powercap, current_drivers().event_sources) == ("/a/powercap", "/a/devices")


def test_the_innermost_use_is_in_force_and_ends_with_its_block() -> None:
    before = (current_drivers().nvml, current_drivers().cuda)
    outer, inner = Drivers(nvml="outer"), Drivers(nvml="inner")
    with use_drivers(outer):
        with suppress(ZeroDivisionError), use_drivers(inner):
            assert current_drivers() is inner
            raise ZeroDivisionError
        assert current_drivers() is outer
    assert (current_drivers().nvml, current_drivers().cuda) == before


def test_a_simulation_brings_its_own_and_takes_them_away() -> None:
    before = current_drivers().nvml
    with simulated_gpus(virtual=True) as simulation:
        assert current_drivers().nvml == simulation.nvml_path
        assert current_drivers().clock is simulation.clock
        assert not current_drivers().clock.threaded
    assert current_drivers().nvml == before


def test_the_real_clock_is_the_machines() -> None:
    clock = RealClock()
    before = time.monotonic_ns()
    clock.sleep(0.001)
    now = clock.now_ns()
    assert before + 1_000_000 <= now <= time.monotonic_ns()
    assert abs(clock.wall_ns() - time.time_ns()) < 10**9
    assert abs(clock.native.now_ns() - now) < 10**9
    ticks: list[int] = []

    def tick(now_ns: int) -> int:
        ticks.append(now_ns)
        return now_ns

    clock.attach(tick)
    clock.detach(tick)
    assert ticks == []
