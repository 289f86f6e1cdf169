"""What an accelerator tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.accelerator import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from energy_plugins.measure.json_section import JSON
from energy_plugins.training.place import rank_of

if TYPE_CHECKING:
    from energy_plugins.measure.rank_part import Rank

OUTSIDE = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)
"""They step where no optimizer of torch does, or not when it does."""
_BATCHES_AHEAD = "batches are fetched one ahead: the wait in a step is for the batch after its own"


def plain(optimizer: object) -> object:
    """Return the optimizer of torch that accelerate wrapped."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def who_of(accelerator: Accelerator) -> Rank:
    """Return which process of the training it is in."""
    return rank_of(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)


def sum_over_ranks(accelerator: Accelerator, numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Return the sums over all ranks. Collective."""
    if accelerator.num_processes == 1:
        return numbers
    summed = accelerator.reduce(torch.tensor(numbers, dtype=torch.float64, device=accelerator.device), reduction="sum")
    return tuple(summed.tolist())


def state_file(accelerator: Accelerator, folder: str) -> Path:
    """Return where a checkpoint in ``folder`` keeps this rank's joules."""
    return Path(folder) / f"energy_plugins_{accelerator.process_index}.json"


def facts_of(accelerator: Accelerator) -> dict[str, JSON]:
    """Return what a reader of the report needs to know of the training."""
    return {
        "stage": "fit",
        "framework": "accelerate",
        "distributed_type": accelerator.distributed_type.value,
        "precision": str(accelerator.mixed_precision),
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "accumulate_grad_batches": accelerator.gradient_accumulation_steps,
        "data_wait": _BATCHES_AHEAD,
    }
