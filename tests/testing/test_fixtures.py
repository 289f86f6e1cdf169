"""The pytest fixture as users have it: found through the entry point, and loading nothing until it is used."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
USES_IT = """
import sys

DEAR = {"torch", "pynvml", "numpy", "energy_plugins._native", "energy_plugins.testing.simulation"}

def test_nothing_is_loaded_before_it_is_asked_for(request):
    loaded = DEAR & {*sys.modules}
    assert request.config.pluginmanager.has_plugin("energy_plugins")
    assert not loaded, loaded
    request.getfixturevalue("simulated_gpus")()
    assert "energy_plugins.testing.simulation" in sys.modules

def test_it_simulates(simulated_gpus):
    from energy_plugins import EnergyMeter
    from energy_plugins.testing import Constant
    simulation = simulated_gpus(Constant(300.0), virtual=True, start_s=10)
    with EnergyMeter() as meter:
        simulation.advance(5)
    assert abs(meter.report().total_j - 1500) < 15

def test_and_is_over_with_the_test():
    from energy_plugins.measure.drivers import current_drivers
    assert current_drivers().nvml == "libnvidia-ml.so.1"
"""


def test_the_fixture_comes_with_the_package(tmp_path: Path) -> None:
    # The metadata of an installed package, with the entry points that ours declares.
    (declared,) = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"][
        "pytest11"
    ].items()
    metadata = tmp_path / "installed" / "installed-1.0.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1.0\n")
    metadata.joinpath("entry_points.txt").write_text("[pytest11]\n{} = {}\n".format(*declared))
    (tmp_path / "test_user.py").write_text(USES_IT)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(metadata.parent)])}
    for name in ("ENERGY_NVML_LIBRARY", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        variables.pop(name, None)
    # Of all plugins that happen to be installed, ours alone: others may import whatever they like.
    others = [f"-pno:{name}" for name in _plugins() if name != declared[0]]
    command = [sys.executable, "-m", "pytest", "-q", "-pno:cacheprovider", *others]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def _plugins() -> list[str]:
    from importlib.metadata import entry_points

    return [point.name for point in entry_points(group="pytest11")]


@pytest.mark.parametrize("name", ["Constant", "Simulation", "simulated_gpus", "H200"])
def test_every_public_name_is_there(name: str) -> None:
    from energy_plugins import testing

    assert name in testing.__all__
    assert name in dir(testing)
    assert getattr(testing, name) is not None


def test_public_names_and_their_homes_agree() -> None:
    from energy_plugins import testing

    listed = {
        name for name in dir(testing) if not name.startswith("_") and not isinstance(getattr(testing, name), ModuleType)
    }
    assert listed - {"TYPE_CHECKING", "annotations", "lazy_names"} == set(testing.__all__)
    assert all(hasattr(testing, one) for one in testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = testing.Nonsense  # type: ignore[attr-defined]
