"""Lightning fits in other micro-batches: the gradients, counts and logs that they had, or why nothing is changed."""

from __future__ import annotations

import csv
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from micro_batching import IGNORED, WORDS, Contrastive, Gradients, OfTokens, Reader, Sentences, apart, trained
from outcomes import our_warnings
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from energy_plugins.lightning import MicroBatchTuner
from energy_plugins.testing.ranks import in_ranks
from energy_plugins.training.micro_batch.refusals import most_sizes, why_not

WAYS = [(12, 1, 4), (12, 2, 6), (4, 4, 8), (2, 6, 12), (8, 3, 4)]
"""Batch, accumulation and micro-batch: split, and merged."""
STEPS = 21
"""Of which the first runs as the user has it: its window is the one that is run both ways."""


def both(
    folder: Path, model: type[Reader], batch: int, accumulation: int, size: int, *, free: bool, **settings: Any
) -> tuple[Gradients, Gradients, MicroBatchTuner, Reader]:
    """Train as it is and tuned, and return what the callbacks saw."""
    rows = settings.pop("rows", STEPS * batch * accumulation)
    plain = Gradients()
    settings = {"accumulate_grad_batches": accumulation, **settings}
    trained(folder, model(), plain, rows=rows, batch=batch, **settings)
    tuned, tuner = Gradients(() if free else plain.parameters), MicroBatchTuner(size=size)
    tuned_model = model()
    trained(folder, tuned_model, tuner, tuned, rows=rows, batch=batch, **settings)
    return plain, tuned, tuner, tuned_model


one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
class TestGradients:
    def test_each_of_20_steps_has_the_same_in_single_precision(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        plain, tuned, tuner, model = both(tmp_path, Reader, batch, accumulation, size, free=False)
        assert tuner.found is not None
        assert tuner.found.chosen == size
        assert set(model.sizes[-6:]) == {size}
        assert len(plain.gradients) == len(tuned.gradients) == STEPS
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-6

    def test_20_steps_in_a_row_stay_together_in_double_precision(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        settings = {"precision": "64-true", "gradient_clip_val": 0.4}
        plain, tuned, *_ = both(tmp_path, Reader, batch, accumulation, size, free=True, **settings)
        assert apart(plain.parameters[0], plain.parameters[-1]) > 0.03
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9
        assert apart(plain.parameters[-1], tuned.parameters[-1]) <= 1e-9


class TestMixedPrecision:
    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (4, 4, 8)])
    def test_losses_are_scaled_as_they_were(self, tmp_path: Path, batch: int, accumulation: int, size: int) -> None:
        settings: dict[str, Any] = {"rows": STEPS * batch * accumulation, "batch": batch, "gradient_clip_val": 0.5}
        settings["accumulate_grad_batches"] = accumulation
        seen: list[Gradients] = []
        states, tuner = [], MicroBatchTuner(size=size)
        for callbacks in ([], [tuner]):
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
            plugin = MixedPrecision("16-mixed", "cpu", scaler)
            gradients = Gradients(seen[0].parameters if seen else ())
            trained(tmp_path, Reader(), *callbacks, gradients, plugins=[plugin], **settings)
            seen.append(gradients)
            states.append(scaler.state_dict())
        assert tuner.found is not None
        assert tuner.found.chosen == size
        assert states[0] == states[1]
        assert states[0]["scale"] < 2**20  # the first steps overflowed
        finite = [pair for pair in zip(*(one.gradients for one in seen), strict=True) if all(map(_finite, pair))]
        assert len(finite) > STEPS / 2
        assert all(apart(one, other) <= 1e-2 for one, other in finite)

    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (4, 4, 8)])
    def test_of_16_bits_without_scaling(self, tmp_path: Path, batch: int, accumulation: int, size: int) -> None:
        plain, tuned, tuner, _ = both(tmp_path, Reader, batch, accumulation, size, free=False, precision="bf16-mixed")
        assert tuner.found is not None
        assert (tuner.found.chosen, tuner.found.gradient_limit) == (size, 3e-2)
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 3e-2


def _finite(gradients: list[torch.Tensor]) -> bool:
    return all(bool(one.isfinite().all()) for one in gradients)


class TestEndsOfEpochs:
    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(4, 4, 8), (4, 4, 16), (12, 2, 4), (6, 3, 18)])
    @pytest.mark.parametrize("rows", [5, 17, 30])
    def test_windows_cut_short_and_ragged_batches_give_what_they_gave(
        self, tmp_path: Path, batch: int, accumulation: int, size: int, rows: int
    ) -> None:
        """Lightning divides by the accumulation all the same, and a mean of few samples weighs as much as of many."""
        rows += 2 * batch * accumulation
        plain, tuned, tuner, _ = both(
            tmp_path, Reader, batch, accumulation, size, free=True, rows=rows, max_epochs=3, precision="64-true"
        )
        assert tuner.found is not None
        assert tuner.found.chosen == size
        assert len(plain.gradients) == len(tuned.gradients) >= 9
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9


