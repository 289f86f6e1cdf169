"""Lightning fits whose micro-batch cannot be another: nothing is changed, and they hear why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import SingleDeviceStrategy
from micro_batching import (
    STEPS,
    Contrastive,
    OfSentences,
    OfTokens,
    Reader,
    Sentences,
    apart,
    both,
    trained,
)
from outcomes import our_warnings
from torch.utils.data import DataLoader

from energy_plugins.lightning import MicroBatchTuner
from energy_plugins.training.micro_batch.refusals import most_sizes, why_not

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


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

    @pytest.mark.parametrize(("batch", "accumulation", "size", "each"), [(4, 8, 8, 2), (12, 2, 4, 1), (12, 4, 4, 1)])
    def test_a_task_of_several_whose_loss_knows_its_batch_is_found(
        self, tmp_path: Path, batch: int, accumulation: int, size: int, each: int
    ) -> None:
        """They take turns in each window, and the parts of the other one's batches are more unequal."""

        class TwoTasks(Reader):
            def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                kind = Contrastive if str(batch["task"]) == "contrast" else Reader
                return kind.loss(self, batch)

        class Alternates:
            def __init__(self, loader: Any) -> None:
                self.loader = loader

            def __iter__(self) -> Iterator[Any]:
                for index, words in enumerate(self.loader):
                    if index // each % 2:
                        yield {**words, "labels": words["input_ids"], "task": "contrast"}
                    else:
                        yield {**words, "task": "words"}

        tuner, model = MicroBatchTuner(size=size), TwoTasks()
        how: dict[str, Any] = {"rows": 8 * batch * accumulation, "batch": batch, "wrap": Alternates}
        with our_warnings():
            trained(tmp_path, model, tuner, accumulate_grad_batches=accumulation, **how)
        assert tuner.found is not None
        assert "samples at once: the gradients would not be the same" in tuner.found.why
        assert set(model.sizes) == {batch}

    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(4, 4, 16), (4, 4, 8)])
    def test_a_loss_that_goes_by_the_number_of_its_batch_is_found(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        """Batches that run together have one number, that of the last."""

        class ByTurns(Reader):
            def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
                return super().training_step(batch, batch_idx) * (batch_idx % 4)

        with our_warnings() as texts:
            plain, tuned, _, _ = both(tmp_path, ByTurns, batch, accumulation, size, free=True)
        assert any(f"{size} samples at once: the gradients would not be the same" in text for text in texts)
        assert all(map(torch.equal, plain.gradients[-1], tuned.gradients[-1]))

    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(8, 1, 2), (2, 4, 8)])
    def test_a_module_that_clips_after_each_backward_pass(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        class Clips(Reader):
            def on_after_backward(self) -> None:
                torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

        with our_warnings() as texts:
            plain, tuned, _, _ = both(tmp_path, Clips, batch, accumulation, size, free=True)
        assert any(f"{size} samples at once: the gradients would not be the same" in text for text in texts)
        assert all(map(torch.equal, plain.gradients[-1], tuned.gradients[-1]))

    def test_a_module_that_only_looks_at_its_gradients_is_tuned(self, tmp_path: Path) -> None:
        class Looks(Reader):
            def on_after_backward(self) -> None:
                self.log("gradients", sum(one.grad.norm() for one in self.parameters() if one.grad is not None))

        _, _, tuner, _ = both(tmp_path, Looks, 8, 1, 2, free=True, rows=64)
        assert tuner.found is not None
        assert tuner.found.chosen == 2

    def test_parts_of_a_batch_have_its_number(self, tmp_path: Path) -> None:
        class ByTurns(Reader):
            def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
                return super().training_step(batch, batch_idx) * (1 + batch_idx % 3)

        plain, tuned, tuner, _ = both(tmp_path, ByTurns, 8, 2, 4, free=False)
        assert tuner.found is not None
        assert tuner.found.chosen == 4
        assert max(map(apart, plain.gradients, tuned.gradients)) <= 1e-6

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
        tuner, model = MicroBatchTuner(size=2, allow_batch_statistics=allowed), Reader(0.1, OfSentences())
        with our_warnings() as texts:
            trained(tmp_path, model, tuner, rows=48, batch=8)
        part = tuner.found
        assert part is not None
        if allowed:
            assert part.chosen == 2
            assert part.gradient_difference is not None
            assert part.gradient_limit is not None
            assert part.gradient_difference > part.gradient_limit
            assert part.gradient_checks == 1  # more would say the same again
            assert part.check_s > 0
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
    @pytest.mark.parametrize("how", [{"mode": "reduce-overhead"}, {"backend": "cudagraphs"}])
    def test_cuda_graphs(self, tmp_path: Path, nested: bool, how: dict[str, Any]) -> None:
        model = Reader()
        if nested:
            model.layers[0].compile(**how)
        else:
            model.layers = torch.compile(model.layers, **how)  # type: ignore[assignment]
        assert "CUDA graphs" in why_not(model)
        assert not why_not(Reader())
        assert most_sizes(model) == 8
        tuner = MicroBatchTuner(size=2)
        with our_warnings() as texts, torch.compiler.set_stance("force_eager"):
            trained(tmp_path, model, tuner, rows=32, batch=8)
        assert set(model.sizes) == {8}
        assert tuner.found is not None
        assert "CUDA graphs" in tuner.found.why
        assert any("CUDA graphs, which are recorded for one shape" in text for text in texts)

    def test_fewer_sizes_are_tried_where_each_is_compiled(self) -> None:
        model = Reader()
        model.layers[0].compile(dynamic=False)
        assert most_sizes(model) == 4
        assert most_sizes(torch.compile(Reader(), dynamic=False)) == 4  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy", "XLAStrategy"])
    def test_strategies_that_reduce_gradients_in_their_own_way(self, tmp_path: Path, name: str) -> None:
        strategy = type(name, (SingleDeviceStrategy,), {})(device=torch.device("cpu"))
        tuner, model = MicroBatchTuner(size=2), Reader()
        with our_warnings() as texts:
            trained(tmp_path, model, tuner, rows=32, batch=8, strategy=strategy)
        assert set(model.sizes) == {8}
        assert any(f"{name} accumulates or shards gradients in its own way" in text for text in texts)

    def test_an_accumulation_that_changes(self, tmp_path: Path) -> None:
        tuner, model = MicroBatchTuner(size=2), Reader()
        with our_warnings() as texts:
            trained(tmp_path, model, tuner, GradientAccumulationScheduler({1: 2}), rows=32, batch=8, max_epochs=2)
        assert set(model.sizes) == {8}
        assert any("changes the samples of an optimizer step as it goes" in text for text in texts)

    def test_an_optimizer_that_runs_the_last_batch_again(self, tmp_path: Path) -> None:
        class Searching(Reader):
            def configure_optimizers(self) -> Any:
                return torch.optim.LBFGS(self.parameters(), lr=1e-3, max_iter=3)

        for accumulation in (1, 2):
            tuner, model = MicroBatchTuner(size=2), Searching()
            with our_warnings() as texts:
                trained(tmp_path, model, tuner, rows=96, batch=8, accumulate_grad_batches=accumulation)
            assert any("LBFGS runs the last" in text for text in texts) == (accumulation == 2)
            assert (model.sizes[-1] == 8) == (accumulation == 2)

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
