"""A loop of one's own with another micro-batch is the same training, or hears why it must stay as it is."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate_training
import outcomes
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from outcomes import counts, load, our_warnings
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from energy_plugins.accelerate import attach, micro_batched
from energy_plugins.accelerate.accelerators import why_no_micro_batch
from energy_plugins.errors import ConfigError
from energy_plugins.testing import Simulation
from energy_plugins.testing.ranks import in_ranks

fresh_state = accelerate_training.fresh_state  # around every test here
one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 20
FEATURES = 6
Batch = tuple[torch.Tensor, torch.Tensor]


def model(dtype: torch.dtype = torch.float32, *layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 16), *layers, nn.Tanh(), nn.Linear(16, FEATURES)).to(dtype)


def rows(count: int, dtype: torch.dtype, even: int = 0) -> TensorDataset:
    """Return features with a label each, of which some are to be ignored: those of 0, from the ``even``-th on."""
    made = torch.Generator().manual_seed(1)
    labels = torch.randint(0, FEATURES, (count,), generator=made)
    labels[:even] = labels[:even].clamp(min=1)
    return TensorDataset(torch.randn(count, FEATURES, generator=made, dtype=dtype), labels)


class Loop:
    """A loop as people write it, whose gradients are kept before each optimizer step.

    Args:
        wrap: what the loss function is given to.
        reference: a training whose parameters each step is to begin with.
    """

    def __init__(
        self,
        wrap: Callable[[Any, Accelerator], Any] = lambda loss_of, _: loss_of,
        reference: Loop | None = None,
        *,
        batch: int = 8,
        accumulation: int = 1,
        dtype: torch.dtype = torch.float32,
        ignoring: bool = False,
        network: nn.Module | None = None,
        scale: float = 1.0,
        epochs: int = 2,
        samples: int = 80 - 3,
        even: int = 0,
        folder: Path | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        GradientState._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation, project_dir=folder)
        if scaler is not None:
            in_float16(self.accelerator, scaler)
        plain = network or model(dtype)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            plain,
            torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9),
            DataLoader(rows(samples, dtype, even), batch),
        )
        self.sizes: list[int] = []
        self.losses: list[float] = []
        self.parameters: list[dict[str, torch.Tensor]] = []
        self.gradients: list[torch.Tensor] = []
        self.reductions: list[None] = []
        if self.accelerator.num_processes > 1:
            self.model.register_comm_hook(self.reductions, _reduce)
        loss_of = wrap(self._ignoring if ignoring else self._mean, self.accelerator)
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    if reference is not None and len(self.parameters) == len(self.gradients):
                        self.model.load_state_dict(reference.parameters[len(self.parameters)])
                    if len(self.parameters) == len(self.gradients):
                        state = self.model.state_dict()
                        self.parameters.append({name: value.clone() for name, value in state.items()})
                    loss = loss_of(x, y)
                    self.losses.append(loss.item())
                    self.accelerator.backward(loss * scale)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                        self._keep()
                    self.optimizer.step()
                    self.optimizer.zero_grad()

    def _mean(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return functional.cross_entropy(self.model(x), y)

    def _ignoring(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return functional.cross_entropy(self.model(x), y.masked_fill(y == 0, -100))

    def _keep(self) -> None:
        self.gradients.append(torch.cat([one.grad.flatten().clone() for one in self.model.parameters()]))


def _reduce(state: list[None], bucket: Any) -> Any:
    state.append(None)
    return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type] # None is all ranks


_reduce.__annotations__ |= default_hooks.allreduce_hook.__annotations__  # torch looks at these


def apart(loop: Loop, reference: Loop) -> float:
    """Return how far the gradients of any step are apart, as a share of their norm."""
    pairs = zip(loop.gradients, reference.gradients, strict=True)
    return max(float((found - expected).norm() / expected.norm()) for found, expected in pairs)


def in_float16(accelerator: Accelerator, scaler: torch.amp.GradScaler) -> None:
    """Have what is prepared run in float16, with gradients scaled, as on a GPU: accelerate scales none on a CPU."""
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = scaler


def fixed(size: int, **settings: Any) -> Callable[[Any, Accelerator], Any]:
    return lambda loss_of, accelerator: micro_batched(loss_of, accelerator, size=size, **settings)


WAYS = [(8, 1, 2), (2, 4, 8), (2, 4, 4), (4, 2, 1)]
"""Batch, accumulation and micro-batch: cut, all together, two together, one by one."""


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
class TestGradients:
    def test_of_each_step(self, batch: int, accumulation: int, size: int) -> None:
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation}
        reference = Loop(**how)
        tuned = Loop(fixed(size), reference, **how)
        assert len(tuned.gradients) == STEPS
        assert tuned.sizes.count(size) >= STEPS // 2 * 8 // size
        assert 0 < apart(tuned, reference) <= 1e-6

    def test_of_a_whole_training(self, batch: int, accumulation: int, size: int) -> None:
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "dtype": torch.float64}
        reference, tuned = Loop(**how), Loop(fixed(size), **how)
        assert 0 < apart(tuned, reference) <= 1e-9
        assert len(tuned.losses) == len(reference.losses)
        assert sum(tuned.losses) == pytest.approx(sum(reference.losses), rel=1e-9)


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
def test_losses_in_float16_are_scaled_as_they_were(batch: int, accumulation: int, size: int) -> None:
    loops, scales, parts = list[Loop](), list[float](), list[str]()
    for wrap in (lambda loss_of, _: loss_of, fixed(size)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "scaler": scaler, "samples": 3 * 80}
        with our_warnings() as texts:
            loops.append(Loop(wrap, *loops, **how))
        scales.append(scaler.get_scale())
        parts += texts
    reference, tuned = loops
    assert not parts
    assert tuned.sizes.count(size) >= STEPS * 8 // size
    assert scales[0] < 2**20  # the first steps overflowed, and were none
    # At the edge a pass of more samples overflows a little earlier, and one of fewer a little later.
    assert 0.25 <= scales[1] / scales[0] <= 4
    pairs = zip(tuned.gradients, reference.gradients, strict=True)
    finite = [(one, other) for one, other in pairs if bool((one + other).isfinite().all())]
    assert len(finite) >= STEPS
    assert all(float((one - other).norm() / other.norm()) <= 1e-2 for one, other in finite)


def test_two_ranks_reduce_as_often_as_ever() -> None:
    def work(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this was forked from
        torch.set_num_threads(1)
        for batch, accumulation, size in WAYS:
            how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "dtype": torch.float64}
            how |= {"samples": 2 * 80 - 6}
            reference, tuned = Loop(**how), Loop(fixed(size), **how)
            assert 0 < apart(tuned, reference) <= 1e-9
            assert len(tuned.reductions) == len(reference.reductions) > 0
            heard = tuned.accelerator.gather(tuned.gradients[-1][None])
            assert torch.equal(heard[0], heard[1])

    assert in_ranks(2, work) == [0, 0]


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
def test_a_loop_that_is_resumed_goes_on_as_it_would_have(
    batch: int, accumulation: int, size: int, tmp_path: Path
) -> None:
    """In the middle of an epoch, whose first batches it skips."""

    def run(steps: range, *, tuned: bool) -> list[torch.Tensor]:
        GradientState._reset_state()
        accelerator, plain = Accelerator(cpu=True, gradient_accumulation_steps=accumulation), model(torch.float64)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
        network, optimizer, loader = accelerator.prepare(
            plain, optimizer, DataLoader(rows(STEPS * 8, torch.float64), batch)
        )
        gradients, sizes, folder = list[torch.Tensor](), list[int](), str(tmp_path / f"{tuned}")
        if steps.start:
            accelerator.load_state(folder)
            loader = accelerator.skip_first_batches(loader, steps.start * accumulation)

        def mean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return functional.cross_entropy(network(x), y)

        loss_of = micro_batched(mean, accelerator, size=size) if tuned else mean
        for x, y in loader:
            with accelerator.accumulate(network):
                accelerator.backward(loss_of(x, y))
                if accelerator.sync_gradients:
                    gradients.append(torch.cat([one.grad.flatten().clone() for one in network.parameters()]))
                optimizer.step()
                optimizer.zero_grad()
            if len(gradients) == len(steps):
                break
        if not steps.start:
            accelerator.save_state(folder)
        assert sizes[-1] == (size if tuned else batch)
        return gradients

    whole = run(range(STEPS), tuned=False)
    run(range(7), tuned=True)
    rest = run(range(7, STEPS), tuned=True)
    assert len(rest) == STEPS - 7
    for found, expected in zip(rest, whole[7:], strict=True):
        assert float((found - expected).norm() / expected.norm()) <= 1e-9


def test_losses_that_are_sums() -> None:
    """Such as those of a loop that divides by the tokens of a whole optimizer step itself."""

    class Sums(Loop):
        def _ignoring(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(x))
            return functional.cross_entropy(self.model(x), y, ignore_index=0, reduction="sum") / 8

    for batch, accumulation, size in WAYS:
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "dtype": torch.float64, "ignoring": True}
        reference, tuned = Sums(**how), Sums(fixed(size, reduction="sum"), **how)
        assert tuned.sizes.count(size) >= STEPS // 2 * 8 // size
        assert 0 < apart(tuned, reference) <= 1e-9


@pytest.mark.parametrize("by_mode", [False, True])
def test_gradients_are_not_asked_for_in_an_evaluation(by_mode: bool) -> None:
    def wrap(loss_of: Any, accelerator: Accelerator) -> Any:
        tuned, (network,) = micro_batched(loss_of, accelerator, size=2), accelerator._models

        def evaluating(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.set_grad_enabled(by_mode):
                network.train(not by_mode)
                assert not by_mode or tuned(x, y).requires_grad
                assert tuned(x, y) == loss_of(x, y)
                network.train()
            return tuned(x, y)

        return evaluating

    assert 0 < apart(Loop(wrap), Loop()) <= 1e-5


@pytest.mark.parametrize(("size", "when"), [(4, 40), (4, 41), (8, 40)])
def test_a_window_that_runs_out_of_memory_is_begun_anew(size: int, when: int) -> None:
    class Filling(Loop):
        def _mean(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = super()._mean(x, y)
            if len(x) == size and len(self.sizes) > when:
                self.accelerator.backward(loss)  # what a pass leaves that fails half-way
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss

    how: dict[str, Any] = {"batch": 2, "accumulation": 4, "dtype": torch.float64}
    tuned = Filling(fixed(size), **how)
    assert 0 < apart(tuned, Loop(**how)) <= 1e-9
    assert max(tuned.sizes[when + 6 :]) == 2


def declined(wrap: Callable[[Any, Accelerator], Any], **how: Any) -> str:
    """Train with a tuner that has to leave everything as it is, and return what it says."""
    with our_warnings() as texts:
        assert apart(Loop(wrap, **how), Loop(**how)) == 0
    (text,) = [text for text in texts if "the micro-batch is left alone" in text]
    return text


def said_of(network: nn.Module) -> str:
    """Train two steps with a model that was not prepared, and return what is said of its micro-batch."""
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(network.parameters(), lr=0.1))
    loss_of = micro_batched(lambda x: network(x).square().mean(), accelerator, size=2)
    with our_warnings() as texts:
        for _ in range(3):
            accelerator.backward(loss_of(torch.ones(4, FEATURES)))
            optimizer.step()
            optimizer.zero_grad()
    return " ".join(texts)


class TestDeclined:
    def test_a_model_that_was_not_prepared(self) -> None:
        assert "a model was not given to accelerator.prepare" in said_of(model())

    def test_a_sharded_model(self) -> None:
        def work(rank: int) -> None:
            AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this was forked from
            Accelerator(cpu=True)  # which begins the process group
            sharded: Any = fully_shard(model(), mesh=init_device_mesh("cpu", (2,)))
            assert ("the model is sharded" in said_of(sharded)) == (rank == 0)  # who speaks for all

        assert in_ranks(2, work) == [0, 0]

    @pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.FSDP])
    def test_whoever_accumulates_or_shards_by_himself(self, kind: DistributedType) -> None:
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(model())
        assert not why_no_micro_batch(accelerator)
        accelerator.state.distributed_type = kind
        why = why_no_micro_batch(accelerator)
        assert "the model is sharded" in why if kind is DistributedType.FSDP else kind.value in why

    @pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
    def test_means_over_unequal_numbers_of_labels(self, batch: int, accumulation: int, size: int) -> None:
        text = declined(fixed(size), batch=batch, accumulation=accumulation, ignoring=True)
        assert "the gradients would not be the same: they differ by 0." in text

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_losses_that_the_loop_multiplies(self, accumulation: int) -> None:
        text = declined(fixed(4), accumulation=accumulation, batch=8, scale=0.25)
        assert "the loop multiplies its losses by 0.25" in text

    def test_batch_statistics(self) -> None:
        with our_warnings() as texts:
            Loop(fixed(4), network=model(torch.float32, nn.BatchNorm1d(16)))
            allowed = Loop(fixed(4, allow_batch_statistics=True), network=model(torch.float32, nn.BatchNorm1d(16)))
        assert [text for text in texts if "BatchNorm" in text]
        assert allowed.sizes.count(4) >= STEPS

    def test_a_size_that_is_no_part_of_a_batch(self) -> None:
        assert "must be one of 1, 2, 4, 8" in declined(fixed(3))

    def test_a_function_that_returns_more_than_a_loss(self) -> None:
        class More(Loop):
            def _mean(self, x: torch.Tensor, y: torch.Tensor) -> Any:
                return super()._mean(x, y), len(x)

        def wrap(loss_of: Any, accelerator: Accelerator) -> Any:
            tuned = micro_batched(loss_of, accelerator, size=4)
            return lambda x, y: tuned(x, y)[0]

        with our_warnings() as texts:
            More(wrap, epochs=1)
        assert [text for text in texts if "the function returns a tuple where one number is needed" in text]

    def test_a_function_without_an_accelerator(self) -> None:
        assert "attach was never called" in declined(lambda loss_of, _: micro_batched(loss_of, size=4))

    def test_a_loop_without_the_line(self, simulation: Simulation, tmp_path: Path) -> None:
        def wrap(loss_of: Any, accelerator: Accelerator) -> Any:
            attach(accelerator, table=False)
            return loss_of

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ENERGY_MICRO_BATCH_SIZE", "4")
            with our_warnings() as texts:
                Loop(wrap, folder=tmp_path).accelerator.end_training()
        said = "a loop of one's own cannot be rewritten from outside: put its loss function into"
        assert len([text for text in texts if said in text]) == 1
        part = load(tmp_path).micro_batch
        assert part is not None
        assert said in part.why

    def test_a_larger_effective_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENERGY_MICRO_BATCH_EFFECTIVE_BATCH", "grow")
        monkeypatch.setenv("ENERGY_MICRO_BATCH_MAX_EFFECTIVE_BATCH", "64")
        with our_warnings() as texts:
            tuned = Loop(fixed(2), epochs=1)
        assert len(tuned.gradients) == STEPS // 2
        assert any(
            "does not grow: that of a loop of one's own is set where the loop is written" in text for text in texts
        )

    def test_wrong_settings(self) -> None:
        with pytest.raises(ConfigError, match="size is 0"):
            micro_batched(torch.sum, size=0)
        with pytest.raises(ConfigError, match="reduction is 'max'; expected one of mean, sum"):
            micro_batched(torch.sum, reduction="max")


def test_what_a_report_says(simulation: Simulation, tmp_path: Path) -> None:
    def wrap(loss_of: Any, accelerator: Accelerator) -> Any:
        attach(accelerator, table=False, phases_every_n_steps=1)
        return micro_batched(loss_of, size=8)

    Loop(wrap, batch=2, accumulation=4, folder=tmp_path).accelerator.end_training()
    report = load(tmp_path)
    part = report.micro_batch
    assert part is not None
    assert (part.batch, part.accumulation, part.chosen, part.source) == (2, 4, 8, "fixed")
    assert report.steps["samples"].tolist() == [*[8] * 9, 5] * 2
    assert counts(report)["optimizer"] == STEPS


@pytest.mark.parametrize("size", [2, 8])
def test_batches_are_not_kept_once_they_stay_as_they_are(size: int) -> None:
    """Those of a window would otherwise fill the memory that the loop alone does not need."""
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    network, loader = accelerator.prepare(model(), DataLoader(rows(64, torch.float32), 2))

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(network(x), y.masked_fill(y == 0, -100))

    tuned = micro_batched(loss_of, accelerator, size=size)
    alive: list[int] = []
    batches: list[weakref.ref[torch.Tensor]] = []
    with our_warnings():
        for x, y in loader:
            batches.append(weakref.ref(x))
            with accelerator.accumulate(network):
                accelerator.backward(tuned(x, y))
                network.zero_grad()
            del x, y
            alive.append(sum(batch() is not None for batch in batches))
    assert max(alive[12:]) <= 1


@pytest.mark.parametrize(("batch", "accumulation", "size"), WAYS)
def test_a_loss_that_differs_only_later_is_found_before_it_counts(batch: int, accumulation: int, size: int) -> None:
    """Labels that are to be ignored come after six optimizer steps."""
    how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "dtype": torch.float64, "ignoring": True}
    with our_warnings() as texts:
        tuned = Loop(fixed(size), even=48, **how)
    assert size in tuned.sizes
    assert set(tuned.sizes[-8:]) <= {batch, 5, 1}  # those of the user, at an epoch's end, too
    assert apart(tuned, Loop(even=48, **how)) <= 1e-9
    (text,) = texts
    assert "the micro-batch is left alone from now on: the gradients of optimizer step" in text
    assert "no step is known to have been made with such gradients" in text
