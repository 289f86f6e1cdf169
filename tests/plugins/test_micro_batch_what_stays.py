"""Counts, logs, checkpoints and outputs of a Lightning fit are the same in another micro-batch."""

from __future__ import annotations

import csv
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from micro_batching import (
    IGNORED,
    WORDS,
    Gradients,
    Reader,
    apart,
    trained,
)
from torchmetrics.classification import MulticlassAccuracy

from energy_plugins.lightning import MicroBatchTuner

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


class Counts(Callback):
    """What a callback sees of a fit."""

    def __init__(self) -> None:
        self.hooks: Counter[str] = Counter()
        self.outputs: list[Any] = []
        self.logged: list[dict[str, float]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.hooks["batch_start"] += 1

    def on_before_zero_grad(self, *args: Any) -> None:
        self.hooks["zero_grad"] += 1

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.hooks["optimizer_step"] += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.hooks["validation"] += 1
        self.hooks[f"validation at {trainer.global_step}"] += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.outputs.append(outputs)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class Logging(Reader):
    """Logs in every way, and returns more than a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.right = MulticlassAccuracy(num_classes=WORDS, average="micro", ignore_index=IGNORED)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        scores = self.scores(batch["input_ids"])
        self.right(scores.flatten(0, 1), batch["labels"].flatten())
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"twice": 2 * loss, "ten": 10.0}, on_step=True, on_epoch=True)
        self.log("words", (batch["labels"] != IGNORED).sum().float(), reduce_fx="sum", on_epoch=True)
        self.log("longest", (batch["labels"] != IGNORED).sum(1).max().float(), reduce_fx="max", on_epoch=True)
        words = (batch["labels"] != IGNORED).sum()
        by_words = (batch["input_ids"] * (batch["labels"] != IGNORED)).sum() / words
        self.log("by_words", by_words, on_epoch=True, batch_size=int(words))
        self.log("right", self.right, on_step=False, on_epoch=True)
        return {"loss": loss, "scores": scores.detach(), "of": len(scores)}

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class TestWhatStaysAsItWas:
    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (12, 2, 6), (4, 4, 16)])
    def test_steps_schedules_validation_logs_and_checkpoints(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        seen = []
        for tuners in ([], [MicroBatchTuner(size=size)]):
            counts, folder = Counts(), tmp_path / str(len(tuners))
            saves = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1)
            logger = CSVLogger(folder)
            trainer = trained(
                folder,
                Logging(),
                *tuners,
                counts,
                saves,
                rows=100,
                batch=batch,
                max_epochs=2,
                precision="64-true",
                accumulate_grad_batches=accumulation,
                val_check_interval=4,
                limit_val_batches=1,
                num_sanity_val_steps=0,
                enable_checkpointing=True,
                log_every_n_steps=1,
                logger=logger,
                validation=True,
            )
            kept = sorted(path.name for path in folder.glob("*.ckpt"))
            rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
            seen.append((counts, kept, trainer.global_step, [(row["step"], row["epoch"]) for row in rows], rows))
        (plain, *positions, plain_rows), (tuned, *other_positions, tuned_rows) = seen
        assert positions == other_positions
        assert plain.hooks == tuned.hooks
        assert plain.rates == tuned.rates
        assert len(plain.logged) == 2
        for one, other in zip(plain.logged, tuned.logged, strict=True):
            names = [name for name in one if not name.endswith("_step")]
            if size > batch:  # what is logged at a step is of the batches that ran together
                names.remove("val_loss")
            assert one.keys() == other.keys()
            assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-9)
        if size < batch:
            for row, other_row in zip(plain_rows, tuned_rows, strict=True):
                assert list(map(float, filter(None, row.values()))) == pytest.approx(
                    list(map(float, filter(None, other_row.values()))), rel=1e-9
                )
            for one, other in zip(plain.outputs, tuned.outputs, strict=True):
                assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-9)
                assert torch.allclose(one["scores"], other["scores"], rtol=1e-9)
        else:
            late = tuned.outputs[accumulation * 3 : accumulation * 4]
            assert [set(outputs) for outputs in late] == [{"loss"}] * 3 + [{"loss", "scores", "of"}]
            assert len(late[-1]["scores"]) == size


@pytest.mark.parametrize("size", [2, 16])
def test_a_fit_that_is_resumed_goes_on_as_it_would_have(tmp_path: Path, size: int) -> None:
    settings: dict[str, Any] = {"rows": 16 * 6 + 4, "batch": 4, "accumulate_grad_batches": 4, "precision": "64-true"}
    seen = []
    for tuners in ([], [MicroBatchTuner(size=size)]):
        saved, gradients, model = tmp_path / f"{len(tuners)}.ckpt", Gradients(), Reader()
        trained(tmp_path, Reader(), *tuners, max_epochs=1, **settings).save_checkpoint(saved)
        trainer = trained(tmp_path, model, *tuners, gradients, max_epochs=2, resume=saved, **settings)
        assert trainer.global_step == 14
        assert [tuner.found.chosen for tuner in tuners if tuner.found is not None] == [size] * len(tuners)
        assert (size in model.sizes) == bool(tuners)
        assert len(gradients.gradients) == 7
        seen.append(gradients)
    for one, other in zip(*(gradients.gradients for gradients in seen), strict=True):
        assert apart(one, other) <= 1e-9


def test_one_tuner_may_train_twice(tmp_path: Path) -> None:
    tuner = MicroBatchTuner(size=8)
    for _ in range(2):
        model = Reader()
        trainer = trained(tmp_path, model, tuner, rows=64, batch=4, accumulate_grad_batches=2)
        assert set(model.sizes[-3:]) == {8}
        assert "_make_closure" not in vars(trainer.fit_loop.epoch_loop.automatic_optimization)
    assert pickle.loads(pickle.dumps(tuner)).found is None  # noqa: S301 - our own


class AddsUp(Callback):
    """Reads the loss of each batch, as callbacks do that know that there is one."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (4, 4, 16), (4, 4, 8)])
def test_who_reads_the_loss_of_each_batch_finds_one_and_the_same_mean(
    tmp_path: Path, batch: int, accumulation: int, size: int
) -> None:
    found = []
    for tuners in ([], [MicroBatchTuner(size=size)]):
        adds_up = AddsUp()
        how: dict[str, Any] = {"accumulate_grad_batches": accumulation, "precision": "64-true"}
        trained(tmp_path, Reader(), *tuners, adds_up, rows=102, batch=batch, **how)
        found.append(adds_up.losses)
    plain, tuned = found
    assert len(plain) == len(tuned)
    assert sum(tuned) == pytest.approx(sum(plain), rel=1e-9)
