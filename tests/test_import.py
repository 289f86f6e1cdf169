"""What `import energy_plugins` costs, and what it leaves alone."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import pytest

import energy_plugins

FRAMEWORKS = {
    "accelerate",
    "jax",
    "lightning",
    "optuna",
    "pytorch_lightning",
    "ray",
    "tensorflow",
    "torch",
    "transformers",
}
DRIVERS = ("libnvidia-ml.so", "libcuda.so")

LIMIT_S = 0.060
"""Twice what it takes, on top of an interpreter that has numpy; it catches only what became slow."""

PROBE = """
import json, sys, time
import numpy
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
modules = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps({{"seconds": seconds, "modules": modules, "maps": open("/proc/self/maps").read()}}))
"""


def fresh_interpreter(statement: str) -> dict[str, Any]:
    """Run one statement in an interpreter that has numpy; return its seconds, its modules and its mapped files."""
    script = PROBE.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.alone
def test_importing_the_package_is_quick() -> None:
    seconds = statistics.median(fresh_interpreter("import energy_plugins")["seconds"] for _ in range(5))
    assert seconds <= LIMIT_S, f"import energy_plugins took {seconds * 1e3:.1f} ms"


@pytest.mark.parametrize("statement", ["import energy_plugins", "from energy_plugins import *"])
def test_importing_loads_no_framework_and_opens_no_driver(statement: str) -> None:
    seen = fresh_interpreter(statement)
    assert "energy_plugins" in seen["modules"]
    assert FRAMEWORKS.isdisjoint(seen["modules"])
    assert not [name for name in DRIVERS if name in seen["maps"]]


@pytest.mark.parametrize("name", energy_plugins.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(energy_plugins, name) is not None
    assert name in dir(energy_plugins)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'energy_plugins' has no attribute 'EnergyMetre'"):
        _ = energy_plugins.EnergyMetre  # type: ignore[attr-defined]
