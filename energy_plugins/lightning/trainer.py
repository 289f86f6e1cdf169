"""What a trainer tells of itself, in our words."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from energy_plugins.lightning.installed import CombinedLoader, Timer
from energy_plugins.measure.forecast import Limits, Position
from energy_plugins.measure.json_section import JSON
from energy_plugins.training.place import rank_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from energy_plugins.measure.rank_part import Rank


def who_of(trainer: Trainer) -> Rank:
    """Return which process of the training this is."""
    return rank_of(trainer.global_rank, trainer.world_size, trainer.local_rank, trainer.num_devices)


def folder_of(trainer: Trainer) -> Path:
    """Return where reports go."""
    root = trainer.default_root_dir
    return Path.cwd() / "energy" if "://" in root else Path(root) / "energy"


def sum_over_ranks(trainer: Trainer, joules: tuple[float, ...]) -> tuple[float, ...]:
    """Return the sums of what all ranks say. Collective."""
    if trainer.world_size == 1:
        return joules
    own = torch.tensor(joules, dtype=torch.float64, device=trainer.strategy.root_device)
    summed = trainer.strategy.reduce(own, reduce_op="sum")
    assert isinstance(summed, torch.Tensor)  # noqa: S101 - as what was given
    return tuple(summed.tolist())


def set_minima(trainer: Trainer, epochs: int | None, steps: int | None) -> None:
    """Set what the trainer makes at least."""
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = epochs, steps


def limits_of(trainer: Trainer) -> Limits:
    """Return what may end the fit, in Lightning's words: -1 and infinity are no limit."""
    batches, epochs, steps = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
    timers = (callback.time_remaining() for callback in vars(trainer)["callbacks"] if isinstance(callback, Timer))
    return Limits(
        batches_per_epoch=int(batches) if math.isfinite(batches) else None,
        epochs=None if epochs is None or epochs < 0 else epochs,
        optimizer_steps=None if steps < 0 else steps,
        batches_per_optimizer_step=(
            trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else None
        ),
        seconds_left=min((left for left in timers if left is not None), default=None),
    )


def position_of(trainer: Trainer) -> Position:
    """Return where the fit stands."""
    return Position(
        epochs=trainer.current_epoch,
        batches=trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        optimizer_steps=trainer.global_step,
    )


BEFORE_FETCH, AFTER_FETCH = "_on_before_fetch", "_on_after_fetch"


def fetch_bracket(loop: object) -> tuple[Callable[[], None], Callable[[], None]] | None:
    """Return what the training loop calls around the fetch of a batch; private, so perhaps not there."""
    try:
        return getattr(loop, BEFORE_FETCH), getattr(loop, AFTER_FETCH)
    except AttributeError:
        return None


def metric(value: float) -> torch.Tensor:
    """Wrap a figure so that Lightning neither copies it to the device nor rounds it to single precision."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def is_logging_step(trainer: Trainer) -> bool:
    """Tell whether the trainer sends metrics to its loggers at the end of this batch."""
    if trainer.fit_loop._should_accumulate():  # noqa: SLF001 - what the trainer's own connector asks
        return False
    return trainer._logger_connector.should_update_logs  # noqa: SLF001


def facts_of(trainer: Trainer) -> dict[str, JSON]:
    """Return what a reader of the report needs to know of the trainer."""
    return {
        "stage": "" if trainer.state.fn is None else trainer.state.fn.value,
        "framework": "lightning",
        "model": type(trainer.lightning_module).__name__,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
        "rank": trainer.global_rank,
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def loader_facts_of(trainer: Trainer) -> dict[str, JSON]:
    """Return how many workers the training's loaders have: a number, or one for each where there are several.

    None for a loader that is no DataLoader. It is known only once the training begins.
    """
    loaders = CombinedLoader(trainer.train_dataloader).flattened
    workers = [loader.num_workers if isinstance(loader, DataLoader) else None for loader in loaders]
    return {"num_workers": workers[0] if len(workers) == 1 else workers}
