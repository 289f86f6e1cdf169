"""Every example runs as a reader would run it; without a GPU it says that its joules are simulated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = {"demo.py": ["--quick"]}


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_runs_and_prints_joules(example: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, EXAMPLES / example, *QUICK.get(example, [])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "J/sample" in ended.stdout
    assert ("SIMULATED" in ended.stdout) == (not torch.cuda.is_available())
