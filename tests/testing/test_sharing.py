"""One simulation, several processes; several simulations, one process; other people's tools."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from energy_plugins.measure import drivers
from energy_plugins.testing import Constant, NoCounter, Simulation, SimulatorError, library, simulated_gpus

Simulated = Callable[..., Simulation]


def run_python(simulation: Simulation, program: str) -> str:
    """Run ``program`` in a fresh interpreter, which finds the drivers by name alone."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=simulation.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
import json, pynvml
pynvml.nvmlInit()
gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
_, samples = pynvml.nvmlDeviceGetSamples(gpus[0], pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
print(json.dumps({
    "names": [pynvml.nvmlDeviceGetName(gpu) for gpu in gpus],
    "uuids": [pynvml.nvmlDeviceGetUUID(gpu) for gpu in gpus],
    "limits": [pynvml.nvmlDeviceGetPowerManagementLimit(gpu) for gpu in gpus],
    "samples": {sample.timeStamp: sample.sampleValue.uiVal for sample in samples},
}))
"""


@pytest.mark.parametrize("name", ["libnvidia-ml.so.1", "libcuda.so.1"])
def test_a_simulation_never_answers_for_the_driver_of_its_process(simulated: Simulated, name: str) -> None:
    """A CUDA build of torch asks the driver by its bare name, and on a machine without a GPU must hear of none."""
    simulated(Constant(200))
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return  # the machine has no driver, and still has none
    assert not hasattr(driver, "ep_sim_version")


def test_another_process_sees_the_same_gpus(simulated: Simulated) -> None:
    simulation = simulated([Constant(200), Constant(300)])
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 450_000)
    seen = json.loads(run_python(simulation, READ))
    assert seen["names"] == ["NVIDIA H200 (SIMULATED)"] * 2
    assert seen["uuids"] == [gpu.uuid for gpu in simulation.gpus]
    assert seen["limits"] == [450_000, 700_000]
    _, samples = pynvml.nvmlDeviceGetSamples(gpu, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
    common = [sample for sample in samples if str(sample.timeStamp) in seen["samples"]]
    assert len(common) > 20
    assert all(seen["samples"][str(sample.timeStamp)] == sample.sampleValue.uiVal for sample in common)


def test_changes_made_in_another_process_count_here(simulated: Simulated) -> None:
    simulation = simulated(virtual=True)
    run_python(
        simulation,
        """
import ctypes, os
nvml = ctypes.CDLL("libnvidia-ml.so.1")
nvml.ep_sim_launch.argtypes = (ctypes.c_uint32, ctypes.c_double, ctypes.c_double)
assert nvml.ep_sim_launch(0, 8e14, 0.0) == 0
nvml.ep_sim_advance.argtypes = (ctypes.c_int64,)
nvml.ep_sim_advance(500_000_000)
""",
    )
    assert simulation.clock.now_ns() == 500_000_000
    assert simulation.gpus[0].true_energy_j(0, 500_000_000) == pytest.approx(335, rel=0.05)


def test_a_process_killed_while_it_holds_the_lock_does_not_wedge_the_others(simulated: Simulated) -> None:
    simulation = simulated(Constant(100), virtual=True)
    program = (
        f"import ctypes, sys; print(ctypes.CDLL({simulation.nvml_path!r}).ep_sim_seize_lock(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=simulation.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert simulation.gpus[0].true_energy_j(0, 10**9) == pytest.approx(100)
    simulation.gpus[0].launch(ops=8e12, wait=True)


def test_a_forked_child_shares_the_simulation(simulated: Simulated) -> None:
    simulation = simulated(virtual=True)
    child = os.fork()
    if child == 0:
        simulation.gpus[0].launch(ops=8e14)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert simulation.gpus[0].true_energy_j(0, 10**8) == pytest.approx(67, rel=0.01)


def test_processes_with_work_are_listed_while_they_live(simulated: Simulated) -> None:
    simulation = simulated()
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    run_python(simulation, "import ctypes; print(ctypes.CDLL('libnvidia-ml.so.1').ep_sim_launch(0))")
    simulation.gpus[0].launch(ops=1e9)
    assert [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)] == [os.getpid()]


def test_simulations_nest_and_follow_each_other() -> None:
    def count() -> int:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())

    with simulated_gpus(count=3):
        assert count() == 3
        with simulated_gpus(count=1, faults=[NoCounter()]) as inner:
            assert count() == 1
            assert drivers.current_drivers().clock is inner.clock
        assert count() == 3
    with simulated_gpus(count=8, virtual=True):
        assert count() == 8
    with simulated_gpus(count=0):
        assert count() == 0


def test_everything_is_put_back() -> None:
    before = dict(os.environ), pynvml.nvmlLib, list(drivers._installed)
    with simulated_gpus() as simulation:
        assert os.environ["ENERGY_SIM_STATE"] == str(simulation.state)
        assert drivers.current_drivers().nvml == simulation.nvml_path
    assert (dict(os.environ), pynvml.nvmlLib, list(drivers._installed)) == before
    assert not simulation.state.exists()
    nvml_init = library.nvml().nvmlInit_v2
    assert nvml_init() == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


def test_missing_libraries_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "NVML_PATH", tmp_path / "libnvidia-ml.so.1")
    library.nvml.cache_clear()
    try:
        with pytest.raises(SimulatorError, match="make install"), simulated_gpus():
            pass
    finally:
        library.nvml.cache_clear()


def test_a_damaged_state_file_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"not a simulation")
    with pytest.raises(SimulatorError, match="cannot attach"):
        library.attach(state)
