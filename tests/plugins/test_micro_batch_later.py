"""Losses of Lightning fits that agree for long, and then no more: found before a gradient of them is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from micro_batching import STEPS, Contrastive, EvenAtFirst, Gradients, OfTokens, Reader, Tensors, apart, trained
from outcomes import load, our_warnings
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner, PowerLimitTuner
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.testing import simulated_gpus
from energy_plugins.testing.ranks import in_ranks

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = [(12, 1, 2), (4, 4, 8), (4, 4, 16), (12, 2, 4)]
EVEN = 8
"""Optimizer steps whose sentences have labels for all words."""


def fit(
    folder: Path, model: Reader, tuner: MicroBatchTuner | None, batch: int, accumulation: int, **settings: Any
) -> list[Tensors]:
    """Train on sentences of which later ones have unequal numbers of labels, and return the gradients of each step."""
    gradients, share = Gradients(), batch * accumulation
    steps, even = settings.pop("steps", STEPS), settings.pop("even", EVEN)
    data = EvenAtFirst(steps * share, even * share)
    callbacks: list[Callback] = [gradients, *settings.pop("callbacks", [])]
    trained(
        folder, model, *([tuner] if tuner else []), *callbacks, rows=0, batch=batch,
        wrap=lambda _: DataLoader(data, batch_size=batch),
        **{"precision": "64-true", "accumulate_grad_batches": accumulation, **settings},
    )  # fmt: skip
    return gradients.gradients


def furthest(one: list[Tensors], other: list[Tensors]) -> float:
    return max(apart(a, b) for a, b in zip(one, other, strict=True))


def part_of(tuner: MicroBatchTuner) -> MicroBatchPart:
    assert tuner.found is not None
    return tuner.found


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
class TestCounts:
    def test_a_mean_over_labels_is_found_before_a_gradient_of_it_is_used(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        tuner, model = MicroBatchTuner(size=size), OfTokens()
        with our_warnings() as texts:
            tuned = fit(tmp_path, model, tuner, batch, accumulation)
        assert furthest(fit(tmp_path, OfTokens(), None, batch, accumulation), tuned) <= 1e-9
        assert size in model.sizes
        assert set(model.sizes[-6:]) == {batch}
        part = part_of(tuner)
        assert (part.chosen, part.steps_in_doubt) == (None, ())
        assert part.gradient_checks == 3 + 1 + 1  # at the start, at the choice, and that
        assert part.gradient_difference is not None
        assert part.gradient_difference > 0.01
        (text,) = texts
        assert f"the gradients of optimizer step {EVEN + 1} would have differed by" in text
        assert "no step is known to have been made with such gradients" in text
        assert part.why in text

    def test_means_over_samples_go_on_with_few_checks(
        self, tmp_path: Path, batch: int, accumulation: int, size: int
    ) -> None:
        """Unequal numbers of labels ask for checks until one has seen them as unequal as they are."""
        tuner, model, steps = MicroBatchTuner(size=size), Reader(), 60
        with our_warnings() as texts:
            tuned = fit(tmp_path, model, tuner, batch, accumulation, steps=steps)
        plain = fit(tmp_path, Reader(), None, batch, accumulation, steps=steps)
        assert furthest(plain, tuned) <= 1e-9
        assert not texts
        part = part_of(tuner)
        assert (part.chosen, part.steps_in_doubt) == (size, ())
        assert 3 + 2 < part.gradient_checks <= 3 + 2 + 6
        assert set(model.sizes[-6:]) == {size}

    def test_equal_numbers_disturb_nothing(self, tmp_path: Path, batch: int, accumulation: int, size: int) -> None:
        tuner, model = MicroBatchTuner(size=size), OfTokens()
        tuned = fit(tmp_path, model, tuner, batch, accumulation, even=STEPS)
        assert furthest(fit(tmp_path, OfTokens(), None, batch, accumulation, even=STEPS), tuned) <= 1e-9
        part = part_of(tuner)
        assert part.chosen == size
        assert part.gradient_checks == 3 + 2


class Turns(Reader):
    """Whose sentences are compared with each other from some optimizer step on: no count tells that."""

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.trainer.global_step < EVEN:
            return super().loss(batch)
        return Contrastive.loss(self, batch)  # type: ignore[arg-type]


def test_what_no_count_tells_is_found_at_a_fixed_step_and_the_report_says_what_may_have_differed(
    tmp_path: Path,
) -> None:
    tuner, model = MicroBatchTuner(size=8), Turns()
    with our_warnings() as texts:
        tuned = fit(tmp_path, model, tuner, 4, 4, even=STEPS)
    plain = fit(tmp_path, Turns(), None, 4, 4, even=STEPS)
    part = part_of(tuner)
    assert part.chosen is None
    assert part.steps_in_doubt == (5, 12)  # checked: 1 to 3, 4, which is the first with this size, and 13
    assert furthest(plain[:EVEN], tuned[:EVEN]) <= 1e-9
    assert apart(plain[EVEN], tuned[EVEN]) > 0.01
    assert set(model.sizes[-32:]) == {4}
    assert "those of steps 5 to 12 may have differed by as much" in " ".join(texts)


def test_memory_that_does_not_suffice_for_a_later_check_ends_no_training(tmp_path: Path) -> None:
    class Large(OfTokens):
        """Whose sentences that end early take more memory."""

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
            if len(batch["labels"]) > 4 and bool((batch["labels"] < 0).any()):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
            return super().training_step(batch, batch_idx)

    tuner = MicroBatchTuner(size=8)
    with our_warnings() as texts:
        tuned = fit(tmp_path, Large(), tuner, 4, 4)
    assert furthest(fit(tmp_path, OfTokens(), None, 4, 4), tuned) <= 1e-9
    part = part_of(tuner)
    assert part.chosen is None
    assert part.gradient_checks == 3 + 1 + 3
    assert "the gradients could not be compared (OutOfMemoryError: CUDA out of memory. Tried" in part.why
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("text", "said"), [("these are \x1b[2Jtoo many\nof them", "these are ?[2Jtoo many)"), ("x" * 500, "xxx...)")]
)
def test_what_a_later_check_raised_is_said(tmp_path: Path, text: str, said: str) -> None:
    class Picky(OfTokens):
        """Which takes sentences that end early only as they come."""

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
            if len(batch["labels"]) > 4 and bool((batch["labels"] < 0).any()):
                raise ValueError(text)
            return super().training_step(batch, batch_idx)

    tuner = MicroBatchTuner(size=8)
    with our_warnings() as texts:
        fit(tmp_path, Picky(), tuner, 4, 4)
    (warned,) = texts
    why = part_of(tuner).why
    assert why in warned
    assert "the gradients could not be compared (ValueError: " in why
    assert said in why
    assert why.isprintable()
    assert len(why) < 600


class Draws(Reader):
    """Drops out, counts its passes in a buffer, and keeps a list."""

    passes: torch.Tensor

    def __init__(self) -> None:
        super().__init__(0.1, nn.Dropout(0.5))
        self.register_buffer("passes", torch.zeros(()))
        self.kept: list[int] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.passes += 1
        self.kept.append(len(batch["labels"]))
        return super().training_step(batch, batch_idx)


class States(Callback):
    """Notes the state of the random numbers, and what the model has counted, at each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, float, int]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, Draws)
        self.seen.append((torch.get_rng_state(), float(pl_module.passes), len(pl_module.kept)))


