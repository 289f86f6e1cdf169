"""Whose joules: other processes on a GPU are seen and said, and "unknown" is never "nobody"."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from measuring import Simulated

from energy_plugins.measure.devices import Gpu, visible_gpus
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.neighbours import Look, judge, sees_all_processes, sort_out
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import Company, DeviceInfo, Others, ProcessInfo
from energy_plugins.testing import Constant, Hang, HiddenProcesses, MissingSymbol, NoPermission, Simulation

LISTING = "nvmlDeviceGetComputeRunningProcesses_v3"
OLDER_LISTING = "nvmlDeviceGetComputeRunningProcesses_v2"
"""nvidia-ml-py asks by this where the newer is missing."""
STRANGER = ProcessInfo(pid=50, name="miner")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Give a process tree: we are 7, with a child and a grandchild, beside a stranger."""
    for pid, parent, name in [
        (1, 0, "init"),
        (2, 0, "kthreadd"),
        (7, 1, "trainer"),
        (8, 7, "loader ) R 1 (x"),
        (9, 8, "loader"),
        (50, 1, "miner"),
    ]:
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "stat").write_text(f"{pid} ({name}) S {parent} {pid} {pid} 0 -1")
        (folder / "comm").write_text(f"{name}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("pids", "look"),
    [
        ([], Look()),
        ([7], Look(ours=True)),
        ([9, 8], Look(ours=True)),
        ([50], Look(strangers=frozenset({STRANGER}))),
        ([1, 7], Look(ours=True, strangers=frozenset({ProcessInfo(pid=1, name="init")}))),
        ([0], Look(hidden=True)),
        ([7, 4_000_000], Look(ours=True, hidden=True)),
    ],
)
def test_processes_are_sorted_out(proc: Path, pids: Sequence[int], look: Look) -> None:
    assert sort_out(pids, 7, proc) == look


def test_a_process_that_cannot_be_read_is_hidden(proc: Path) -> None:
    (proc / "50" / "stat").write_text("50 (cut off")
    assert sort_out([50], 7, proc) == Look(hidden=True)


def test_whether_processes_are_hidden_from_us(proc: Path) -> None:
    assert sees_all_processes(proc)
    (proc / "2" / "comm").write_text("bash\n")
    assert not sees_all_processes(proc)
    assert not sees_all_processes(proc / "nowhere")


SOME = frozenset({STRANGER})


@pytest.mark.parametrize(
    ("look", "computing", "sees_all", "company"),
    [
        (None, False, True, Company.UNKNOWN),
        (Look(ours=True), True, False, Company.NONE),
        (Look(), False, True, Company.NONE),
        (Look(), True, True, Company.UNKNOWN),  # we compute, and are not listed
        (Look(), False, False, Company.UNKNOWN),
        (Look(ours=True, strangers=SOME), True, False, Company.SOME),
        (Look(strangers=SOME), False, True, Company.SOME),
        (Look(strangers=SOME), False, False, Company.UNKNOWN),  # the number may be another namespace's
        (Look(ours=True, hidden=True), True, True, Company.UNKNOWN),
        (Look(ours=True, hidden=True, strangers=SOME), True, True, Company.SOME),
        (Look(failure="refused"), False, True, Company.UNKNOWN),
        (Look(ours=True, failure="refused"), True, True, Company.UNKNOWN),
        (Look(ours=True, strangers=SOME, failure="refused"), True, True, Company.SOME),
    ],
)
def test_judging(look: Look | None, *, computing: bool, sees_all: bool, company: Company) -> None:
    others = judge(look, computing=computing, sees_all=sees_all)
    assert others.company is company
    assert others.processes == ((STRANGER,) if company is Company.SOME else ())
    assert bool(others.reason) is (company is Company.UNKNOWN)


def test_looks_add_up() -> None:
    looks = [Look(), Look(ours=True), Look(strangers=SOME), Look(hidden=True), Look(failure="a"), Look(failure="b")]
    whole = Look()
    for look in looks:
        whole = whole.and_then(look)
    assert whole == Look(ours=True, strangers=SOME, hidden=True, failure="a")