class TestDeclined:
    @pytest.mark.parametrize("model", [OfTokens, Contrastive])
    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (4, 4, 8)])
    def test_losses_that_know_their_batch_are_left_alone_with_the_number(
        self, tmp_path: Path, model: type[Reader], batch: int, accumulation: int, size: int
    ) -> None:
        with our_warnings() as texts:
            plain, tuned, tuner, trained_model = both(tmp_path, model, batch, accumulation, size, free=True)
        assert tuner.found is not None
        assert tuner.found.chosen is None
        difference = tuner.found.gradient_difference
        assert difference is not None
        assert difference > 1e-3
        assert f"they differ by {difference:.2g} of their norm" in tuner.found.why
        assert any(f"{size} samples at once: the gradients would not be the same" in text for text in texts)
        assert len(trained_model.sizes) == STEPS * accumulation
        assert all(map(torch.equal, plain.gradients[-1], tuned.gradients[-1]))

    def test_equal_numbers_of_labels_make_the_usual_loss_a_mean_over_samples(self, tmp_path: Path) -> None:
        class Whole(OfTokens):
            def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                return super().loss({**batch, "labels": batch["input_ids"]})

        plain, tuned, tuner, _ = both(tmp_path, Whole, 4, 4, 8, free=True, precision="64-true")
        assert tuner.found is not None
        assert tuner.found.chosen == 8
        assert apart(plain.gradients[-1], tuned.gradients[-1]) <= 1e-9

    @pytest.mark.parametrize("allowed", [False, True])
    def test_batch_statistics_need_an_allowance(self, tmp_path: Path, allowed: bool) -> None:
        tuner, model = MicroBatchTuner(size=2, allow_batch_statistics=allowed), Reader(0.1, _OfSentences())
        with our_warnings() as texts:
            trained(tmp_path, model, tuner, rows=48, batch=8)
        part = tuner.found
        assert part is not None
        if allowed:
            assert part.chosen == 2
            assert part.gradient_difference is not None
            assert part.gradient_limit is not None
            assert part.gradient_difference > part.gradient_limit
            assert set(model.sizes[-4:]) == {2}
        else:
            assert part.chosen is None
            assert "layers.1.norm normalise by the statistics of a batch (BatchNorm)" in part.why
            assert set(model.sizes) == {8}
            assert any("allow_batch_statistics=True" in text for text in texts)

    @pytest.mark.parametrize(
        ("batch", "accumulation", "size", "words"),
        [(8, 1, 3, "must be one of 1, 2, 4, 8"), (8, 2, 32, "must be one of 1, 2, 4, 8, 16")],
    )
    def test_a_size_that_does_not_fit(
        self, tmp_path: Path, batch: int, accumulation: int, size: int, words: str
    ) -> None:
        tuner = MicroBatchTuner(size=size)
        with our_warnings() as texts:
            trained(tmp_path, Reader(), tuner, rows=48, batch=batch, accumulate_grad_batches=accumulation)
        assert any(words in text for text in texts)

    def test_optimisation_by_hand(self, tmp_path: Path) -> None:
        class ByHand(Reader):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
                self.optimizers().zero_grad()  # type: ignore[union-attr]
                self.manual_backward(super().training_step(batch, batch_idx))
                self.optimizers().step()  # type: ignore[union-attr]

        tuner, model = MicroBatchTuner(size=2), ByHand()
        with our_warnings() as texts:
            trained(tmp_path, model, tuner, rows=32, batch=8)
        assert set(model.sizes) == {8}
        assert any("optimises by hand" in text for text in texts)

    @pytest.mark.parametrize("nested", [False, True])
    def test_cuda_graphs(self, tmp_path: Path, nested: bool) -> None:
        model = Reader()
        if nested:
            model.layers[0].compile(mode="reduce-overhead")
        else:
            model.layers = torch.compile(model.layers, mode="reduce-overhead")  # type: ignore[assignment]
        assert "CUDA graphs" in why_not(model)
        assert not why_not(Reader())
        assert most_sizes(model) == 8
        assert most_sizes(torch.compile(Reader(), dynamic=False)) == 4  # type: ignore[arg-type]

    def test_a_lightning_that_is_made_in_another_way(self, tmp_path: Path) -> None:
        class Other(Trainer):
            def __getattribute__(self, name: str) -> Any:
                if name == "_results" and self.hidden:
                    raise AttributeError(name)
                return super().__getattribute__(name)

            hidden = False

        class Hides(Callback):
            def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
                trainer.hidden = not trainer.hidden  # type: ignore[attr-defined]

        tuner, model = MicroBatchTuner(size=2), Reader()
        trainer = Other(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Hides(), tuner, Hides()],
        )
        with our_warnings() as texts:
            trainer.fit(model, DataLoader(Sentences(32), batch_size=8))
        assert set(model.sizes) == {8}
        assert any("this version of Lightning has no _results" in text for text in texts)

    def test_batches_that_cannot_be_cut(self, tmp_path: Path) -> None:
        class Odd(Reader):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                return torch.as_tensor(super().training_step({"input_ids": batch[0], "labels": batch[0]}, batch_idx))

        tuner = MicroBatchTuner(size=2)

        class Wrapped:
            def __init__(self, loader: Any) -> None:
                self.loader = loader

            def __iter__(self) -> Iterator[Any]:
                return ((batch["input_ids"], torch.zeros(3)) for batch in self.loader)

        with our_warnings() as texts:
            trained(tmp_path, Odd(), tuner, rows=32, batch=8, wrap=Wrapped)
        assert any("can be neither cut nor joined" in text for text in texts)


