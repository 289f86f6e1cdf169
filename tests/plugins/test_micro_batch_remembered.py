"""What a remembered micro-batch is of: another model, optimizer, precision, batch, length or GPU does not take it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from micro_batching import Reader, trained
from torch import nn

from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner
from energy_plugins.testing import simulated_gpus
from energy_plugins.testing.profiles import H200
from energy_plugins.training.choice_memory import Kind

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


class WithAdam(Reader):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


class Shortened:
    """A loader whose sentences lack their last words."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Any:
        return ({name: rows[:, :4] for name, rows in batch.items()} for batch in self._loader)

    def __len__(self) -> int:
        return len(self._loader)


def kind_of(folder: Path, model: Reader | None = None, gpu: str = "", **settings: Any) -> Kind:
    """Train a few steps, and return what they are known by."""
    tuner = MicroBatchTuner()
    profile = replace(H200, name=gpu) if gpu else H200
    with simulated_gpus(virtual=True, profile=profile):
        monitor = EnergyMonitor(table=False, log=False, progress_bar=False)
        how: dict[str, Any] = {"rows": 96, "batch": 4, "accumulate_grad_batches": 4, **settings}
        trained(folder, model or Reader(), monitor, tuner, **how)
    assert tuner._batcher is not None
    assert tuner._batcher._kind is not None
    return tuner._batcher._kind


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Kind:
    return kind_of(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("same", [{}, {"max_epochs": 2}, {"rows": 128}, {"gradient_clip_val": 1.0}])
def test_the_same_training_is_known_again(usual: Kind, tmp_path: Path, same: dict[str, Any]) -> None:
    assert kind_of(tmp_path, **same) == usual
    assert kind_of(tmp_path, Reader(0.5), **same) == usual


@pytest.mark.parametrize(
    "other",
    [
        {"model": Reader(0.1, nn.Linear(32, 32))},
        {"model": WithAdam()},
        {"precision": "bf16-mixed"},
        {"batch": 8, "accumulate_grad_batches": 2},
        {"batch": 2},
        {"wrap": Shortened},
        {"gpu": "Another GPU (SIMULATED)"},
    ],
    ids=["model", "optimizer", "precision", "batch", "effective batch", "length", "device"],
)
def test_another_one_is_not(usual: Kind, tmp_path: Path, other: dict[str, Any]) -> None:
    assert kind_of(tmp_path, **other) != usual
