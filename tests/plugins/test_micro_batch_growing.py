"""A larger effective batch in Lightning is another training: the one that the same numbers, given by hand, make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from micro_batching import Gradients, Reader, apart, trained
from outcomes import load, our_warnings
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from energy_plugins.errors import ConfigError
from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner
from energy_plugins.testing import simulated_gpus

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[torch.optim.Optimizer, "Scheduled"], Any]
SCHEDULES: dict[str, Make] = {
    "none": lambda _optimizer, _module: None,
    "step": lambda optimizer, _: lr_scheduler.StepLR(optimizer, 3, 0.5),
    "estimated": lambda optimizer, module: lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / (1 + module.trainer.estimated_stepping_batches)
    ),
    "cosine": lambda optimizer, _: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "cycle": lambda optimizer, module: lr_scheduler.OneCycleLR(optimizer, module.lr, 20),
    "triangle": lambda optimizer, module: lr_scheduler.CyclicLR(optimizer, module.lr / 2, module.lr, 3),
    "warm": lambda optimizer, _: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, 1, 3), lr_scheduler.StepLR(optimizer, 2, 0.5)], [3]
    ),
}


class Scheduled(Reader):
    def __init__(self, lr: float = 0.1, schedule: str = "step") -> None:
        super().__init__(lr)
        self.schedule = schedule

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        made = SCHEDULES[self.schedule](optimizer, self)
        return optimizer if made is None else ([optimizer], [{"scheduler": made, "interval": "step"}])


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def grown(rule: str = "linear", most: int = 19, **more: Any) -> MicroBatchTuner:
    """Return what makes of 2 x 2 samples 16: four times as many."""
    return MicroBatchTuner(2, effective_batch="grow", max_effective_batch=most, learning_rate_rule=rule, **more)


@pytest.mark.parametrize(
    ("schedule", "rule", "factor"),
    [*((name, "linear", 4) for name in SCHEDULES), ("step", "sqrt", 2), ("step", "none", 1)],
)
def test_it_is_the_training_with_more_accumulation(tmp_path: Path, schedule: str, rule: str, factor: int) -> None:
    how: dict[str, Any] = {"rows": 160, "batch": 2, "max_epochs": 2}
    by_hand, rates, tuned, followed = Gradients(), Rates(), Gradients(), Rates()
    trained(tmp_path, Scheduled(factor * 0.1, schedule), by_hand, rates, accumulate_grad_batches=8, **how)
    trainer = trained(
        tmp_path, Scheduled(0.1, schedule), grown(rule), tuned, followed, accumulate_grad_batches=2, **how
    )
    assert followed.seen == pytest.approx(rates.seen, rel=1e-9)
    assert len(tuned.gradients) == trainer.global_step == 20
    ends = [one.parameters[-1] for one in (by_hand, tuned)]
    assert apart(*ends) < 1e-6
    assert trainer.accumulate_grad_batches == 2  # as the user has it


def test_who_counts_optimizer_steps_sees_as_many_samples(tmp_path: Path) -> None:
    model = Scheduled()
    trainer = trained(
        tmp_path, model, grown(), rows=160, batch=2, accumulate_grad_batches=2, max_steps=30, max_epochs=-1
    )
    assert trainer.global_step == 8
    assert sum(model.sizes[:]) == 8 * 16
    assert trainer.max_steps == 30


def test_one_that_may_not_grow_stays(tmp_path: Path) -> None:
    tuner, rates = grown(most=7), Rates()
    trained(tmp_path, Scheduled(), tuner, rates, rows=40, batch=2, accumulate_grad_batches=2)
    assert set(rates.seen[:3]) == {0.1}
    assert tuner.found is not None
    assert tuner.found.grown == ""


def test_no_step_has_more_samples_than_an_epoch(tmp_path: Path) -> None:
    """At an epoch's end a trainer steps, with gradients divided by the batches that there should have been."""
    tuned, by_hand, rates, tuner = Gradients(), Gradients(), Rates(), grown(most=10_000)
    how: dict[str, Any] = {"rows": 39, "batch": 2, "max_epochs": 2}
    trained(tmp_path, Scheduled(), tuner, tuned, rates, accumulate_grad_batches=2, **how)
    trained(tmp_path, Scheduled(0.8), by_hand, accumulate_grad_batches=16, **how)
    assert tuner.found is not None
    assert "the effective batch is 32 instead of 4" in tuner.found.grown
    assert rates.seen[0] == pytest.approx(0.8)
    assert max(map(apart, by_hand.gradients, tuned.gradients)) < 1e-5


