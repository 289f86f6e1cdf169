"""What `energy-plugins doctor` says of sound and of broken machines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from commands import Simulated, call
from doctoring import SENSORS, doctor, status

from energy_plugins.cli.capabilities import has_capability
from energy_plugins.cli.check import ANSWER, CPU, DRIVER, MEASURED_BY, VISIBLE, Check, Status, Verdict
from energy_plugins.cli.probe import Probe, Say
from energy_plugins.testing import GpuLost, Hang, NoPermission, WallClockStep
from energy_plugins.testing.powercap import PowercapTree, intel


def test_a_sound_machine(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    code, checks = doctor(simulation)
    assert code == 0
    assert status(checks, DRIVER) == status(checks, VISIBLE) == status(checks, "CUDA") == "ok"
    assert "580.159.04" in checks[DRIVER, ""]["found"]
    for gpu in simulation.gpus:
        assert {name: status(checks, name, gpu.uuid) for name in (*SENSORS, MEASURED_BY)} == dict.fromkeys(
            (*SENSORS, MEASURED_BY), "ok"
        )
        assert "20 ms" in checks["power samples", gpu.uuid]["found"]
        assert "200-700 W" in checks["limits", gpu.uuid]["found"]
    assert status(checks, "SIMULATED") == "warning"


def test_the_page_says_the_same_to_people(simulated: Simulated) -> None:
    simulation = simulated(faults=[NoPermission("nvmlDeviceGetTotalEnergyConsumption")])
    done = call("doctor", "--timeout", "20", on=simulation)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert simulation.gpus[0].uuid in done.stdout
    assert "missing  energy counter" in done.stdout
    assert "why: Insufficient Permissions" in done.stdout
    assert "do:  run as root" in done.stdout
    assert done.stdout.endswith("All that is needed to measure the energy of the GPUs works.\n")
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_without_a_driver() -> None:
    code, checks = doctor()
    assert code == 3
    assert (status(checks, DRIVER), status(checks, "CUDA")) == ("missing", "warning")
    assert "install the NVIDIA driver" in checks[DRIVER, ""]["remedy"]


def test_a_machine_of_which_only_the_cpu_can_be_measured(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path, intel(2))
    code, checks = doctor(ENERGY_POWERCAP_ROOT=str(tree.root))
    assert (code, status(checks, DRIVER)) == (1, "missing")
    assert checks[CPU, ""]["found"] == "package-0, package-1, by powercap"
    assert checks["DRAM energy", ""]["found"] == "package-0 dram, package-1 dram, by powercap"
    assert status(checks, CPU) == status(checks, "DRAM energy") == "ok"


@pytest.mark.parametrize(
    ("visible", "why"), [("", "CUDA_VISIBLE_DEVICES hides them all"), ("7", "names GPU 7, but there are 2")]
)
def test_no_gpu_is_visible(simulated: Simulated, visible: str, why: str) -> None:
    code, checks = doctor(simulated(count=2), CUDA_VISIBLE_DEVICES=visible)
    assert code == 3
    assert status(checks, VISIBLE) == "missing"
    assert why in checks[VISIBLE, ""]["why"]
    assert "CUDA_VISIBLE_DEVICES" in checks[VISIBLE, ""]["remedy"]


def test_only_visible_gpus_are_looked_at(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    code, checks = doctor(simulation, CUDA_VISIBLE_DEVICES="1")
    assert code == 0
    assert {gpu for _, gpu in checks} == {"", simulation.gpus[1].uuid}
    assert checks[VISIBLE, ""]["found"] == "1 of 2"


def test_a_mig_slice_is_measured_as_its_card(simulated: Simulated) -> None:
    simulation = simulated()
    part = f"MIG-{simulation.gpus[0].uuid}/1/0"
    code, checks = doctor(simulation, CUDA_VISIBLE_DEVICES=part)
    assert (code, status(checks, MEASURED_BY, part)) == (0, "warning")
    assert "no sensor of its own" in checks[MEASURED_BY, part]["why"]


def test_lost_gpus(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    simulation.gpus[1].inject(GpuLost())
    code, checks = doctor(simulation)
    assert (code, checks["installed GPUs", ""]["found"]) == (0, "1 of 2 answer")
    simulation.gpus[0].inject(GpuLost())
    code, checks = doctor(simulation)
    assert (code, status(checks, VISIBLE)) == (3, "missing")
    assert "reset the GPU" in checks[VISIBLE, ""]["remedy"]


def test_clocks_that_disagree(simulated: Simulated) -> None:
    simulation = simulated(faults=[WallClockStep(3600)])
    time.sleep(0.5)  # until there are samples stamped by the new clock
    _, checks = doctor(simulation)
    assert status(checks, "clock", simulation.gpus[0].uuid) == "warning"


@pytest.mark.parametrize("call_name", ["nvmlDeviceGetName", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_driver_that_hangs_is_reported_and_not_waited_for(simulated: Simulated, call_name: str) -> None:
    simulation = simulated(faults=[Hang(call_name, 3600)])
    code, checks = doctor(simulation, timeout_s=2.0)
    assert code == 3
    assert checks[ANSWER, ""]["found"] == "the driver does not answer"
    where = "reading energy counter of GPU 0" if "Energy" in call_name else "listing the GPUs"
    assert checks[ANSWER, ""]["why"].endswith(where)
    assert status(checks, DRIVER) == "ok"  # what it said before it fell silent is not lost


@pytest.fixture(scope="module")
def broken_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver library that fails as FAKE_NVML says."""
    path = tmp_path_factory.mktemp("driver") / "libnvidia-ml.so.1"
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    source = Path(__file__).with_name("fake_nvml.cpp")
    subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, source], check=True)
    return path


