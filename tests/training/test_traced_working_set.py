"""What a trace says of a step's memory, against formulas, against torch's own account of real steps, and on trial."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import perceptron, resnet
from allocator import peak_bytes_of_a_step
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from energy_plugins.errors import ConfigError
from energy_plugins.tune.working_set import Part, WorkingSet

WIDTHS = st.lists(st.integers(1, 64), min_size=2, max_size=5)
Optimizer = Callable[[Any], torch.optim.Optimizer]


@given(WIDTHS, st.integers(1, 32), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_a_perceptrons_sets_are_butter_es(widths: list[int], samples: int, dtype: torch.dtype) -> None:
    model = perceptron(*widths, inplace=True).to(dtype)
    found = WorkingSet.of(model, torch.empty(samples, widths[0], dtype=dtype))
    each = dtype.itemsize
    parameters = each * sum(a * b + b for a, b in pairwise(widths))
    layer = each * max(a + b for a, b in pairwise(widths))
    for size in (samples, 3, 1000):
        sets = found.bytes_at(size)
        assert sets[Part.LAYER] == layer * size
        assert sets[Part.FORWARD] == layer * size + parameters
        loss = each  # one number
        assert sets[Part.BACKWARD] == 2 * parameters + each * size * sum(widths) + loss
        assert sets[Part.GRADIENTS] == parameters
        assert sets[Part.OPTIMIZER] == 2 * parameters
    assert found.notes == ()


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


@pytest.mark.parametrize(
    ("make", "precision", "autocast"),
    [(adamw, "32", None), (momentum, "bf16-mixed", torch.bfloat16)],
    ids=["AdamW in float32", "SGD in mixed precision"],
)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_mlp_takes_as_much_as_its_steps_do(
    make: Optimizer, precision: str, autocast: torch.dtype | None, micro_batches: int
) -> None:
    model, batch = perceptron(*[1024] * 7), torch.empty(256, 1024)
    optimizer = make(model.parameters())
    found = WorkingSet.of(model, batch, optimizer, precision)
    real = peak_bytes_of_a_step(
        lambda: model(batch).sum(), model, optimizer, micro_batches=micro_batches, autocast=autocast
    )
    assert found.peak_bytes(256, accumulating=micro_batches > 1) == pytest.approx(real + batch.nbytes, rel=0.05)


def test_a_resnet_50_takes_as_much_as_its_steps_do_at_another_size() -> None:
    model = resnet()
    optimizer = momentum(model.parameters())
    found = WorkingSet.of(model, torch.empty(2, 3, 64, 64), optimizer, "bf16")
    batch = torch.randn(8, 3, 64, 64)
    real = peak_bytes_of_a_step(lambda: model(batch).sum(), model, optimizer, autocast=torch.bfloat16) + batch.nbytes
    assert found.peak_bytes(8, accumulating=False) == pytest.approx(real, rel=0.1)
    assert found.parameter_bytes == 4 * 25_557_032  # as published


@pytest.mark.slow
def test_gpt_2_small_takes_as_much_as_its_steps_do() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(loss_type="ForCausalLMLoss"))
    model.to_empty(device="cpu")  # numbers do not matter
    model.tie_weights()
    optimizer = adamw(model.parameters())
    ids = torch.zeros((2, 24), dtype=torch.long)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    found = WorkingSet.of(model, batch, optimizer, "bf16")
    real = peak_bytes_of_a_step(lambda: model(**batch).loss, model, optimizer, autocast=torch.bfloat16)
    assert found.peak_bytes(2, accumulating=False) == pytest.approx(real, rel=0.1)
    assert found.parameter_bytes == 4 * 124_439_808  # as published
    assert found.notes == ()


def test_a_small_transformer_takes_as_much_as_its_steps_do() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    model = nn.TransformerEncoder(layer, 3)
    batch = torch.randn(16, 100, 64)
    optimizer = adamw(model.parameters())
    found = WorkingSet.of(model, batch[:4], optimizer)
    for micro_batches in (1, 2):
        real = peak_bytes_of_a_step(lambda: model(batch).sum(), model, optimizer, micro_batches=micro_batches)
        expected = real + batch.nbytes
        assert found.peak_bytes(16, accumulating=micro_batches > 1) == pytest.approx(expected, rel=0.05)


class Checkpointed(nn.Module):
    """Keeps only what is between its layers."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