def test_the_report_says_so_first(tmp_path: Path) -> None:
    with simulated_gpus():
        monitor = EnergyMonitor(table=False, log=False, progress_bar=False)
        trained(tmp_path, Scheduled(), monitor, grown(), rows=80, batch=2, accumulate_grad_batches=2)
    report = load(tmp_path)
    assert report.micro_batch is not None
    said = (
        "TRAINING ITSELF WAS CHANGED: the effective batch is 16 instead of 4, as was asked for, and the learning rate 4"
    )
    assert report.micro_batch.grown.startswith(said)
    assert any("TRAINING ITSELF WAS CHANGED" in line for line in str(report).splitlines()[:6])


def saved(folder: Path, *callbacks: Callback, accumulation: int, lr: float = 0.1) -> Path:
    """Train an epoch, and return its checkpoint."""
    how: dict[str, Any] = {"rows": 160, "batch": 2, "accumulate_grad_batches": accumulation}
    trainer = trained(folder, Scheduled(lr), *callbacks, **how)
    path = folder / "one.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("was_grown", [True, False])
def test_learning_rates_of_a_checkpoint_are_not_scaled_twice(tmp_path: Path, was_grown: bool) -> None:
    how: dict[str, Any] = {"rows": 160, "batch": 2, "max_epochs": 2}
    path = saved(tmp_path, *([grown()] if was_grown else []), accumulation=2)
    rates, expected = Rates(), Rates()
    trained(tmp_path, Scheduled(), grown(), rates, accumulate_grad_batches=2, resume=path, **how)
    other = saved(tmp_path / "by_hand", accumulation=8 if was_grown else 2, lr=0.4)
    trained(tmp_path, Scheduled(0.4), expected, accumulate_grad_batches=8, resume=other, **how)
    assert len(rates.seen) == 10
    assert rates.seen == pytest.approx(expected.seen)


def test_a_checkpoint_of_a_grown_training_is_told_of_by_who_keeps_his(tmp_path: Path) -> None:
    path = saved(tmp_path, grown(), accumulation=2)
    with our_warnings() as texts:
        trained(tmp_path, Scheduled(), MicroBatchTuner(2), rows=160, batch=2, max_epochs=2, resume=path)
    assert any("the checkpoint is of a training with a larger effective batch" in text for text in texts)


class ByHand(Scheduled):
    def __init__(self) -> None:
        super().__init__(schedule="none")
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.optimizers()
        return None


class Bare:
    """A loader that says nothing of its batches."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


def test_what_cannot_grow_says_why(tmp_path: Path) -> None:
    with our_warnings() as texts:
        trained(tmp_path, ByHand(), grown(), rows=16, batch=2)
    assert any("the effective batch does not grow: the module optimises by hand" in text for text in texts)
    with our_warnings() as texts:
        trained(tmp_path, Scheduled(), grown(), rows=16, batch=2, wrap=Bare)
    assert any("does not grow: how many samples the loader's batches have cannot be told" in text for text in texts)


def test_nobody_says_how_far() -> None:
    with pytest.raises(ConfigError, match="max_effective_batch is not given"):
        MicroBatchTuner(effective_batch="grow")


@pytest.mark.parametrize("was_grown", [True, False])
def test_a_resumed_training_sees_the_samples_that_are_left(tmp_path: Path, was_grown: bool) -> None:
    """Of 100 optimizer steps of 4 samples 40 have been made before: by 10 of 16, or as the user counts them."""
    path = saved(tmp_path, *([grown()] if was_grown else []), accumulation=2)
    how: dict[str, Any] = {"rows": 160, "batch": 2, "max_epochs": -1, "max_steps": 100}
    model = Scheduled()
    trainer = trained(tmp_path, model, grown(), accumulate_grad_batches=2, resume=path, **how)
    assert trainer.global_step == (10 if was_grown else 40) + 15
    assert trainer.max_steps == 100


def test_who_resumed_without_growing_in_between_has_learning_rates_scaled_once(tmp_path: Path) -> None:
    path = saved(tmp_path, grown(), accumulation=2)
    how: dict[str, Any] = {"rows": 160, "batch": 2}
    with our_warnings():
        trainer = trained(tmp_path, Scheduled(schedule="none"), MicroBatchTuner(2), max_epochs=2, resume=path, **how)
    trainer.save_checkpoint(path)
    rates = Rates()
    grown_again: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 3, "resume": path}
    trained(tmp_path, Scheduled(schedule="none"), grown(), rates, **grown_again, **how)
    assert set(rates.seen) == {trainer.optimizers[0].param_groups[0]["lr"]}


def test_a_module_may_be_copied_meanwhile(tmp_path: Path) -> None:
    """As by those who average weights; the copy is the module without us."""
    averaging, model = StochasticWeightAveraging(0.01), Scheduled(schedule="none")
    trained(tmp_path, model, grown(), averaging, rows=160, batch=2, accumulate_grad_batches=2, max_epochs=3)
    copied = averaging._average_model
    assert copied is not None
    assert copied is not model
    assert vars(copied).get("configure_optimizers", copied.configure_optimizers).__self__ is copied
