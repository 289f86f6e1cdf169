"""What `energy-plugins doctor` says of the sensors of each GPU, what is measured with them, and of the CPU's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from commands import Simulated, surroundings
from doctoring import SENSORS, doctor, status

from energy_plugins.cli.check import CPU, MEASURED_BY, Status
from energy_plugins.cli.gpu_checks import others_check
from energy_plugins.cli.machine_checks import cpu_checks
from energy_plugins.measure.baseline_store import IdlePower, remember
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.neighbours import sees_all_processes
from energy_plugins.measure.report_parts import Company, Others, ProcessInfo
from energy_plugins.testing import (
    A100,
    H200,
    V100,
    Fault,
    MissingSymbol,
    NoCounter,
    NoPermission,
    NoSampleBuffer,
    NotSupported,
    Profile,
)
from energy_plugins.testing.powercap import PowercapTree, amd, intel

READING_ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
ALL_SENSORS_GONE: list[Fault] = [
    NoSampleBuffer(),
    NoCounter(),
    MissingSymbol("nvmlDeviceGetPowerUsage"),
    MissingSymbol("nvmlDeviceGetFieldValues"),
]


@pytest.mark.parametrize(
    ("fault", "sensor", "why", "remedy"),
    [
        (NoSampleBuffer(), "power samples", "Not Supported", "no such sensor"),
        (NoCounter(), "energy counter", "Not Supported", "no such sensor"),
        (NotSupported("NVML_FI_DEV_POWER_INSTANT"), "instant power", "Not Supported", "no such sensor"),
        (NoPermission("nvmlDeviceGetPowerUsage"), "power usage", "Insufficient Permissions", "run as root"),
        (NotSupported("NVML_FI_DEV_POWER_AVERAGE"), "average power", "Not Supported", "no such sensor"),
        (MissingSymbol("nvmlDeviceGetClockInfo"), "state", "Function Not Found", "update the driver"),
    ],
)
def test_a_missing_sensor_is_named_with_reason_and_remedy(
    simulated: Simulated, fault: Fault, sensor: str, why: str, remedy: str
) -> None:
    simulation = simulated(faults=[fault])
    _, checks = doctor(simulation)
    found = checks[sensor, simulation.gpus[0].uuid]
    assert found["status"] == "missing"
    assert why in found["why"]
    assert remedy in found["remedy"]
    others = [name for name in SENSORS if name != sensor]
    assert {name: status(checks, name, simulation.gpus[0].uuid) for name in others} == dict.fromkeys(others, "ok")


BLIND = ("nvmlDeviceGetSamples", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage")


@pytest.mark.parametrize(
    ("faults", "profile", "state", "found", "why", "remedy"),
    [
        ([], H200, "ok", "power samples, energy counter", "", ""),
        ([NoPermission("nvmlDeviceGetPowerUsage")], H200, "ok", "power samples, energy counter", "", ""),
        ([NoSampleBuffer()], H200, "ok", "instant power, energy counter", "no power samples (.*Not Supported", ""),
        ([NoSampleBuffer()], V100, "ok", "power usage (every 20 ms), energy counter", "no power samples (", ""),
        ([NoCounter()], H200, "ok", "power samples alone", "no energy counter (.*Not Supported", ""),
        (
            [NoPermission(READING_ENERGY)],
            H200,
            "warning",
            "power samples alone",
            "no energy counter (.*Permissions",
            "run as root",
        ),
        (
            [NoPermission("nvmlDeviceGetSamples")],
            H200,
            "warning",
            "instant power, energy counter",
            "no power samples (.*Permissions",
            "run as root",
        ),
        (
            [MissingSymbol("nvmlDeviceGetFieldValues"), NoSampleBuffer(), NoCounter()],
            A100,
            "warning",
            "power usage (instantaneous) alone",
            "no power samples (.*no energy counter (.*no average power (",
            "update the driver",
        ),
        (
            [NoSampleBuffer(), NoCounter()],
            H200,
            "ok",
            "instant power, average power",
            "no power samples (.*no energy counter (",
            "",
        ),
        (
            [NoSampleBuffer(), NoCounter(), NoPermission("NVML_FI_DEV_POWER_AVERAGE")],
            A100,
            "warning",
            "instant power alone",
            "no power samples (.*no energy counter (.*no average power (",
            "run as root",
        ),
        ([NotSupported(name) for name in BLIND], H200, "ok", "energy counter alone", ".*no power usage (", ""),
        (
            [NotSupported(name) for name in (*BLIND, READING_ENERGY)],
            H200,
            "missing",
            "nothing",
            "no power samples (.*no energy counter (.*Not Supported",
            "nothing: measure on another GPU",
        ),
        ([NoPermission(name) for name in (*BLIND, READING_ENERGY)], H200, "missing", "nothing", "", "run as root"),
    ],
)
def test_what_a_gpu_will_be_measured_with(
    simulated: Simulated, faults: list[Fault], profile: Profile, state: str, found: str, why: str, remedy: str
) -> None:
    simulation = simulated(faults=faults, profile=profile)
    code, checks = doctor(simulation)
    check = checks[MEASURED_BY, simulation.gpus[0].uuid]
    assert (check["status"], check["found"]) == (state, found)
    assert code == (3 if state == "missing" else 0)
    assert re.match(why.replace("(", r"\("), check["why"])
    assert bool(check["why"]) == bool(why or state == "missing")
    assert check["remedy"].startswith(remedy)
    assert bool(check["remedy"]) == bool(remedy)


@pytest.mark.parametrize(("profile", "kind"), [(H200, "averaged"), (A100, "instantaneous"), (V100, "every 20 ms")])
def test_what_power_usage_is_on_a_gpu(simulated: Simulated, profile: Profile, kind: str) -> None:
    simulation = simulated(profile=profile)
    _, checks = doctor(simulation)
    assert checks["power usage", simulation.gpus[0].uuid]["found"].endswith(f" W, {kind}")


def test_a_gpu_without_any_sensor(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    for fault in ALL_SENSORS_GONE:
        simulation.gpus[1].inject(fault)
    code, checks = doctor(simulation)
    assert code == 1
    assert [status(checks, MEASURED_BY, gpu.uuid) for gpu in simulation.gpus] == ["ok", "missing"]
    for fault in ALL_SENSORS_GONE:
        simulation.gpus[0].inject(fault)
    assert doctor(simulation)[0] == 3


@pytest.mark.parametrize(
    ("days", "driver", "state", "words"),
    [
        (3, "580.159.04", "ok", "measured 3 days ago"),
        (31, "580.159.04", "warning", "is 31 days old"),
        (3, "570.1", "warning", "was measured with driver 570.1"),
        (None, "", "warning", "EnergyMeter.baseline()"),
    ],
)
def test_the_idle_baseline(simulated: Simulated, days: int | None, driver: str, state: str, words: str) -> None:
    simulation = simulated()
    uuid = simulation.gpus[0].uuid
    if days is not None:
        measured = (datetime.now(UTC) - timedelta(days=days, minutes=1)).isoformat()
        remember([IdlePower(uuid=uuid, power_w=79.3, error_bound_w=1, measured=measured, seconds=10, driver=driver)])
    code, checks = doctor(simulation)
    check = checks["idle baseline", uuid]
    assert (code, check["status"]) == (0, state)
    assert check["found"].startswith("none" if days is None else "79.3 W")
    assert words in f"{check['found']} {check['why']} {check['remedy']}"


def test_idle_baselines_that_cannot_be_trusted(simulated: Simulated, cache_home: Path) -> None:
    simulation = simulated()
    (cache_home / "energy-plugins").mkdir()
    (cache_home / "energy-plugins" / "baselines.json").write_text("[")
    code, checks = doctor(simulation)
    check = checks["idle baseline", simulation.gpus[0].uuid]
    assert (code, check["status"], check["found"]) == (0, "warning", "none")
    assert "the idle baselines are not used" in check["why"]


def test_another_process_on_the_gpu(simulated: Simulated) -> None:
    simulation = simulated()
    program = "import ctypes; print(ctypes.CDLL('libnvidia-ml.so.1').ep_sim_launch(0), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=surroundings(simulation), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        _, checks = doctor(simulation)
        other.communicate(b"\n")
    found = checks["others", simulation.gpus[0].uuid]
    # Where processes are hidden, a number that the driver names may be another's.
    seen = f"process {other.pid} (" if sees_all_processes() else "unknown"
    assert found["status"] == "warning"
    assert found["found"].startswith(seen)


def test_nobody_and_unknown_are_told_apart(simulated: Simulated) -> None:
    simulation = simulated(faults=[NoPermission("nvmlDeviceGetComputeRunningProcesses_v3")])
    _, checks = doctor(simulation)
    found = checks["others", simulation.gpus[0].uuid]
    assert (found["status"], found["found"]) == ("warning", "unknown")
    assert "Insufficient Permissions" in found["why"]
    simulation.gpus[0].heal()
    _, checks = doctor(simulation)
    nobody = ("ok", "no process computes here") if sees_all_processes() else ("warning", "unknown")
    assert (
        status(checks, "others", simulation.gpus[0].uuid),
        checks["others", simulation.gpus[0].uuid]["found"],
    ) == nobody


@pytest.mark.parametrize(
    ("others", "state", "found"),
    [
        (Others(company=Company.NONE, reason=""), Status.OK, "no process computes here"),
        (Others(reason="hidden"), Status.WARNING, "unknown"),
        (
            Others(company=Company.SOME, processes=(ProcessInfo(pid=5, name="a"), ProcessInfo(pid=7, name="b"))),
            Status.WARNING,
            "process 5 (a), process 7 (b)",
        ),
    ],
)
def test_others_as_a_report_says_them(others: Others, state: Status, found: str) -> None:
    check = others_check(Gpu("GPU-1", 0, "H200", "580"), others)
    assert (check.status, check.found, check.gpu) == (state, found, "GPU-1")


# ---- the CPU ---------------------------------------------------------------------------------------------------------


def test_a_cpu_that_does_not_count_its_memory(tmp_path: Path) -> None:
    _, checks = doctor(ENERGY_POWERCAP_ROOT=str(PowercapTree(tmp_path, amd(1)).root))
    assert (status(checks, CPU), status(checks, "DRAM energy")) == ("ok", "missing")
    assert "is the energy of DRAM alone" in checks["DRAM energy", ""]["why"]


def test_a_machine_without_counters_of_the_cpu(tmp_path: Path) -> None:
    code, checks = doctor(ENERGY_POWERCAP_ROOT=str(tmp_path))
    assert (code, status(checks, CPU), status(checks, "DRAM energy")) == (3, "missing", "missing")
    assert "modprobe intel_rapl_msr" in checks[CPU, ""]["why"]
    assert checks["DRAM energy", ""]["why"] == "as for CPU energy"


@pytest.fixture
def closed() -> Iterator[PowercapTree]:
    """Counters that exist and may not be read, in a folder that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = PowercapTree(Path(folder), intel(1))
        for zone in tree.zones:
            (tree.folder(zone) / "energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        yield tree


def test_cpu_counters_that_only_root_may_read(closed: PowercapTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_POWERCAP_ROOT", str(closed.root))
    monkeypatch.setenv("ENERGY_EVENT_SOURCES_ROOT", "/nonexistent")
    list(cpu_checks())  # imports what it needs, which may be closed to others, too
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        check, dram = cpu_checks()
    finally:
        os.seteuid(user)
    assert (check.name, check.status, dram.status) == (CPU, Status.MISSING, Status.MISSING)
    assert f"{closed.root}/intel-rapl:0/energy_uj: Permission denied: run as root" in check.why
