from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from energy_plugins.testing import Simulation, fixtures

# Processes of tests, and the ranks that some of these start, share the cores: a pool of threads in each only makes
# them wait for one another. torch reads it as it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("energy_plugins.testing.contract")

# The same examples every time, and no complaint about a slow machine: a failure must mean a fault.
settings.register_profile(
    "repeatable",
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Hear Ctrl-C, and have child processes hear it: a job in the background is born deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's idle baselines out of the tests, and the tests' out of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests' runs out of the user's ledger."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


simulated_gpus = fixtures.simulated_gpus  # not by the entry point: a checkout need not be installed


@pytest.fixture
def simulated(simulated_gpus: Callable[..., Simulation]) -> Callable[..., Simulation]:
    """Give the fixture that users have, by a name that shadows no function of the tests."""
    return simulated_gpus


@pytest.fixture
def simulation(simulated: Callable[..., Simulation]) -> Simulation:
    """Give one simulated GPU, in real time."""
    return simulated()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the Makefile run its two passes, whatever `-m` and `-k` are asked for."""
    parser.addoption(
        "--pass", dest="which_pass", choices=["together", "alone"], help="what may run beside others, or not"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tests of this pass; skip what needs a real GPU where there is none, and say so."""
    which = config.getoption("which_pass")
    if which is not None:
        others = [item for item in items if _runs_alone(item) != (which == "alone")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _runs_alone(item) == (which == "alone")]
    wanted = [item for item in items if item.get_closest_marker("hardware")]
    if not wanted:
        return
    reason = _no_gpu_because()
    for item in wanted:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _runs_alone(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("alone", "hardware"))


def _no_gpu_because() -> str:
    try:
        import torch
    except ModuleNotFoundError:
        return "needs torch with CUDA"
    return "" if torch.cuda.is_available() else "needs a real NVIDIA GPU"
