"""A Trainer with another micro-batch is the same training: gradients, losses, steps, logs and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback
from transformers_training import Logs, make_trainer

from energy_plugins.transformers import EnergyCallback, MicroBatchCallback

WORDS, LENGTH = 32, 12
STEPS = 20
Texts = list[dict[str, torch.Tensor]]


def texts(count: int) -> Texts:
    """Return sentences of one length, of which few to all words are to be learnt."""
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(0, WORDS, (count, LENGTH), generator=made)
    known = torch.randint(1, LENGTH, (count, 1), generator=made)
    labels = ids.masked_fill(torch.arange(LENGTH) >= known, -100)
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def language_model() -> nn.Module:
    """Its losses are sums over tokens, divided by those of the whole optimizer step."""
    shape: dict[str, Any] = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(
        GPT2Config(**shape, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)
    )


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
    **settings: Any,
) -> Trainer:
    """Train for two epochs, each with a last batch and a last window that are cut short."""
    torch.manual_seed(0)
    trainer = make_trainer(
        folder, EnergyCallback(table=False, progress_bar=False), *callbacks, model=made().to(dtype), data=texts(rows),
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        **{"num_train_epochs": 2, "learning_rate": 1e-2, "max_grad_norm": 0.0, "logging_steps": 1, **settings},
    )  # fmt: skip
    trainer.train(settings.get("resume_from_checkpoint"))
    return trainer


CASES = [
    pytest.param(8, 1, 2, id="cut"),
    pytest.param(2, 4, 8, id="all together"),
    pytest.param(2, 4, 4, id="two together"),
    pytest.param(4, 2, 1, id="one by one"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("made", [language_model, sample_model])
@pytest.mark.parametrize(("batch", "accumulation", "size"), CASES)
class TestGradients:
    def test_of_each_step(
        self, batch: int, accumulation: int, size: int, made: Callable[[], nn.Module], tmp_path: Path
    ) -> None:
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "made": made}
        reference = Steps()
        train(tmp_path, reference, **how)
        tuned = Steps(reference)
        train(tmp_path, tuned, MicroBatchCallback(size), **how)
        assert len(tuned.gradients) == STEPS
        assert 0 < apart(tuned, reference) <= 1e-6

    def test_of_a_whole_training(
        self, batch: int, accumulation: int, size: int, made: Callable[[], nn.Module], tmp_path: Path
    ) -> None:
        how: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "made": made, "dtype": torch.float64}
        found = []
        for callbacks in ([], [MicroBatchCallback(size)]):
            steps, logs = Steps(), Logs()
            trainer = train(tmp_path, steps, logs, *callbacks, max_grad_norm=0.5, **how)
            found.append((steps, logs.seen, trainer))
        (reference, usual, before), (tuned, logged, after) = found
        assert 0 < apart(tuned, reference) <= 1e-9
        assert after.state.global_step == before.state.global_step == STEPS
        assert [row.keys() for row in logged] == [row.keys() for row in usual]
        for row, expected in zip(logged, usual, strict=True):
            for key in {"loss", "grad_norm", "learning_rate", "epoch", "step", "train_loss"} & row.keys():
                assert row[key] == pytest.approx(expected[key], rel=1e-6)