def test_a_later_check_leaves_everything_as_it_was(tmp_path: Path) -> None:
    states, checks = [], []
    for even in (EVEN, STEPS):
        tuner = MicroBatchTuner(size=8)
        states.append(States())
        fit(tmp_path, Draws(), tuner, 4, 4, even=even, callbacks=[states[-1]])
        checks.append(part_of(tuner).gradient_checks)
    assert checks[0] > checks[1]
    for one, other in zip(*(each.seen for each in states), strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1:] == other[1:]


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(4, 1, 2), (2, 2, 4)])
def test_what_one_rank_finds_all_hear(tmp_path: Path, batch: int, accumulation: int, size: int) -> None:
    """Only the second rank has sentences that end early; until the other hears of it both have the right gradients."""

    def train(rank: int) -> None:
        torch.set_num_threads(1)
        share = batch * accumulation
        data = EvenAtFirst(2 * 90 * share, 2 * 20 * share, every=2)
        sampler: DistributedSampler[Any] = DistributedSampler(data, 2, rank, shuffle=False)
        kept: list[Gradients] = []
        model, tuner = OfTokens(), MicroBatchTuner(size=size)
        for tuners, each in (([], OfTokens()), ([tuner], model)):
            gradients = Gradients()
            trained(
                tmp_path, each, *tuners, gradients, rows=0, batch=batch, strategy="ddp", devices=2,
                use_distributed_sampler=False, wrap=lambda _: DataLoader(data, batch, sampler=sampler),
                precision="64-true", accumulate_grad_batches=accumulation,
            )  # fmt: skip
            kept.append(gradients)
        assert len(kept[1].gradients) == 90
        assert furthest(kept[0].gradients, kept[1].gradients) <= 1e-9
        part = part_of(tuner)
        assert (part.chosen, part.steps_in_doubt) == (None, ())
        assert "the gradients of optimizer step 21 would have differed by" in part.why
        late = model.sizes[-4 * accumulation :]
        assert set(late) == {batch}
        assert model.sizes.count(size) > (50 if rank == 0 else 16)

    assert in_ranks(2, train) == [0, 0]