@contextmanager
def neighbour(simulation: Simulation) -> Iterator[int]:
    """Run another process that has work on the GPU, an orphan and so no descendant of ours."""
    program = (
        "import ctypes; nvml = ctypes.CDLL('libnvidia-ml.so.1'); nvml.ep_sim_launch(0, ctypes.c_double(1e9), "
        "ctypes.c_double(0)); print('there', flush=True); input()"
    )
    middle = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {program!r}])\n"
        "print(child.pid, flush=True)\nos._exit(0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", middle],
        env=simulation.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        process.wait()
        yield int((said - {"there"}).pop())
        process.stdin.close()  # which ends it


def measured(simulation: Simulation, seconds: float = 0.3) -> tuple[Report, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with EnergyMeter() as meter:
            simulation.gpus[0].launch(ops=1e9)
            simulation.clock.sleep(seconds)
    return meter.report(), [str(warning.message) for warning in caught]


def only(devices: Sequence[DeviceInfo]) -> Others:
    (device,) = devices
    return device.others


def test_another_process_on_the_gpu_is_named(real: Simulation, tmp_path: Path) -> None:
    with neighbour(real) as pid:
        report, warned = measured(real)
    others = only(report.devices)
    assert (others.company, [process.pid for process in others.processes]) == (Company.SOME, [pid])
    text = f"another process (pid {pid}, {others.processes[0].name}) used GPU {real.gpus[0].uuid} during the run: "
    assert [warning for warning in report.warnings if warning.startswith(text)]
    assert len([warning for warning in warned if text in warning]) == 1
    assert Report.load(report.save(tmp_path / "kept")).devices == report.devices


def test_one_that_came_and_went_between_start_and_end_is_seen_in_a_long_run(simulated: Simulated) -> None:
    simulation = simulated(Constant(300), virtual=True, start_s=10)
    with warnings.catch_warnings(), EnergyMeter() as meter:
        warnings.simplefilter("ignore", RuntimeWarning)
        simulation.gpus[0].launch(ops=1e9)
        simulation.advance(30)
        with neighbour(simulation) as pid:
            simulation.advance(45)
        simulation.advance(20)
    assert [process.pid for process in only(meter.report().devices).processes] == [pid]


def test_nobody_else(real: Simulation) -> None:
    report, warned = measured(real)
    assert only(report.devices) == Others(company=Company.NONE, reason="")
    assert not [name for name in report.missing if name.startswith("others")]
    assert warned == []


def test_a_child_of_ours_is_no_stranger(real: Simulation) -> None:
    program = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1').ep_sim_launch(0); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=real.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        report, _ = measured(real)
        child.communicate(b"\n")
    assert only(report.devices).company is Company.NONE


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ([HiddenProcesses()], "lists no process of ours"),
        ([HiddenProcesses(foreign_pids=True)], "lists no process of ours"),
        ([NoPermission(LISTING)], "Insufficient Permissions"),
        ([MissingSymbol(LISTING), MissingSymbol(OLDER_LISTING)], "Function Not Found"),
    ],
)
def test_hidden_processes_are_unknown_and_not_nobody(
    simulated: Simulated, faults: Sequence[HiddenProcesses | NoPermission | MissingSymbol], why: str
) -> None:
    simulation = simulated(Constant(300), faults=faults)
    with EnergyMeter() as meter:
        for _ in range(3):
            with meter.step():  # records events, so we surely compute
                simulation.gpus[0].launch(ops=1e9)
        simulation.clock.sleep(0.2)
    report = meter.report()
    assert only(report.devices).company is Company.UNKNOWN
    assert why in report.missing[f"others {simulation.gpus[0].uuid}"]
    assert why in " ".join(str(report).split())


@pytest.mark.alone
def test_a_driver_that_hangs_in_the_listing_holds_up_nothing(simulated: Simulated) -> None:
    simulation = simulated(Constant(300), faults=[Hang(LISTING, 3.5)])
    with EnergyMeter() as meter:
        simulation.clock.sleep(1.5)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 2
    report = meter.report()
    assert report.total_j == pytest.approx(300 * report.duration_s, rel=0.05)
    assert only(report.devices) == Others()
    time.sleep(2)  # until the call returns, so that its thread does not outlive the simulation


def test_a_slice_has_the_company_of_its_gpu(real: Simulation) -> None:
    (gpu,) = visible_gpus()
    with neighbour(real) as pid, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with EnergyMeter(devices=[Gpu(gpu.uuid, 0, gpu.name, gpu.driver, mig="MIG-x")]) as meter:
            real.gpus[0].launch(ops=1e9)
            real.clock.sleep(0.1)
    assert [process.pid for process in only(meter.report().devices).processes] == [pid]
