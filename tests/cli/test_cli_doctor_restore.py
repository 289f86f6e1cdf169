"""`energy-plugins doctor` and GPUs that are not as they were found."""

from __future__ import annotations

import json
import os

import pynvml
import pytest
from commands import NO_DRIVER, Simulated, call
from controlling import limit_w
from doctoring import doctor, status

from energy_plugins import visible_gpus
from energy_plugins.cli.control_checks import JOURNAL, LEFT, SET_BY
from energy_plugins.control import PowerLimit
from energy_plugins.control.entry import Entry, Knob
from energy_plugins.control.journal import JOURNAL_VARIABLE, Journal
from energy_plugins.control.owner import Owner
from energy_plugins.testing import Hang, Simulation


def leave_behind(simulation: Simulation) -> str:
    """Limit a GPU as a trainer does that is then killed with its watchdog, and return its UUID."""
    (gpu,) = visible_gpus()
    pynvml.nvmlInit()
    pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(0), 450_000)
    me = Owner.current()
    dead = Owner(me.pid, me.start_ticks - 1, me.boot_id, me.pid_namespace)
    with Journal(simulation.journal) as journal:
        journal.write(Entry(uuid=gpu.uuid, knob=Knob.POWER, owner=dead, found=700.0, ours=(450.0,)))
    return gpu.uuid


def test_what_was_left_changed_is_said_and_put_back(simulated: Simulated) -> None:
    simulation = simulated()
    uuid = leave_behind(simulation)
    _, checks = doctor(simulation)
    assert status(checks, LEFT, uuid) == "warning"
    assert "found at 700 W" in checks[LEFT, uuid]["found"]
    assert checks[LEFT, uuid]["remedy"] == "energy-plugins doctor --restore"
    assert limit_w() == 450, "looking changes nothing"

    done = call("doctor", "--restore", "--timeout", "20", on=simulation)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the limit is 700 W again" in done.stdout
    assert limit_w() == 700
    again = call("doctor", "--restore", "--json", "--timeout", "20", on=simulation)
    assert again.returncode == 0
    (check,) = json.loads(again.stdout)["checks"]
    assert (check["name"], check["status"], check["found"]) == (JOURNAL, "ok", "nothing is left to put back")


def test_a_limit_in_use_is_left_alone(simulated: Simulated) -> None:
    simulation = simulated()
    (gpu,) = visible_gpus()
    with PowerLimit(gpu).at(watts=450):
        _, checks = doctor(simulation)
        assert status(checks, LEFT, gpu.uuid) == "ok"
        assert str(os.getpid()) in checks[LEFT, gpu.uuid]["found"]
        done = call("doctor", "--restore", "--timeout", "20", on=simulation)
        assert (done.returncode, limit_w()) == (0, 450)
        assert f"process {os.getpid()} controls it" in done.stdout


def test_nothing_was_ever_changed(simulated: Simulated) -> None:
    simulation = simulated()
    done = call("doctor", "--restore", "--timeout", "20", on=simulation)
    assert (done.returncode, done.stderr) == (0, "")
    assert not simulation.journal.exists()


def test_what_cannot_be_put_back(simulated: Simulated) -> None:
    simulation = simulated()
    leave_behind(simulation)
    done = call("doctor", "--restore", "--timeout", "20", variables={JOURNAL_VARIABLE: str(simulation.journal)})
    assert done.returncode == 1
    assert NO_DRIVER["ENERGY_NVML_LIBRARY"] in done.stdout
    assert "nvidia-smi -i UUID -pl WATTS" in " ".join(done.stdout.split())
    simulation.gpus[0].inject(Hang("nvmlDeviceGetPowerManagementLimit", 60))
    hung = call("doctor", "--restore", "--timeout", "1", on=simulation)
    assert hung.returncode == 1
    assert "the driver does not answer" in hung.stdout
    simulation.gpus[0].heal()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
def test_who_sets_limits(simulated: Simulated) -> None:
    simulation = simulated()
    uuid = simulation.gpus[0].uuid
    _, checks = doctor(simulation)
    assert status(checks, SET_BY, uuid) == "ok"
    assert str(simulation.journal) in checks[SET_BY, uuid]["found"]
    simulation.journal.mkdir(mode=0o755)
    _, checks = doctor(simulation)
    assert status(checks, SET_BY, uuid) == "warning"
    assert "open to others" in checks[SET_BY, uuid]["why"]
    assert "advised" in checks[SET_BY, uuid]["found"]
