"""Memory foreseen before sizes are tried, in real trainings on a simulated GPU: what is tried, and what is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from accelerate.accelerator import Accelerator
from accelerate.state import GradientState
from lightning.pytorch import LightningModule
from micro_batching import trained
from outcomes import load
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers_training import make_trainer

from energy_plugins.accelerate import attach, micro_batched
from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.testing import Simulation, simulated_gpus
from energy_plugins.testing.profiles import H200, Profile
from energy_plugins.transformers import EnergyCallback, MicroBatchCallback
from energy_plugins.tune import WorkingSet

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 1024
SAMPLE_BYTES = 2 * 4 * WIDTH
"""Of the largest layer: what it reads and writes."""
BATCH, ACCUMULATION, STEPS = 4, 16, 220


def profile(headroom: float = 1.25) -> Profile:
    """Return a GPU with an L2 for 16 samples but not 32, and memory for 32 with so much headroom, but not 64."""
    model = Wide(None)
    sets = WorkingSet.of(model, {"rows": torch.zeros(4, 16)}, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    small: dict[str, Any] = {"multiprocessors": 1.0, "compute_capability": 99.0, "shared_bytes": 2.5 * SAMPLE_BYTES}
    return replace(H200, l2_bytes=20.0 * SAMPLE_BYTES, memory_bytes=headroom * sets.peak_bytes(32), **small)


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: int) -> None:
        self.rows = torch.randn(rows, 16, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"rows": self.rows[index]}


class Passes:
    """Sizes of all passes, those on trial among them: it is no part of the module, so nothing is put back."""

    def __init__(self) -> None:
        self.sizes: set[int] = set()
        self.made = 0
        self.failed = 0


class Wide(nn.Module):
    """A perceptron on a GPU that is not there; what is traced has no data."""

    def __init__(self, simulation: Simulation | None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.Sequential(nn.Linear(16, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        self.gpu = None if simulation is None else simulation.gpus[0]
        self.passes = Passes()

    def forward(self, rows: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        self.passes.sizes.add(len(rows))
        # What no longer fits into the L2 costs more.
        if self.gpu is not None:
            self.gpu.launch(ops=4e12 * (4 + len(rows) + 4 * max(len(rows) - 16, 0)), wait=True)
        self.look(rows)
        return {"loss": self.layers(rows).square().mean()}

    def look(self, rows: torch.Tensor) -> None:
        """Do nothing."""


class Looks(Wide):
    def look(self, rows: torch.Tensor) -> None:
        assert float(rows.abs().max()) >= 0


class Fills(Wide):
    """Something takes memory once the training is under way."""

    def look(self, rows: torch.Tensor) -> None:
        self.passes.made += 1
        if len(rows) > 16 and self.passes.made > 150:
            self.passes.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")


class Module(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.steps_seen = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.steps_seen += 1
        loss = self.model(**batch)["loss"]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-6, momentum=0.9)


def by_lightning(folder: Path, model: nn.Module, *, tuned: bool) -> None:
    monitor = EnergyMonitor(table=False, log=False, progress_bar=False)
    more = [MicroBatchTuner(search_share=0.5)] if tuned else []
    loader: DataLoader[Any] = DataLoader(Rows(BATCH * ACCUMULATION * STEPS), batch_size=BATCH)
    trained(
        folder, Module(model), monitor, *more, rows=1, batch=1, wrap=lambda _: loader,
        accumulate_grad_batches=ACCUMULATION,
    )  # fmt: skip


def by_transformers(folder: Path, model: nn.Module, *, tuned: bool) -> None:
    more = [MicroBatchCallback(search_share=0.5)] if tuned else []
    make_trainer(
        folder, EnergyCallback(table=False), *more, model=model, data=Rows(STEPS * BATCH * ACCUMULATION),
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
    ).train()  # fmt: skip


def by_accelerate(folder: Path, model: nn.Module, *, tuned: bool) -> None:
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION, project_dir=folder)
    loader: DataLoader[Any] = DataLoader(Rows(STEPS * BATCH * ACCUMULATION), BATCH)
    network, optimizer, batches = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-6), loader)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = network(rows)["loss"]
        return loss

    with attach(accelerator, table=False):
        each = micro_batched(loss_of, search_share=1.0) if tuned else loss_of
        for batch in batches:
            with accelerator.accumulate(network):
                accelerator.backward(each(batch["rows"]))
                optimizer.step()
                optimizer.zero_grad()


FRAMEWORKS = [by_lightning, by_transformers, by_accelerate]


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with simulated_gpus(virtual=True, start_s=10, profile=profile()) as made:
        yield made


def part_of(folder: Path) -> MicroBatchPart:
    part = load(folder).micro_batch
    assert part is not None
    return part


@pytest.mark.parametrize("train", FRAMEWORKS)
def test_sizes_at_the_boundaries_are_tried_and_the_report_says_where_activations_live(
    simulation: Simulation, tmp_path: Path, train: Callable[..., None]
) -> None:
    model = Wide(simulation)
    train(tmp_path, model, tuned=True)
    part = part_of(tmp_path)
    levels = {one.size: one.level for one in part.tried if one.why is None}
    assert part.chosen == 16
    assert (levels[16], levels[32]) == ("L2", "HBM")
    assert max(model.passes.sizes) == 32
    text = "\n".join(part.explanation)
    assert "32 samples at once cost more than 16: a layer's activations left the L2 for the HBM" in text
    assert f"a layer's activations take up to {SAMPLE_BYTES / 1024:.2f} KiB a sample: those of 20 samples" in text
    assert "samples at once are foreseen to fit into the " in text
    assert "sizes from 64 on were not tried: that would need 1." in text


def test_a_model_that_cannot_be_followed_is_tuned_without(simulation: Simulation, tmp_path: Path) -> None:
    model = Looks(simulation)
    by_lightning(tmp_path, model, tuned=True)
    part = part_of(tmp_path)
    assert part.chosen == 16
    assert {one.level for one in part.tried} == {None}
    text = "\n".join(part.explanation)
    assert "how much memory other sizes need was not foreseen: without data the model cannot be followed: " in text
    assert max(model.passes.sizes) == 64


@pytest.mark.parametrize("train", FRAMEWORKS)
def test_what_may_not_fit_is_tried_by_a_pass_before_steps_depend_on_it(
    tmp_path: Path, train: Callable[..., None]
) -> None:
    with simulated_gpus(virtual=True, start_s=10, profile=profile(1.0)) as simulation:
        model = Fills(simulation)
        train(tmp_path, model, tuned=True)
    part = part_of(tmp_path)
    assert (part.chosen, {one.size: one.why for one in part.tried}[32]) == (16, "out of memory")
    assert "32 samples at once cannot be used: out of memory" in part.explanation
    assert model.passes.failed == 1
    assert load(tmp_path).steps.rows > 0