class Resumable(DataLoader[Any]):
    """Begins where it was when a checkpoint was written."""

    begins = at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        begins, self.begins = self.begins, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= begins:
                self.at = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begins = state["at"]


class Saves(Callback):
    """Writes a checkpoint after some optimizer steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(12, 1, 4), (4, 4, 8)])
def test_a_fit_that_is_resumed_in_the_middle_of_an_epoch_has_the_gradients_of_one_that_was_not(
    tmp_path: Path, batch: int, accumulation: int, size: int
) -> None:
    how: dict[str, Any] = {"rows": 0, "batch": batch, "precision": "64-true", "accumulate_grad_batches": accumulation}
    data = EvenAtFirst(STEPS * batch * accumulation, 0)
    how["wrap"] = lambda _: Resumable(data, batch_size=batch)
    whole, rests = Gradients(), []
    trained(tmp_path, Reader(), whole, **how)
    for tuners in ([], [MicroBatchTuner(size=size)]):
        saved, model, rest = tmp_path / f"{len(tuners)}.ckpt", Reader(), Gradients()
        trained(tmp_path, Reader(), *tuners, Saves(saved, 7), **how)
        trainer = trained(tmp_path, model, *tuners, rest, resume=saved, **how)
        assert trainer.global_step == STEPS
        rests.append(rest.gradients)
        assert [part_of(tuner).chosen for tuner in tuners] == [size] * len(tuners)
        assert set(model.sizes[-4:]) == {size if tuners else batch}
    assert furthest(*rests) <= 1e-9
    assert furthest(whole.gradients[7:], rests[1]) <= 1e-6  # Lightning reads momenta before parameters are doubles


@pytest.mark.parametrize("limited", [False, True])
def test_a_search_ends_where_gradients_differ_and_a_limit_is_searched_for_all_the_same(
    tmp_path: Path, limited: bool
) -> None:
    class Works(OfTokens):
        """Whose passes cost something whatever their size."""

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
            simulation.gpus[0].launch(ops=1.2e13 * (4 + len(batch["labels"])), wait=True)
            return super().training_step(batch, batch_idx)

    with simulated_gpus(virtual=True, start_s=10) as simulation, our_warnings() as texts:
        tuner, model = MicroBatchTuner(search_share=0.5), Works()
        monitors = [EnergyMonitor(table=False, log=False, progress_bar=False)]
        limits = [PowerLimitTuner(search_share=0.5)] if limited else []
        fit(tmp_path, model, tuner, 4, 4, steps=120, even=40, callbacks=[*monitors, *limits])
    report = load(tmp_path)
    assert report.micro_batch is not None
    assert report.micro_batch.chosen is None
    assert "the gradients of optimizer step 41 would have differed" in report.micro_batch.why
    assert set(model.sizes[-40:]) == {4}
    assert len({*model.sizes[: 41 * 4]}) > 1
    assert len([text for text in texts if "the micro-batch is left alone" in text]) == 1
    if limited:
        assert report.power_limit is not None
        assert report.power_limit.tried
