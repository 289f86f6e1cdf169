"""Micro-batches that searches chose, remembered for each kind of training: ``micro_batches.json`` in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from energy_plugins.training.choice_memory import ChoiceMemory, Kind
from energy_plugins.training.guard import TROUBLE
from energy_plugins.training.measured import Measured
from energy_plugins.training.micro_batch.plan import MicroBatchPlan

if TYPE_CHECKING:
    from energy_plugins.measure.rank_part import Rank

_MEMORY = ChoiceMemory("micro_batches.json", "micro_batches", "size", "micro-batch", "micro-batches", most=1e9)


def kind_of(
    measured: Measured | None, who: Rank, shape: Callable[[], str] | None, setting: MicroBatchPlan
) -> Kind | None:
    """Return what a training is known by, None if nothing is to be remembered on this rank.

    ``shape`` tells of the model, its optimizer, precision and samples.
    """
    run = None if measured is None else measured.meter.run
    if who.rank != 0 or shape is None or run is None:
        return None
    try:
        known_by = shape()
    except TROUBLE:
        return None
    return {
        "gpus": sorted({gpu.name for gpu in run.gpus}),
        "ranks": who.world_size,
        "model": known_by,
        "batch": setting.batch,
        "accumulation": setting.accumulation,
    }


def recall(kind: Kind | None) -> int:
    """Return the size that was chosen for such a training, 0 if none is known."""
    return 0 if kind is None else round(_MEMORY.recall(kind) or 0)


def forget(kind: Kind | None) -> None:
    """Have the next training of this kind search again, for what was chosen could not be kept."""
    if kind is not None:
        _MEMORY.forget(kind)


def remember(kind: Kind | None, size: int) -> None:
    """Keep a choice for the next training of this kind."""
    if kind is not None:
        _MEMORY.remember(kind, size)