def test_what_is_computed_again_is_not_kept() -> None:
    wide = nn.Sequential(*(nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 32)) for _ in range(4)))
    batch = torch.empty(8, 32)
    all_kept, few = WorkingSet.of(wide, batch), WorkingSet.of(Checkpointed(wide), batch)
    assert all_kept.kept.bytes_per_sample == 4 * (32 + 4 * (512 + 32) - 32)
    assert few.kept.bytes_per_sample <= 4 * (32 + 4 * 32)
    assert few.peak_bytes(1000) < all_kept.peak_bytes(1000)


@pytest.mark.parametrize(
    ("make", "per_parameter"),
    [
        (torch.optim.SGD, 0),
        (momentum, 1),
        (adamw, 2),
        (lambda parameters: torch.optim.AdamW(parameters, amsgrad=True, foreach=True), 3),
        (lambda parameters: torch.optim.RMSprop(parameters, momentum=0.9, centered=True), 3),
    ],
)
def test_the_optimizers_state_is_counted(make: Optimizer, per_parameter: int) -> None:
    model = perceptron(100, 100)
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)  # puts its own step over the optimizer's
    found = WorkingSet.of(model, torch.empty(2, 100), optimizer)
    assert found.optimizer_state_bytes == pytest.approx(per_parameter * found.parameter_bytes, abs=16)
    assert not optimizer.state
    assert scheduler.last_epoch == 0


def test_an_optimizer_that_cannot_be_traced_is_left_out_and_says_so() -> None:
    model = perceptron(4, 4)
    found = WorkingSet.of(model, torch.empty(2, 4), torch.optim.LBFGS(model.parameters()))
    assert found.optimizer_state_bytes is None
    assert found.bytes_at(1)[Part.OPTIMIZER] is None
    assert "the optimizer's state is left out" in found.notes[0]


class Moody(nn.Module):
    """Keeps what it saw, counts, normalises, drops out, and may look at its data."""

    def __init__(self, *, looks: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.cache: dict[str, torch.Tensor] = {}
        self.last: torch.Tensor | None = None
        self.calls = 0
        self._looks = looks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += random.randint(1, 1)
        self.cache["x"] = self.last = nn.functional.dropout(self.norm(self.layer(x)))
        if self._looks and float(x.sum()) > 1e9:
            raise AssertionError
        return self.last


@pytest.mark.parametrize("looks", [False, True])
def test_nothing_of_the_model_changes(*, looks: bool) -> None:
    model, batch = Moody(looks=looks), torch.randn(6, 8)
    model(batch).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [(one.grad, one.grad.clone()) for one in model.parameters() if one.grad is not None]
    last, states = model.last, (torch.get_rng_state(), random.getstate())
    found = WorkingSet.of(model, batch, torch.optim.Adam(model.parameters()), "bf16")
    assert (len(found.notes) == 1) is looks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(type(one) is nn.Parameter for one in model.parameters())
    assert [one.grad for one in model.parameters()] == [same for same, _ in gradients]
    assert all(torch.equal(now, then) for now, then in gradients)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert model.last is last
    assert model.cache == {"x": last}
    assert model.calls == 1


def test_a_model_that_looks_at_its_data_is_run_and_says_so() -> None:
    one, other = (WorkingSet.of(Moody(looks=looks), torch.randn(6, 8)) for looks in (False, True))
    assert "running it for real" in other.notes[0]
    assert "DataDependentOutput" in other.notes[0]
    assert other.kept.bytes_per_sample == one.kept.bytes_per_sample
    assert other.parameter_bytes == one.parameter_bytes
    assert other.peak_bytes(100) == pytest.approx(one.peak_bytes(100), rel=0.02)


@torch.library.custom_op("energy_plugins_tests::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    """An extension's kernel, which torch cannot follow without data."""
    return x * 2


@double.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("double needs data")


double.register_autograd(lambda _context, gradient: gradient * 2)


class Extended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return double(self.layer(x))  # type: ignore[no-any-return]


def test_a_kernel_that_cannot_do_without_data_is_run() -> None:
    found = WorkingSet.of(Extended(), torch.randn(4, 8))
    assert "double needs data" in found.notes[0]
    assert found.kept.bytes_per_sample == 8 * 4  # the batch


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> Mapping[str, torch.Tensor]:
        return {"logits": self.layer(x), "loss": ((self.layer(x) - y) ** 2).mean() * scale}


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.empty(3, 4), "y": torch.empty(3, 4), "name": ["a", "b", "c"], "unused": torch.empty(3, 9)},
        [torch.empty(3, 4), torch.empty(3, 4), torch.empty(3)],
        (torch.empty(3, 4), torch.empty(3, 4)),
    ],
    ids=["mapping", "list with more than is needed", "tuple"],
)
def test_a_batch_is_passed_as_loaders_mean_it(batch: object) -> None:
    assert WorkingSet.of(TwoInputs(), batch).gradient_bytes == 4 * (16 + 4)