class _OfSentences(nn.Module):
    """BatchNorm over the features of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(x.transpose(1, 2)).transpose(1, 2))


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
            late = tuned.outputs[accumulation * 2 : accumulation * 3]
            assert [set(outputs) for outputs in late] == [{"loss"}] * 3 + [{"loss", "scores", "of"}]
            assert len(late[-1]["scores"]) == size


class TooLarge(Reader):
    """Runs out of memory with more samples than there are words, from some pass on, forward or backward."""

    fails_from = 0
    most = 8
    backward_too = False

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if len(batch["input_ids"]) > self.most and len(self.sizes) > self.fails_from:
            if not self.backward_too:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
            # The last of the gradients: those of other layers are there already.
            self.hook = next(self.layers.parameters()).register_hook(self._fail)
        return loss

    def _fail(self, gradient: torch.Tensor) -> None:
        self.fails_from = 1 << 30
        self.hook.remove()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")


class TestOutOfMemory:
    @pytest.mark.parametrize(("batch", "accumulation"), [(12, 1), (12, 2)])
    def test_batches_that_only_fit_in_parts_run_in_parts(self, tmp_path: Path, batch: int, accumulation: int) -> None:
        settings: dict[str, Any] = {"rows": 20 * batch, "batch": batch, "accumulate_grad_batches": accumulation}
        plain, tuned, tuner, model = Gradients(), Gradients(), MicroBatchTuner(size=4), TooLarge()
        trained(tmp_path, Reader(), plain, precision="64-true", **settings)
        trained(tmp_path, model, tuned, tuner, precision="64-true", **settings)
        assert tuner.found is not None
        assert tuner.found.chosen == 4
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9

    def test_a_size_that_never_fits_is_not_used(self, tmp_path: Path) -> None:
        with our_warnings() as texts:
            plain, tuned, tuner, _ = both(tmp_path, TooLarge, 4, 4, 16, free=True, precision="64-true")
        assert any("16 samples at once: it does not fit into memory" in text for text in texts)
        assert tuner.found is not None
        assert tuner.found.chosen is None
        assert apart(plain.gradients[-1], tuned.gradients[-1]) <= 1e-9

    @pytest.mark.parametrize("backward", [False, True])
    @pytest.mark.parametrize("size", [8, 16])
    def test_one_that_fits_no_longer_is_given_up_and_nothing_is_lost_or_made_twice(
        self, tmp_path: Path, size: int, backward: bool
    ) -> None:
        class Later(TooLarge):
            fails_from = 20
            most = 4
            backward_too = backward

        plain, tuned, _, model = both(tmp_path, Later, 4, 4, size, free=True, precision="64-true")
        assert size in model.sizes
        assert set(model.sizes[-10:]) == {4}
        assert len(plain.gradients) == len(tuned.gradients) == STEPS
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-9


class Reductions(Callback):
    """Counts how often a bucket of gradients is reduced over ranks."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def hook(state, bucket):  # type: ignore[no-untyped-def] # torch reads annotations, and wants no text  # noqa: ANN001, ANN202
            self.count += 1
            assert torch.distributed.group.WORLD is not None
            return allreduce_hook(torch.distributed.group.WORLD, bucket)

        trainer.strategy.model.register_comm_hook(None, hook)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (12, 2, 6), (4, 4, 8), (2, 6, 12)])
