"""Trainings that search for their micro-batch, on simulated GPUs in virtual time: what is chosen, and what it saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate_training
import numpy as np
import outcomes
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from limiting import limit_w
from outcomes import load, our_warnings
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers_training import Rows, make_trainer

from energy_plugins.accelerate import attach, micro_batched
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.report import Report
from energy_plugins.testing import SimulatedDevice, Simulation, simulated_gpus
from energy_plugins.transformers import EnergyCallback, MicroBatchCallback, PowerLimitCallback

fresh_state = accelerate_training.fresh_state  # around every test here
one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, ACCUMULATION, STEPS = 4, 4, 150
SHARE = 0.4
"""Of a short training that may go into the search."""


class Model(nn.Module):
    """Each pass costs a GPU something, however few its samples; too many do not fit."""

    def __init__(self, gpu: SimulatedDevice, most: int = 1000) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.gpu = gpu
        self.most = most
        self.sizes: list[int] = []

    def work(self, samples: int) -> None:
        self.gpu.launch(ops=4e13 * samples, bytes=8e11, wait=True)

    def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        samples = len(input_ids)
        if samples > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(samples)
        self.work(samples)
        return {"loss": self.layer(input_ids).square().mean()}


class Moving(Model):
    """What mostly waits for the memory: clocks may fall before its passes take longer."""

    def work(self, samples: int) -> None:
        self.gpu.launch(ops=2e13 * samples, bytes=4e11 + 2e11 * samples, wait=True)


class Turning(Model):
    """Whose loss is of other samples than its own, once it is told to."""

    has_turned = False

    def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        found = super().forward(input_ids, return_loss)
        return {"loss": self.layer(input_ids).amax()} if self.has_turned else found


class Filling(Turning):
    """Whose memory is full of something else, once it is told so."""

    def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        if self.has_turned and len(input_ids) > BATCH:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Model.forward(self, input_ids, return_loss)


class Turn(TrainerCallback):
    def __init__(self, model: Turning, step: int) -> None:
        self.model, self.step = model, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model.has_turned = state.global_step >= self.step


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with simulated_gpus(virtual=True, start_s=10) as made:
        yield made


def part_of(report: Report) -> MicroBatchPart:
    assert report.micro_batch is not None
    return report.micro_batch


def assert_saved(tuned: Report, plain: Report) -> None:
    """Check that the end of a training drew as much less as was promised."""
    part = part_of(tuned)
    assert (part.batch, part.accumulation, part.chosen, part.source) == (BATCH, ACCUMULATION, 16, "search")
    late = slice(3 * tuned.steps.rows // 4, None)  # when the search is over
    # In few of them gradients are compared once more.
    before, after = (float(np.median(one.steps["energy_j"][late])) for one in (plain, tuned))
    assert part.expected_saving is not None
    assert 1 - after / before == pytest.approx(part.expected_saving, abs=0.03)
    assert part.expected_saving > 0.1
    assert tuned.steps["samples"].tolist() == plain.steps["samples"].tolist()


def train(
    folder: Path, model: Model, *callbacks: Any, steps: int = STEPS, batch: int = BATCH, **settings: Any
) -> Report:
    """Train with a Trainer."""
    trainer = make_trainer(
        folder, EnergyCallback(table=False), *callbacks, model=model, data=Rows(steps * BATCH * ACCUMULATION),
        per_device_train_batch_size=batch, gradient_accumulation_steps=BATCH * ACCUMULATION // batch, **settings,
    )  # fmt: skip
    trainer.train()
    return load(folder)


def loop(folder: Path, model: Model, *, tuned: bool) -> Report:
    """Train with accelerate: nobody knows when the loop will end, so a search waits until its share is a minute."""
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION, project_dir=folder)
    data: DataLoader[Any] = DataLoader(Rows(STEPS * BATCH * ACCUMULATION), BATCH)
    network, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-6), data)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = network(rows)["loss"]
        return loss

    with attach(accelerator, table=False):
        each = micro_batched(loss_of, search_share=1.0) if tuned else loss_of
        for rows in loader:
            with accelerator.accumulate(network):
                accelerator.backward(each(rows["input_ids"]))
                optimizer.step()
                optimizer.zero_grad()
    return load(folder)


def test_a_trainer_finds_the_best_and_keeps_it(simulation: Simulation, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", Model(simulation.gpus[0]))
    model = Model(simulation.gpus[0])
    tuned = train(tmp_path / "tuned", model, MicroBatchCallback(search_share=SHARE))
    assert_saved(tuned, plain)
    assert set(model.sizes[-STEPS // 4 :]) == {16}
    again = part_of(train(tmp_path / "again", Model(simulation.gpus[0]), MicroBatchCallback(search_share=SHARE)))
    assert (again.chosen, again.source) == (16, "memory")
    assert again.search_s < 0.7 * part_of(tuned).search_s


@pytest.mark.parametrize(("made", "why"), [(Turning, "would have differed"), (Filling, "ran out of memory")])
def test_a_size_that_could_not_stay_is_forgotten(
    simulation: Simulation, tmp_path: Path, made: type[Turning], why: str
) -> None:
    parts, ways = list[MicroBatchPart](), ((150, 150), (250, 75), (150, 150))
    with our_warnings() as texts:
        for at, (steps, turns) in enumerate(ways):
            model, tuner = made(simulation.gpus[0]), MicroBatchCallback(search_share=SHARE)
            parts.append(part_of(train(tmp_path / str(at), model, tuner, Turn(model, turns), steps=steps)))
    assert [(one.chosen, one.source) for one in (parts[0], parts[2])] == [(16, "search")] * 2
    assert why in parts[1].why
    assert bool(parts[1].steps_in_doubt) == (made is Turning)
    assert len(texts) == 1


def test_a_size_that_was_given_and_could_not_stay_is_told(simulation: Simulation, tmp_path: Path) -> None:
    model = Filling(simulation.gpus[0])
    with our_warnings() as texts:
        part = part_of(train(tmp_path, model, MicroBatchCallback(16), Turn(model, 75), steps=100))
    assert "16 samples at once ran out of memory" in part.why
    (text,) = texts
    assert part.why in text
    assert set(model.sizes[-80:]) == {BATCH}


def test_a_loop_finds_the_best_and_keeps_it(simulation: Simulation, tmp_path: Path) -> None:
    plain = loop(tmp_path / "plain", Model(simulation.gpus[0]), tuned=False)
    tuned = loop(tmp_path / "tuned", Model(simulation.gpus[0]), tuned=True)
    assert_saved(tuned, plain)
    assert part_of(loop(tmp_path / "again", Model(simulation.gpus[0]), tuned=True)).source == "memory"


def test_with_a_power_limit_the_neighbours_are_compared_once_more(simulation: Simulation, tmp_path: Path) -> None:
    asked = (MicroBatchCallback(search_share=0.5), PowerLimitCallback(search_share=0.5))
    report = train(tmp_path, Moving(simulation.gpus[0]), *asked, steps=400)
    part, limit = part_of(report), report.power_limit
    assert limit is not None
    assert (part.chosen, part.checked_beside, part.saving_beside) == (16, (8,), 0.0)
    assert (limit.source, limit.searches, limit.why) == ("search", 1, "")
    assert limit.chosen is not None
    assert limit.found is not None
    assert limit.chosen < limit.found
    assert "together" in str(report)


def test_what_does_not_fit_is_not_used(simulation: Simulation, tmp_path: Path) -> None:
    model = Model(simulation.gpus[0], most=8)
    part = part_of(train(tmp_path, model, MicroBatchCallback(search_share=SHARE)))
    assert part.chosen == 8
    assert max(model.sizes) == 8
    assert any("does not fit into memory" in sentence for sentence in part.explanation)


@pytest.mark.parametrize("batch", [8, 16])
def test_a_setting_that_does_not_fit_is_cut(simulation: Simulation, tmp_path: Path, batch: int) -> None:
    plain = train(tmp_path / "plain", Model(simulation.gpus[0]), steps=80, batch=batch)
    model = Model(simulation.gpus[0], most=4)
    report = train(tmp_path / "tuned", model, MicroBatchCallback(search_share=SHARE), steps=80, batch=batch)
    part = part_of(report)
    assert (part.chosen, max(model.sizes)) == (4, 4)
    assert f"4 samples at once: the {batch} that were set do not fit" in part.explanation
    assert report.steps["samples"].tolist() == plain.steps["samples"].tolist()
    assert set(model.sizes[-STEPS // 4 :]) == {4}


def test_the_configuration_may_ask_for_it(
    simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENERGY_MICRO_BATCH_SIZE", "16")
    with our_warnings() as texts:
        part = part_of(train(tmp_path, Model(simulation.gpus[0]), max_steps=20))
    assert (part.chosen, part.source) == (16, "fixed")
    assert not texts


def test_the_limit_comes_after_the_micro_batch(simulation: Simulation, tmp_path: Path) -> None:
    """A GPU that is kept busy draws more, so the other way round the limit would be of other work."""
    sizes: list[tuple[int, int]] = []
    model = Model(simulation.gpus[0])
    limiter = PowerLimitCallback(search_share=SHARE)

    class Notes(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            sizes.append((model.sizes[-1], round(limit_w())))

    report = train(tmp_path, model, MicroBatchCallback(search_share=SHARE), limiter, Notes(), num_train_epochs=3)
    part, limited = part_of(report), report.power_limit
    assert part.chosen == 16
    assert limited is not None
    assert limited.searches > 0
    assert limited.chosen is not None
    under = [(size, limit) for size, limit in sizes if limit != sizes[0][1]]
    assert {size for size, limit in under if limit != round(limited.chosen)} == {16}
    assert {size for size, limit in under} == {16, *part.checked_beside}  # compared once more, under the limit found
