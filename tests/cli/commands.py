"""Calling the command as a user does: a process of its own, on a simulation's GPUs or on a machine without any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from energy_plugins.testing import Simulation

COMMAND = [sys.executable, "-m", "energy_plugins"]
NO_DRIVER = {
    "ENERGY_NVML_LIBRARY": "/nonexistent/libnvidia-ml.so.1",
    "ENERGY_CUDA_LIBRARY": "/nonexistent/libcuda.so.1",
}
PATIENCE_S = 30.0

Simulated = Callable[..., Simulation]


def surroundings(simulation: Simulation | None, **variables: str) -> dict[str, str]:
    """Return the environment of a process that sees a simulation's GPUs, or no driver."""
    environment = {**os.environ, **NO_DRIVER} if simulation is None else simulation.environment()
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return {**environment, **variables}


def call(
    *arguments: str | Path,
    on: Simulation | None = None,
    variables: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=surroundings(on, **(variables or {})),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        **options,
    )


@contextmanager
def started(*arguments: str | Path, on: Simulation | None = None, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the command, and make sure that it does not outlive the test."""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=surroundings(on, **options.pop("variables", {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def first_line(process: subprocess.Popen[str]) -> str:
    """Wait for a line of the process's output."""
    assert process.stdout is not None
    return process.stdout.readline()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; fail when it takes too long."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it never came to be"
        time.sleep(0.01)