def test_two_ranks_have_the_same_gradients_with_as_many_reductions(
    tmp_path: Path, batch: int, accumulation: int, size: int
) -> None:
    def train(rank: int) -> None:
        torch.set_num_threads(1)
        rows = 2 * STEPS * batch * accumulation
        settings: dict[str, Any] = {"strategy": "ddp", "devices": 2, "rows": rows, "batch": batch}
        settings["accumulate_grad_batches"] = accumulation
        plain, counts = Gradients(), [Reductions(), Reductions()]
        trained(tmp_path, Reader(), plain, counts[0], **settings)
        tuned, tuner, model = Gradients(plain.parameters), MicroBatchTuner(size=size), Reader()
        trained(tmp_path, model, tuner, tuned, counts[1], **settings)
        assert tuner.found is not None
        assert tuner.found.chosen == size
        assert set(model.sizes[-6:]) == {size}
        assert len(plain.gradients) == STEPS
        for one, other in zip(plain.gradients, tuned.gradients, strict=True):
            assert apart(one, other) <= 1e-6
        assert counts[0].count == counts[1].count == STEPS
        free = Gradients()
        trained(tmp_path, Reader(), free, MicroBatchTuner(size=size), precision="64-true", **settings)
        plain = Gradients()
        trained(tmp_path, Reader(), plain, precision="64-true", **settings)
        assert apart(plain.gradients[-1], free.gradients[-1]) <= 1e-9

    assert in_ranks(2, train) == [0, 0]


def test_what_one_rank_cannot_do_none_does(tmp_path: Path) -> None:
    class Uneven(Reader):
        """Of which one rank's loss is a mean over labels."""

        def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            other = OfTokens.loss if self.global_rank == 1 else Reader.loss
            return other(self, batch)  # type: ignore[arg-type]

    def train(rank: int) -> None:
        torch.set_num_threads(1)
        tuner, model = MicroBatchTuner(size=4), Uneven()
        trained(tmp_path, model, tuner, rows=96, batch=12, strategy="ddp", devices=2)
        assert tuner.found is not None
        assert tuner.found.chosen is None
        assert "of their norm" in tuner.found.why
        assert ("another rank says no" in tuner.found.why) == (rank == 0)
        assert set(model.sizes[-2:]) == {12}

    assert in_ranks(2, train) == [0, 0]


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


class Keeps(Reader):
    """What many modules do in a step beside returning a loss: they count, and keep losses for the epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[float] = []
        self.seen: dict[str, int] = {}
        self.calls = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.calls += 1
        self.outputs.append(float(len(batch["labels"])))
        self.seen["samples"] = self.seen.get("samples", 0) + len(batch["labels"])
        return super().training_step(batch, batch_idx)


class TestWhatTheCheckLeaves:
    def test_what_a_module_counts_and_keeps_is_as_it_was(self, tmp_path: Path) -> None:
        class Unequal(Keeps, OfTokens):
            """Whose loss is declined."""

        model = Unequal()
        with our_warnings() as texts:
            trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert any("the gradients would not be the same" in text for text in texts)
        assert model.calls == 4
        assert model.outputs == [8.0] * 4
        assert model.seen == {"samples": 32}

    def test_samples_that_are_counted_stay_as_many(self, tmp_path: Path) -> None:
        model = Keeps()
        trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert model.outputs == [2.0] * 16
        assert model.seen == {"samples": 32}

    @pytest.mark.parametrize("error", [AssertionError, ZeroDivisionError])
    def test_whatever_a_step_raises_for_other_batches_ends_no_training(
        self, tmp_path: Path, error: type[Exception]
    ) -> None:
        class Particular(Reader):
            def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
                if len(batch["labels"]) != 8:
                    raise error("batches of 8 only")
                return super().training_step(batch, batch_idx)

        model = Particular()
        with our_warnings() as texts:
            trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert any("could not be run both ways: batches of 8 only" in text for text in texts)
        assert model.sizes[-3:] == [8] * 3

    def test_an_optimizer_that_steps_inside_of_backward_is_left_alone(self, tmp_path: Path) -> None:
        class Inside(Reader):
            steps = 0

            def step(self, parameter: torch.Tensor) -> None:
                self.steps += 1
                parameter.grad = None

        model = Inside()
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(model.step)
        with our_warnings() as texts:
            trained(tmp_path, model, MicroBatchTuner(size=2), rows=32, batch=8)
        assert any("as soon as its gradient is there" in text for text in texts)
        assert model.steps == 4 * len(list(model.parameters()))

    @pytest.mark.parametrize("norm", [False, True])
    def test_no_allowance_is_one_for_gradients_of_another_length(self, tmp_path: Path, norm: bool) -> None:
        """A sum is no mean: cut into four, its gradient would be a quarter of what it was."""

        class Sum(Reader):
            def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                return super().loss(batch) * len(batch["labels"])

        model = Sum(0.01, *([_OfSentences()] if norm else []))
        tuner = MicroBatchTuner(size=2, allow_batch_statistics=True)
        with our_warnings() as texts:
            trained(tmp_path, model, tuner, rows=32, batch=8)
        assert tuner.found is not None
        assert tuner.found.chosen is None
        assert any("being 0.25 times as long" in text for text in texts)
        assert model.sizes[-4:] == [8] * 4


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