@pytest.mark.parametrize(
    ("how", "name", "found", "remedy"),
    [
        ("9", DRIVER, "it does not start", "modprobe nvidia"),
        ("18", DRIVER, "it does not start", "reboot"),
        ("4", DRIVER, "it does not start", "/dev/nvidia*"),
        ("999", DRIVER, "it does not start", "nvidia-smi"),
        ("crash", ANSWER, "the process that asked it died", "nvidia-smi"),
        ("hang", ANSWER, "the driver does not answer", "--timeout 30"),
    ],
)
def test_a_driver_that_does_not_start(broken_driver: Path, how: str, name: str, found: str, remedy: str) -> None:
    code, checks = doctor(timeout_s=2.0, ENERGY_NVML_LIBRARY=str(broken_driver), FAKE_NVML=how)
    assert code == 3
    check = checks[name, ""]
    assert (check["status"], check["found"]) == ("missing", found)
    assert remedy in check["remedy"]


# ---- its parts -------------------------------------------------------------------------------------------------------


def test_a_hanging_probe_leaves_no_process_and_no_open_output() -> None:
    def hang(say: Say) -> Iterator[Check]:
        yield Check("pid", Status.OK, str(os.getpid()))
        yield from (Check("stream", Status.OK, str(Path(f"/proc/self/fd/{number}").readlink())) for number in range(3))
        say("hanging")
        time.sleep(3600)

    answer = Probe(hang).answer(0.5)
    assert (answer.unfinished, answer.died) == ("hanging", False)
    check, *streams = answer.checks
    assert [stream.found for stream in streams] == [os.devnull] * 3
    with suppress(ChildProcessError):  # it was reaped already
        os.waitpid(int(check.found), 0)  # killed: this returns


@pytest.mark.parametrize("ending", ["raise ValueError", "kill"])
def test_a_dying_probe_keeps_what_was_found(ending: str) -> None:
    def die(say: Say) -> Iterator[Check]:
        yield Check("one", Status.OK, "1")
        say("dying")
        if ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError

    answer = Probe(die).answer(5.0)
    assert (answer.unfinished, answer.died) == ("dying", True)
    assert answer.checks == (Check("one", Status.OK, "1"),)


def test_a_probe_that_ends_is_whole() -> None:
    many = tuple(Check(f"check {number}", Status.WARNING, "x" * 100, gpu="GPU-1") for number in range(3000))
    answer = Probe(lambda _say: iter(many)).answer(10.0)
    assert (answer.unfinished, answer.checks) == (None, many)


OK, WARNING, MISSING = Status.OK, Status.WARNING, Status.MISSING


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({}, Verdict.NOTHING),
        ({DRIVER: OK, VISIBLE: OK, MEASURED_BY: OK}, Verdict.READY),
        ({DRIVER: OK, VISIBLE: OK, MEASURED_BY: WARNING}, Verdict.READY),
        ({DRIVER: OK, VISIBLE: OK, MEASURED_BY: OK, CPU: MISSING, "activity": MISSING}, Verdict.READY),
        ({DRIVER: OK, VISIBLE: OK, MEASURED_BY: MISSING}, Verdict.NOTHING),
        ({DRIVER: OK, VISIBLE: OK, MEASURED_BY: MISSING, CPU: OK}, Verdict.INCOMPLETE),
        ({DRIVER: OK, VISIBLE: OK, MEASURED_BY: OK, ANSWER: MISSING}, Verdict.INCOMPLETE),
        ({DRIVER: MISSING, CPU: OK}, Verdict.INCOMPLETE),
        ({DRIVER: MISSING, CPU: MISSING}, Verdict.NOTHING),
    ],
)
def test_the_verdict(found: dict[str, Status], verdict: Verdict) -> None:
    assert Verdict.of([Check(name, status, "") for name, status in found.items()]) is verdict


@pytest.mark.parametrize(
    ("text", "held"), [("CapEff:\t0000000000200000\n", True), ("CapEff:\t0000000000000001\n", False)]
)
def test_capabilities(tmp_path: Path, text: str, held: bool) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\n{text}")
    assert has_capability(21, tmp_path / "status") is held
    assert not has_capability(21, tmp_path / "nothing")
