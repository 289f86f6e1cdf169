"""What happens to the process, to its neighbours and to its disk, for real: signals, forks, full and torn files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
from faulty import quietly
from measuring import POWER_W, Simulated, lasted_s

from energy_plugins.errors import ReportError
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.measure.sensors import DRAIN_PERIOD_NS
from energy_plugins.testing import Constant, Simulation, simulated_gpus

TRAIN = """
import sys, time
from energy_plugins.measure.meter import EnergyMeter
with EnergyMeter(folder=sys.argv[1]) as meter:
    print("started", flush=True)
    end_s = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end_s:
        with meter.step(samples=1):
            time.sleep(0.05)
"""


def training(simulation: Simulation, folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Start one in a process of its own, in real time."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAIN, str(folder), str(seconds)],
        env=simulation.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def finished(process: subprocess.Popen[str], folder: Path) -> Report:
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    return Report.load(folder)


@pytest.mark.slow
def test_a_process_that_stood_still_lost_samples_and_no_joules(real: Simulation, tmp_path: Path) -> None:
    process = training(real, tmp_path / "run", 9.5)
    time.sleep(1.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)  # twice as long as the driver's buffer is deep
    process.send_signal(signal.SIGCONT)
    report = finished(process, tmp_path / "run")
    assert report.total_j == pytest.approx(POWER_W * report.duration_s, rel=0.01)
    assert abs((report.total_j or 0) - POWER_W * report.duration_s) <= (report.error_bound_j or 0)
    assert 1 - report.coverage == pytest.approx((5 - 2.3) / report.duration_s, abs=0.15)
    assert any("the energy counter tells their joules" in text for text in report.warnings)
    stood = int(np.argmax(lasted_s(report.steps)))
    assert lasted_s(report.steps)[stood] > 4.5
    assert report.steps["coverage"][stood] < 0.8
    covered = report.steps["coverage"] == 1
    assert covered.sum() > 50
    assert report.steps["energy_j"][covered] == pytest.approx(POWER_W * lasted_s(report.steps)[covered], rel=0.25)


def test_two_processes_measure_one_gpu(real: Simulation, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    processes = [training(real, folder, 2.5) for folder in folders]
    for report in [finished(*pair) for pair in zip(processes, folders, strict=True)]:
        assert report.total_j == pytest.approx(POWER_W * report.duration_s, rel=0.02)
        assert report.coverage == pytest.approx(1)
        assert report.warnings == ()


def test_forks_in_the_middle_of_drains_harm_neither_side(real: Simulation) -> None:
    code = """
import os, sys
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.testing import library
meter = EnergyMeter().start()
endings = []
for number in range(150):
    with meter.step(samples=1):
        meter.run._sampler.drain_now()  # on its thread, while this one forks
        child = os.fork()
        if child == 0:
            with meter.step(), meter.span("child"):
                pass
            meter.latest()
            meter.stop()
            os._exit(0) if number % 10 else sys.exit(0)
        endings.append(os.waitpid(child, 0)[1])
meter.stop()
report = meter.report()
assert endings == [0] * 150, endings
assert report.work.samples == report.steps.rows == 150, report
assert "child" not in report.span_kinds
assert report.warnings == (), report.warnings
assert abs(report.total_j / report.duration_s - 300) < 10, report
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=real.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a real file system of 64 KiB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"may not mount: {mounted.stderr.strip()}; a limit on the size of files stands in for it elsewhere")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_ends_the_columns_and_neither_the_training_nor_the_report(
    simulated: Simulated, tiny_disk: Path, tmp_path: Path
) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
    with quietly(), EnergyMeter(folder=tiny_disk / "run") as meter:
        for _ in range(3000):
            with meter.step(samples=1):
                simulation.advance(0.1)
    report = meter.report()
    assert report.total_j == pytest.approx(3000 * 0.1 * POWER_W, rel=2e-3)
    assert report.work.steps == 3000
    assert ["columns end early" in text for text in report.warnings].count(True) == 1
    assert any("No space left on device" in text for text in report.warnings)
    with suppress(ReportError):  # what is there can be read, or is not there at all
        kept = Report.load(tiny_disk / "run")
        assert np.isfinite(kept.steps["energy_j"]).all()
    assert Report.load(report.save(tmp_path / "elsewhere")).total_j == report.total_j


KILLS = 20
COUNTER_S = 30.0
"""Longest time between two readings of the counter, each of which closes a block (csrc/device.cpp)."""
DRAIN_S = DRAIN_PERIOD_NS * 1e-9
DELIVERED_S = 0.25
"""How late the driver has a sample at most, and some."""


def test_a_report_killed_in_mid_write_always_loads(tmp_path: Path) -> None:
    rng = random.Random(7)
    clock = shared_memory.SharedMemory(create=True, size=8)
    now_s = np.ndarray(1, np.float64, clock.buf)
    steps_s, samples_s = [], []
    for number in range(KILLS):
        folder = tmp_path / str(number)
        now_s[0] = 0.0
        child = os.fork()
        if child == 0:
            try:
                _train_until_killed(folder, now_s)
            finally:
                os._exit(1)
        while now_s[0] < 20.0:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        report = Report.load(folder)
        assert not report.complete
        assert report.total_j == pytest.approx(POWER_W * report.duration_s, rel=0.02)
        assert report.steps["energy_j"] == pytest.approx(POWER_W * lasted_s(report.steps), rel=0.03)
        steps_s.append(now_s[0] - report.steps["end_s"].max())
        (power,) = report.power.values()
        samples_s.append(now_s[0] - power["t_s"].max())
        str(report)
    del now_s
    clock.close()
    clock.unlink()
    assert max(samples_s) <= DRAIN_S + DELIVERED_S
    # A block waits for its counter reading, its marks for the drain after the one that brought them.
    assert max(steps_s) <= COUNTER_S + 2 * DRAIN_S + DELIVERED_S


def _train_until_killed(folder: Path, now_s: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    with quietly(), simulated_gpus(Constant(POWER_W), virtual=True, start_s=10) as simulation:
        meter = EnergyMeter(folder=folder).start()
        start_ns = simulation.clock.now_ns()
        while True:
            with meter.step(samples=1):
                simulation.advance(0.05)
            now_s[0] = (simulation.clock.now_ns() - start_ns) * 1e-9


def test_a_report_killed_in_its_first_moments_loads_too(real: Simulation, tmp_path: Path) -> None:
    process = training(real, tmp_path / "run", 30)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    report = Report.load(tmp_path / "run")
    assert not report.complete
    assert report.total_j is None
    assert report.missing["total_j"]
