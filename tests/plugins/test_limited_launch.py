"""Unchanged scripts under `energy-launch` and a power limit: it is put back when they end, and when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent

import pytest
from controlling import FOUND_W, SET_W, WITHIN_S, limit_w, operator_sets, seconds_until
from limiting import part_of

from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation

ROOT = Path(__file__).parents[2]
LOOP = """
    import sys, time
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    class Slow(torch.utils.data.Dataset):
        def __len__(self): return 10**6
        def __getitem__(self, row): time.sleep(10.0 if row % 7 else 0.0); return torch.ones(4)

    if __name__ == "__main__":
        accelerator = Accelerator(cpu=True, project_dir=sys.argv[1])
        layer = torch.nn.Linear(4, 1)
        model, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=1e-6))
        workers = iter(DataLoader(Slow(), num_workers=2, persistent_workers=True)) if "workers" in sys.argv else ()
        for _ in range(int(sys.argv[2])):
            accelerator.backward(model(torch.ones(4, 4)).sum())
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(0.02)
        accelerator.end_training()
"""


@contextmanager
def launched(simulation: Simulation, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have it trained at a limit, in a process group of its own."""
    script = folder / "loop.py"
    script.write_text(dedent(LOOP))
    options = ["--cpu", "--num_processes=1", f"--energy_power_limit_fixed={SET_W:g}", "--energy_report_table=false"]
    command = [sys.executable, "-W", "ignore", "-m", "energy_plugins.cli.launch", *options, str(script), str(folder)]
    environment = {**simulation.environment(), "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")}
    with subprocess.Popen([*command, *arguments], cwd=folder, env=environment, process_group=0) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_it_is_put_back_at_the_end(simulation: Simulation, tmp_path: Path) -> None:
    operator_sets(FOUND_W)
    with launched(simulation, tmp_path, "30") as process:
        seconds_until(lambda: limit_w() == SET_W)
        assert process.wait(60) == 0
    assert limit_w() == FOUND_W
    part = part_of(Report.load(tmp_path / "energy" / "run-1"))
    assert (part.chosen, part.source, part.found) == (SET_W, "fixed", FOUND_W)


@pytest.mark.slow
def test_it_is_put_back_when_launcher_training_and_workers_are_killed(simulation: Simulation, tmp_path: Path) -> None:
    operator_sets(FOUND_W)
    with launched(simulation, tmp_path, "100000", "workers") as process:
        seconds_until(lambda: limit_w() == SET_W)
        os.killpg(process.pid, signal.SIGKILL)
        assert seconds_until(lambda: limit_w() == FOUND_W, WITHIN_S) < WITHIN_S
