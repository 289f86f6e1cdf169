"""The plugin that docs/writing_a_plugin.md has its readers write, with a framework made up for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from energy_plugins import Report
from energy_plugins.testing import Constant, Simulation

PAGE = Path(__file__).parents[1] / "docs" / "writing_a_plugin.md"


@dataclass
class FourthFramework:
    """Has hooks, and a loop that calls them."""

    hook: Any
    max_steps: int = 12
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    step: int = 0
    logged: list[dict[str, float]] = field(default_factory=list)

    @property
    def logs_now(self) -> bool:
        return self.step % 4 == 3

    def log(self, figures: dict[str, float]) -> None:
        self.logged.append(figures)

    def train(self, simulation: Simulation) -> None:
        self.hook.on_train_start(self)
        for _ in range(self.max_steps):
            self.hook.on_fetch_start(self)
            simulation.advance(0.05)
            batch = {"input_ids": torch.zeros(8, 16, dtype=torch.long)}
            self.hook.on_fetch_end(self, batch)
            simulation.advance(1.0)
            self.hook.on_step_end(self, batch)
            self.step += 1
        self.hook.on_train_end(self)


def test_the_page_is_short() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 40


def test_what_it_shows_measures_a_training(
    simulated: Callable[..., Simulation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page
    trainer = FourthFramework(names["EnergyHook"](str(tmp_path)))
    trainer.train(simulated(Constant(300), virtual=True, start_s=10))
    report = Report.load(tmp_path / "run-1")
    assert report.work.steps == 12
    assert report.work.tokens == 12 * 8 * 16
    assert report.total_j == pytest.approx(12 * 1.05 * 300, rel=0.01)
    assert report.steps["end_s"] - report.steps["start_s"] == pytest.approx(1.05, abs=0.01)
    assert trainer.logged[-1]["energy/step_j"] == pytest.approx(1.05 * 300, rel=0.02)
    assert "Report: " in capsys.readouterr().out
