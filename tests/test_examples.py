"""Every example runs as a reader would run it; without a GPU it says that its joules are simulated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from energy_plugins.testing import Simulation

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = {"demo.py": ["--quick"]}
LAUNCHED = {
    "energy_launch.py": ["-m", "energy_plugins.cli.launch", "--config_file", str(EXAMPLES / "energy_launch.yaml")]
}
"""These know nothing of energy-plugins, nor of its simulated GPUs."""


@pytest.mark.parametrize("path", sorted(filter(Path.is_file, EXAMPLES.iterdir())), ids=lambda path: path.name)
def test_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_runs_and_prints_joules(example: str, simulated: Callable[..., Simulation], tmp_path: Path) -> None:
    if example == "ray_tune.py":
        pytest.importorskip("ray", reason="needs Ray Tune: pip install energy-plugins[ray]")
    around = simulated().environment() if example in LAUNCHED and not torch.cuda.is_available() else os.environ
    ended = subprocess.run(
        [sys.executable, *LAUNCHED.get(example, []), EXAMPLES / example, *QUICK.get(example, [])],
        cwd=tmp_path,
        env=around,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "J/sample" in ended.stdout
    assert ("SIMULATED" in ended.stdout) == (not torch.cuda.is_available())
    if example.endswith("micro_batch.py"):
        assert "SIMULATED: 16 samples at once, not 4: " in ended.stdout