def test_a_model_may_have_no_weight_of_its_own_anywhere() -> None:
    with torch.device("meta"):
        model = perceptron(1 << 16, 1 << 16)
    found = WorkingSet.of(model, torch.empty(2, 1 << 16, device="meta"), adamw(model.parameters()))
    assert found.parameter_bytes == 4 * ((1 << 32) + (1 << 16))
    assert found.peak_bytes(1) > 4 * found.parameter_bytes


def test_weights_that_are_tied_count_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    found = WorkingSet.of(model, torch.empty(2, 8), adamw(model.parameters()))
    assert (found.parameter_bytes, found.gradient_bytes) == (256, 256)


def test_sparse_gradients_are_no_obstacle() -> None:
    found = WorkingSet.of(nn.Embedding(1000, 16, sparse=True), torch.zeros((4, 7), dtype=torch.long))
    assert (found.parameter_bytes, found.notes) == (64000, ())


def test_frozen_weights_have_no_gradients_and_no_state() -> None:
    model = perceptron(8, 8, 8)
    model[0].requires_grad_(False)
    found = WorkingSet.of(model, torch.empty(2, 8), adamw(model.parameters()))
    assert 2 * found.gradient_bytes == found.parameter_bytes
    assert found.optimizer_state_bytes == pytest.approx(2 * found.gradient_bytes, abs=16)


def test_another_device_that_is_not_here_is_a_note() -> None:
    found = WorkingSet.of(perceptron(4, 4), torch.empty(2, 4), device="cuda" if not torch.cuda.is_available() else None)
    assert any("torch sees no GPU here" in note for note in found.notes) is not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("model", "batch", "optimizer", "precision", "said"),
    [
        (print, torch.empty(2, 4), None, None, "the model is a builtin_function_or_method"),
        (nn.Linear(4, 4), 7, None, None, "how many samples the example batch holds cannot be told (it is a int)"),
        (nn.Linear(4, 4), torch.empty(0, 4), None, None, "how many samples"),
        (nn.Linear(4, 4), torch.empty(2, 4), "adam", None, "the optimizer is a str"),
        (nn.Linear(4, 4), torch.empty(2, 4), None, "int3", "the precision is 'int3'"),
        (nn.Linear(4, 4), torch.empty(2, 5), None, None, "the model cannot be run on the example batch: RuntimeError"),
        (nn.Identity(), torch.empty(2, 5), None, None, "nothing to differentiate"),
    ],
)
def test_what_cannot_be_traced_is_named_and_nothing_else_is_said(
    model: object,
    batch: object,
    optimizer: object,
    precision: str | None,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(ConfigError) as error:
            WorkingSet.of(model, batch, optimizer, precision)
    finally:
        logger.removeHandler(caplog.handler)
    assert said in str(error.value)
    assert caplog.records == []


def test_tune_itself_imports_no_torch() -> None:
    code = "import sys; import energy_plugins.tune.working_set, energy_plugins.tune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class RowByRow(nn.Module):
    """Has more operations for more samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(row).relu() for row in x])


def test_a_model_with_an_operation_for_each_sample_is_followed_roughly() -> None:
    model = RowByRow()
    found = WorkingSet.of(model, torch.empty(8, 256))
    batch = torch.empty(24, 256)
    optimizer = torch.optim.SGD(model.parameters())
    real = peak_bytes_of_a_step(lambda: model(batch).sum(), model, optimizer) + batch.nbytes
    assert found.peak_bytes(24, accumulating=False) == pytest.approx(real, rel=0.15)


def test_what_wraps_a_model_is_looked_through_and_said(tmp_path: Path) -> None:
    model, batch = perceptron(8, 8), torch.empty(2, 8)
    plain = WorkingSet.of(model, batch)
    compiled = WorkingSet.of(torch.compile(model), batch)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        spread = WorkingSet.of(nn.parallel.DistributedDataParallel(model), batch)
    finally:
        torch.distributed.destroy_process_group()
    for found, said in ((compiled, "torch.compile"), (spread, "DistributedDataParallel")):
        assert found.bytes_at(5) == plain.bytes_at(5)
        assert said in found.notes[0]
