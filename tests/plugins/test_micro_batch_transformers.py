"""A Trainer with another micro-batch is the same training: gradients, losses, steps, logs and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from outcomes import counts, load, our_warnings
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback
from transformers_training import Logs, make_trainer

from energy_plugins.errors import ConfigError
from energy_plugins.testing import Simulation
from energy_plugins.testing.ranks import in_ranks
from energy_plugins.transformers import EnergyCallback, MicroBatchCallback
from energy_plugins.transformers.trainers import trainer_above, why_no_micro_batch

one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")

WORDS, LENGTH = 32, 12
STEPS = 20


class Texts(Dataset[dict[str, torch.Tensor]]):
    """Sentences of one length, of which few to all words are to be learnt; of the first ``even`` all of them."""

    def __init__(self, count: int, even: int = 0) -> None:
        made = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, WORDS, (count, LENGTH), generator=made)
        known = torch.randint(1, LENGTH, (count, 1), generator=made)
        known[:even] = LENGTH
        self.labels = self.ids.masked_fill(torch.arange(LENGTH) >= known, -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def language_model() -> nn.Module:
    """Its losses are sums over tokens, divided by those of the whole optimizer step."""
    shape: dict[str, Any] = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
    plain: dict[str, Any] = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, **plain))


class Words(nn.Module):
    """Knows nothing of the trainer's number of tokens."""

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.layers = nn.Sequential(nn.Embedding(WORDS, 16), nn.Flatten(), *layers, nn.Linear(16 * LENGTH, WORDS))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(self.layers(input_ids), labels)}


