"""Calling `energy-plugins doctor` as a script does."""

from __future__ import annotations

import json
from typing import Any

from commands import call

from energy_plugins.testing import Simulation

Checks = dict[tuple[str, str], dict[str, Any]]
SENSORS = ("power samples", "instant power", "average power", "power usage", "energy counter", "state")
NO_CPU_COUNTERS = {"ENERGY_POWERCAP_ROOT": "/nonexistent", "ENERGY_EVENT_SOURCES_ROOT": "/nonexistent"}


def doctor(on: Simulation | None = None, *, timeout_s: float = 20.0, **variables: str) -> tuple[int, Checks]:
    """Return the exit code, and the checks by name and GPU. A loaded machine gets more time than a user would give."""
    variables = {**NO_CPU_COUNTERS, **variables}
    done = call("doctor", "--json", "--timeout", str(timeout_s), on=on, variables=variables)
    assert done.stderr == ""
    page = json.loads(done.stdout)
    assert (page["schema"], page["version"], page["exit_code"]) == ("energy-plugins/doctor", 1, done.returncode)
    return done.returncode, {(check["name"], check["gpu"]): check for check in page["checks"]}


def status(checks: Checks, name: str, gpu: str = "") -> str:
    return str(checks[name, gpu]["status"])
