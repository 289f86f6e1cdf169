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


def why_no_micro_batch(accelerator: Accelerator) -> str:
    """Return why the batches of a loop must go through its model as they are, empty if nothing is known."""
    kind = accelerator.distributed_type
    if kind in OUTSIDE:
        return f"{kind.value} accumulates and reduces gradients in its own way: set the micro-batch there"
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - it takes a second, and few loops get here

    known = [one for model in accelerator._models for one in model.parameters()]  # noqa: SLF001 - nothing public tells
    groups = [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]  # noqa: SLF001
    trained = [one for group in groups for one in group["params"]]
    if kind is DistributedType.FSDP or any(isinstance(one, DTensor) for one in (*known, *trained)):
        return "the model is sharded, so each pass gathers and reduces its parameters: set the batch size instead"
    if not known or not {id(one) for one in trained} <= {id(one) for one in known}:
        return "a model was not given to accelerator.prepare, so its gradients cannot be compared"
    return ""


def state_file(accelerator: Accelerator, folder: str) -> Path:
    """Return where a checkpoint in ``folder`` keeps this rank's joules."""
    return Path(folder) / f"energy_plugins_{accelerator.process_index}.json"


def facts_of(accelerator: Accelerator) -> dict[str, JSON]:
    """Return what a reader of the report needs to know of the training."""
    return {
        "stage": "fit",
        "framework": "accelerate",
        "model": next((type(model).__name__ for model in accelerator._models), ""),  # noqa: SLF001 - as above
        "distributed_type": accelerator.distributed_type.value,
        "precision": str(accelerator.mixed_precision),
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "accumulate_grad_batches": accelerator.gradient_accumulation_steps,
        "data_wait": _BATCHES_AHEAD,
    }