def each_sample(found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(found, labels[:, 0])


def each_token(found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(found, labels[:, LENGTH // 2], ignore_index=-100)


def sample_model() -> nn.Module:
    """Its losses are means over samples."""
    return Words(each_sample)


class Steps(TrainerCallback):
    """Keeps the parameters and gradients of every step, or has each begin with those of another training."""

    def __init__(self, reference: Steps | None = None) -> None:
        self.reference = reference
        self.parameters: list[dict[str, torch.Tensor]] = []
        self.gradients: list[torch.Tensor] = []

    def on_step_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        if self.reference is not None:
            model.load_state_dict(self.reference.parameters[len(self.parameters)])
        self.parameters.append({name: value.clone() for name, value in model.state_dict().items()})

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients.append(torch.cat([one.grad.detach().flatten() for one in model.parameters()]))


def apart(steps: Steps, reference: Steps) -> float:
    """Return how far the gradients of any step are apart, as a share of their norm."""
    assert len(steps.gradients) == len(reference.gradients)
    pairs = zip(steps.gradients, reference.gradients, strict=True)
    return max(float((found - expected).norm() / expected.norm()) for found, expected in pairs)


def train(
    folder: Path,
    *callbacks: TrainerCallback,
    made: Callable[[], nn.Module] = language_model,
    dtype: torch.dtype = torch.float32,
    batch: int = 8,
    accumulation: int = 1,
    rows: int = 80 - 3,
    even: int = 0,
    **settings: Any,
) -> Trainer:
    """Train for two epochs, each with a last batch and a last window that are cut short."""
    torch.manual_seed(0)
    trainer = make_trainer(
        folder, *callbacks, model=made().to(dtype), data=Texts(rows, even),
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        **{"num_train_epochs": 2, "learning_rate": 1e-2, "max_grad_norm": 0.0, "logging_steps": 1, **settings},
    )  # fmt: skip
    trainer.train(settings.get("resume_from_checkpoint"))
    return trainer


WAYS = [(8, 1, 2), (2, 4, 8), (2, 4, 4), (4, 2, 1)]
"""Batch, accumulation and micro-batch: cut, all together, two together, one by one."""


@pytest.fixture(autouse=True)
def unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch that is given needs nothing to be measured."""
    if "simulation" not in request.fixturenames:
        monkeypatch.setenv("ENERGY_MEASURE_ENABLED", "false")


LONGER = {"rows": 96 - 3}
"""Of 24 optimizer steps: three are looked at before anything changes, 20 and one are made otherwise."""


class TestGradients:
    @pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
    @pytest.mark.parametrize("made", [language_model, sample_model])
    def test_of_each_step(
        self, batch: int, accumulation: int, size: int, made: Callable[[], nn.Module], tmp_path: Path
    ) -> None:
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "made": made, **LONGER}
        reference = Steps()
        train(tmp_path, reference, **how)
        tuned = Steps(reference)
        train(tmp_path, tuned, MicroBatchCallback(size), **how)
        assert len(tuned.gradients) == STEPS + 4
        assert 0 < apart(tuned, reference) <= 1e-6

    @pytest.mark.parametrize(
        ("batch", "accumulation", "size", "made"),
        [(*way, made) for way, made in zip(WAYS, [language_model, sample_model] * 2, strict=True)],
    )
    def test_of_a_whole_training(
        self, batch: int, accumulation: int, size: int, made: Callable[[], nn.Module], tmp_path: Path
    ) -> None:
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "made": made, "dtype": torch.float64}
        how |= {"max_grad_norm": 0.5, "weight_decay": 0.1, "warmup_steps": 3, **LONGER}
        found = []
        for callbacks in ([], [MicroBatchCallback(size)]):
            steps, logs = Steps(), Logs()
            trainer = train(tmp_path, steps, logs, *callbacks, **how)
            found.append((steps, logs.seen, trainer))
        (reference, usual, before), (tuned, logged, after) = found
        assert 0 < apart(tuned, reference) <= 1e-9
        assert after.state.global_step == before.state.global_step == STEPS + 4
        assert any(row.get("grad_norm", 0.0) > 0.5 for row in usual)  # it is clipped
        assert [row.keys() for row in logged] == [row.keys() for row in usual]
        for row, expected in zip(logged, usual, strict=True):
            for key in {"loss", "grad_norm", "learning_rate", "epoch", "step", "train_loss"} & row.keys():
                assert row[key] == pytest.approx(expected[key], rel=1e-6)

    @pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
    def test_in_float16_with_losses_scaled_as_they_were(
        self, batch: int, accumulation: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # as `accelerate launch --mixed_precision` does
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "max_grad_norm": 0.5, **LONGER}
        steps, scales = list[Steps](), list[float]()
        for callbacks in ([], [MicroBatchCallback(size)]):
            in_float16, kept = InFloat16(), Steps(*steps)
            with our_warnings() as texts:
                train(tmp_path, in_float16, kept, *callbacks, **how)
            assert not texts
            steps.append(kept)
            scales.append(in_float16.scaler.get_scale())
        reference, tuned = steps
        assert scales[0] < 2**24  # the first steps overflowed, and were none
        # At the edge a pass of more samples overflows a little earlier, and one of fewer a little later.
        assert 0.25 <= scales[1] / scales[0] <= 4
        pairs = zip(tuned.gradients, reference.gradients, strict=True)
        finite = [(one, other) for one, other in pairs if bool((one + other).isfinite().all())]
        assert len(finite) >= STEPS // 2
        assert all(0 < float((one - other).norm() / other.norm()) <= 1e-2 for one, other in finite[3:])

    def test_of_two_ranks(self, tmp_path: Path) -> None:
        """Each reduces its gradients once for each optimizer step, as ever."""

        def work(rank: int) -> None:
            torch.set_num_threads(1)
            for batch, accumulation, size in ((8, 1, 2), (2, 4, 8)):
                for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-9)):
                    how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "rows": 2 * (96 - 3)}
                    how |= {"ddp_find_unused_parameters": False, "ddp_backend": "gloo", "dtype": dtype}
                    kept: list[tuple[Steps, int]] = []
                    for callbacks in ([], [MicroBatchCallback(size)]):
                        is_free = not kept or dtype is torch.float64
                        steps = Steps(None if is_free else kept[0][0])
                        reductions.clear()
                        train(tmp_path, steps, CountsReductions(), *callbacks, **how)
                        kept.append((steps, len(reductions)))
                    (reference, usual), (tuned, now) = kept
                    assert 0 < apart(tuned, reference) <= limit
                    assert len(tuned.gradients) == STEPS + 4
                    assert usual == now

        assert in_ranks(2, work) == [0, 0]


class InFloat16(TrainerCallback):
    """Has a trainer run in float16, with gradients scaled, as on a GPU: accelerate scales none on a CPU."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)

    def on_init_end(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = trainer_above()
        trainer.accelerator.native_amp = True
        trainer.accelerator.scaler = self.scaler


reductions: list[None] = []


class CountsReductions(TrainerCallback):
    """Notes each bucket of gradients that is reduced over ranks."""

    def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        trainer: Any = trainer_above()
        trainer.model_wrapped.register_comm_hook(None, _reduce)


def _reduce(state: object, bucket: Any) -> Any:
    reductions.append(None)
    return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type] # None is all ranks


# Torch looks at these.
_reduce.__annotations__ |= {
    "bucket": torch._C._distributed_c10d.GradBucket,
    "return": torch.futures.Future[torch.Tensor],
}


class Seen(Words):
    """Notes which samples it is given at once."""

    def __init__(self) -> None:
        super().__init__(each_sample)
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen.append((input_ids * torch.arange(1, LENGTH + 1)).sum(1).tolist())
        return super().forward(input_ids, labels)


class TestWhatStays:
    @pytest.mark.parametrize(("batch", "accumulation", "size"), [(8, 1, 2), (2, 4, 8)])
    def test_samples_and_their_order(self, batch: int, accumulation: int, size: int, tmp_path: Path) -> None:
        orders = []
        for callbacks in ([], [MicroBatchCallback(size)]):
            model = Seen()
            train(tmp_path, *callbacks, made=lambda model=model: model, batch=batch, accumulation=accumulation)  # type: ignore[misc]
            if callbacks:
                assert {len(samples) for samples in model.seen[8:14]} == {size}
            orders.append([one for samples in model.seen for one in samples])
        assert orders[0] == orders[1]

    def test_checkpoints_and_resuming(self, tmp_path: Path) -> None:
        how: dict[str, Any] = {"save_strategy": "steps", "save_steps": 7, "dtype": torch.float64, "batch": 2}
        how |= {"accumulation": 4, "lr_scheduler_type": "constant"}
        whole = Steps()
        before = train(tmp_path / "before", whole, **how)
        train(tmp_path / "after", MicroBatchCallback(8), max_steps=14, **how)
        resumed = Steps()
        checkpoint = str(tmp_path / "after" / "checkpoint-14")
        after = train(tmp_path / "after", resumed, MicroBatchCallback(4), resume_from_checkpoint=checkpoint, **how)
        assert after.state.global_step == before.state.global_step
        rest = Steps()
        rest.gradients = whole.gradients[14:]
        assert 0 < apart(resumed, rest) <= 1e-9
        assert [row["step"] for row in after.state.log_history] == [row["step"] for row in before.state.log_history]

    def test_a_compiled_model(self, tmp_path: Path) -> None:
        """What is compiled computes the same, of batches and of parts."""
        how: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "aot_eager", "dtype": torch.float64}
        reference, tuned = Steps(), Steps()
        train(tmp_path, reference, made=sample_model, **how)
        torch._dynamo.reset()
        train(tmp_path, tuned, MicroBatchCallback(2), made=sample_model, **how)
        assert 0 < apart(tuned, reference) <= 1e-9

    def test_the_trainer_is_as_it_was(self, tmp_path: Path) -> None:
        class Fails(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                raise KeyError

        for callbacks in ([], [Fails()]):
            trainer = make_trainer(tmp_path, MicroBatchCallback(2), *callbacks, data=Texts(24), model=sample_model())
            with pytest.raises(KeyError) if callbacks else nullcontext():
                trainer.train()
            covered = {"training_step", "get_batch_samples", "compute_loss", "_run_epoch", "_evaluate"}
            assert not covered & vars(trainer).keys()

    def test_what_a_report_says(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = train(
            tmp_path, EnergyCallback(phases_every_n_steps=1, table=False), MicroBatchCallback(4), num_train_epochs=1
        )
        report = load(tmp_path)
        part = report.micro_batch
        assert part is not None
        assert (part.batch, part.accumulation, part.chosen, part.source) == (8, 1, 4, "fixed")
        assert part.gradient_difference is not None
        assert part.gradient_difference < 1e-6
        assert report.steps["samples"].tolist() == [8] * 9 + [5]
        found = counts(report)
        assert found["optimizer"] == report.steps.rows == STEPS // 2
        assert found["backward"] >= STEPS
        assert {row["energy/micro_batch"] for row in trainer.state.log_history if "loss" in row} <= {4, 8}

    def test_many_attempts_are_not_needed_where_parts_of_a_batch_fit(self, tmp_path: Path) -> None:
        reference, tuned, sizes = Steps(), Steps(), []
        train(tmp_path, reference, made=sample_model)

        class Small(Words):
            def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
                if len(input_ids) > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                sizes.append(len(input_ids))
                return super().forward(input_ids, labels)

        trainer = train(
            tmp_path, tuned, MicroBatchCallback(2), made=lambda: Small(each_sample), auto_find_batch_size=True
        )
        assert trainer._train_batch_size == 8
        assert 0 < apart(tuned, reference) <= 1e-5
        assert sizes[:3] == [4, 2, 2]  # both ways, of as many as fit

    @pytest.mark.parametrize(("size", "when"), [(4, 20), (4, 21), (8, 20)])
    def test_a_window_that_runs_out_of_memory_is_begun_anew(self, size: int, when: int, tmp_path: Path) -> None:
        class Filling(Seen):
            def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
                found = super().forward(input_ids, labels)
                if len(input_ids) == size and len(self.seen) > when:
                    found["loss"].sum().backward(retain_graph=True)  # what a pass leaves that fails half-way
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return found

        reference, tuned = Steps(), Steps()
        how: dict[str, Any] = {"batch": 2, "accumulation": 4, "dtype": torch.float64}
        train(tmp_path, reference, made=sample_model, **how)
        trainer = train(tmp_path, tuned, MicroBatchCallback(size), made=Filling, **how)
        assert 0 < apart(tuned, reference) <= 1e-9
        assert isinstance(trainer.model, Filling)
        assert max(map(len, trainer.model.seen[when + 6 :])) == 2


def declined(folder: Path, *callbacks: TrainerCallback, **how: Any) -> str:
    """Train with a tuner that has to leave everything as it is, and return what it says."""
    reference, tuned = Steps(), Steps()
    train(folder, reference, **how)
    with our_warnings() as texts:
        train(folder, tuned, *callbacks, **how)
    assert apart(tuned, reference) == 0
    (text,) = [text for text in texts if "the micro-batch is left alone" in text]
    return text


class TestDeclined:
    def test_means_over_unequal_numbers_of_tokens(self, tmp_path: Path) -> None:
        text = declined(tmp_path, MicroBatchCallback(2), made=lambda: Words(each_token), num_train_epochs=1)
        assert "the gradients would not be the same: they differ by 0." in text

    def test_batch_statistics(self, tmp_path: Path) -> None:
        def made() -> nn.Module:
            return Words(each_sample, nn.BatchNorm1d(16 * LENGTH))

        text = declined(tmp_path, MicroBatchCallback(2), made=made, rows=16, num_train_epochs=1)
        assert "BatchNorm" in text
        reference, tuned = Steps(), Steps()
        train(tmp_path, reference, made=made, rows=16)
        train(tmp_path, tuned, MicroBatchCallback(2, allow_batch_statistics=True), made=made, rows=16)
        assert apart(tuned, reference) > 1e-3

    @pytest.mark.parametrize("size", [3, 16])
    def test_what_is_no_part_of_a_batch(self, size: int, tmp_path: Path) -> None:
        text = declined(tmp_path, MicroBatchCallback(size), made=sample_model, rows=16)
        assert "must be one of 1, 2, 4, 8" in text

    def test_what_shards_or_accumulates_by_itself(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, data=Texts(8), model=sample_model())
        assert why_no_micro_batch(trainer) == ""
        trainer.args.optim = "galore_adamw_layerwise"
        assert "steps inside of backward" in why_no_micro_batch(trainer)
        trainer.is_fsdp_enabled = True
        assert "FSDP" in why_no_micro_batch(trainer)
        trainer.is_deepspeed_enabled = True
        assert "DeepSpeed" in why_no_micro_batch(trainer)

    def test_a_search_where_nothing_is_measured(self, tmp_path: Path) -> None:
        assert "nothing is measured" in declined(tmp_path, MicroBatchCallback(), made=sample_model)


class TestGrowing:
    """A larger effective batch is another training: the one that the same numbers in the arguments make."""

    @pytest.mark.parametrize(("rule", "factor"), [("linear", 4), ("sqrt", 2), ("none", 1)])
    def test_it_is_the_training_with_more_accumulation(self, rule: str, factor: int, tmp_path: Path) -> None:
        how: dict[str, Any] = {"made": sample_model, "batch": 4, "rows": 80, "warmup_steps": 8}
        by_hand, grown_ = Steps(), Steps()
        train(tmp_path, by_hand, accumulation=4, **{**how, "learning_rate": factor * 1e-2, "warmup_steps": 2})
        tuner = MicroBatchCallback(4, effective_batch="grow", max_effective_batch=31, learning_rate_rule=rule)
        trainer = train(tmp_path, grown_, tuner, accumulation=1, **how)
        assert trainer.args.gradient_accumulation_steps == 4
        assert apart(grown_, by_hand) == 0

    def test_no_step_has_more_samples_than_an_epoch(self, tmp_path: Path) -> None:
        tuner = MicroBatchCallback(4, effective_batch="grow", max_effective_batch=10_000, learning_rate_rule="linear")
        trainer = train(tmp_path, Steps(), tuner, made=sample_model, batch=4, accumulation=1, rows=78)
        assert trainer.args.gradient_accumulation_steps == 16

    def test_the_report_says_so_first(self, simulation: Simulation, tmp_path: Path) -> None:
        tuner = MicroBatchCallback(8, effective_batch="grow", max_effective_batch=8)
        trainer = train(tmp_path, EnergyCallback(table=False), tuner, made=sample_model, batch=2, rows=80, max_steps=20)
        assert trainer.state.global_step == 5
        report = load(tmp_path)
        part = report.micro_batch
        assert part is not None
        assert part.grown.startswith("TRAINING ITSELF WAS CHANGED: the effective batch is 8 instead of 2")
        assert any("TRAINING ITSELF WAS CHANGED" in line for line in str(report).splitlines()[:6])
        assert (part.batch, part.accumulation, part.chosen) == (2, 4, 8)

    @pytest.mark.parametrize(("first", "most"), [(None, 8), (4, 8), (8, 4), (8, 8)])
    def test_a_resumed_training_goes_on_with_the_effective_batch_of_its_checkpoint(
        self, first: int | None, most: int, tmp_path: Path
    ) -> None:
        """So it is the same training as one that was never interrupted: it sees the same samples at the same rates."""

        def growing(most: int | None) -> list[TrainerCallback]:
            return [MicroBatchCallback(2, effective_batch="grow", max_effective_batch=most)] if most else []

        how: dict[str, Any] = {"made": sample_model, "batch": 2, "rows": 80, "max_steps": 60, "warmup_steps": 8}
        how |= {"save_strategy": "steps", "save_steps": 2, "dtype": torch.float64}
        whole, rest = Steps(), Steps()
        trainer = train(tmp_path, whole, *growing(first), EnergyCallback(), **how)
        made = trainer.state.max_steps // 2
        made -= made % 2
        with our_warnings() as texts:
            again = train(
                tmp_path / "again", rest, *growing(most), EnergyCallback(),
                resume_from_checkpoint=str(tmp_path / f"checkpoint-{made}"), **how,
            )  # fmt: skip
        assert again.state.global_step == again.state.max_steps == trainer.state.max_steps
        whole.gradients = whole.gradients[made:]
        assert apart(rest, whole) <= 1e-9
        assert again.args.gradient_accumulation_steps == trainer.args.gradient_accumulation_steps
        rates = [[log["learning_rate"] for log in one.state.log_history if "loss" in log] for one in (trainer, again)]
        assert rates[0] == pytest.approx(rates[1])
        said = [text for text in texts if f"the effective batch does not grow to {most}: it" in text]
        assert len(said) == (first != most)
        assert len(texts) == len(said)

    def test_who_resumes_a_grown_training_without_growing_is_told(self, tmp_path: Path) -> None:
        tuner = MicroBatchCallback(2, effective_batch="grow", max_effective_batch=8)
        how: dict[str, Any] = {"made": sample_model, "batch": 2, "rows": 80, "save_strategy": "steps", "save_steps": 2}
        train(tmp_path, tuner, max_steps=16, **how)
        with our_warnings() as texts:
            train(tmp_path, EnergyCallback(), max_steps=8, resume_from_checkpoint=str(tmp_path / "checkpoint-2"), **how)
        assert any("whose effective batch was 4 times as large" in text for text in texts)

    def test_it_needs_an_end(self) -> None:
        with pytest.raises(ConfigError, match="max_effective_batch is not given"):
            MicroBatchCallback(effective_batch="grow")

    def test_it_must_be_asked_for_in_time(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, data=Texts(16), model=sample_model())

        class Late(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                trainer.add_callback(MicroBatchCallback(2, effective_batch="grow", max_effective_batch=64))

        trainer.add_callback(Late())
        with our_warnings() as texts:
            trainer.train()
        assert any("does not grow: the training has begun already" in text for text in texts)
        assert trainer.args.gradient_accumulation_steps == 1


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
def test_a_loss_that_differs_only_later_is_found_before_it_counts(
    batch: int, accumulation: int, size: int, tmp_path: Path
) -> None:
    """One that the trainer's number of tokens does not reach; labels that are to be ignored come after six steps."""
    how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "dtype": torch.float64, "even": 48}
    how["made"] = lambda: Words(each_token)
    reference, tuned, tuner = Steps(), Steps(), MicroBatchCallback(size)
    train(tmp_path, reference, **how)
    with our_warnings() as texts:
        train(tmp_path, tuned, tuner, **how)
    assert 0 < apart(tuned, reference) <= 1e-9
    (text,) = texts
    assert "the micro-batch is left alone from now on: the gradients of optimizer step" in text
    assert "no step is known to have been made with such gradients" in text
