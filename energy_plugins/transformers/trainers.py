"""What a Trainer tells of itself, and which of its frames asks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerState
    from transformers.training_args import TrainingArguments

    from energy_plugins.measure.json_section import JSON

MAY_FAIL = ("_run_epoch", "_evaluate", "_finalize_training")
"""What ends a training that fails passes one of these functions of the trainer: there is no event for it."""
DEEPSPEED = "with DeepSpeed the optimizer steps inside of backward, and is part of it"


def trainer_above() -> Trainer | None:
    """Return the trainer whose event is being handled: callbacks are not told, but its own frame is above them."""
    from transformers.trainer import Trainer  # noqa: PLC0415 - whoever is asked by one has imported it

    frame = sys._getframe(1)  # noqa: SLF001 - documented, and there since ever
    while frame is not None:
        if isinstance(owner := frame.f_locals.get("self"), Trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment] # None at the end, as the loop asks
    return None


def states_of(state: TrainerState) -> dict[str, Any]:
    """Return what a checkpoint keeps of callbacks, by class; a list of states where there are several of one."""
    return cast("dict[str, Any]", state.stateful_callbacks)  # declared a list, which it is only until it is made


def saved_joules(state: TrainerState, name: str) -> Mapping[str, Any] | None:
    """Return what a checkpoint holds of ours, None if it was written without."""
    kept = states_of(state).get(name)
    if isinstance(kept, list):
        kept = kept[-1] if kept else None
    attributes = kept.get("attributes") if isinstance(kept, Mapping) else None
    found = attributes.get("restored") if isinstance(attributes, Mapping) else None
    return found if isinstance(found, Mapping) else None


def precision_of(trainer: Trainer) -> str:
    """Return in what precision is trained, which a launcher may have said and not the arguments."""
    found = str(trainer.accelerator.mixed_precision)
    return "32" if found == "no" else found


def autocast_of(trainer: Trainer) -> torch.dtype | None:
    """Return in what the passes of a trainer compute, None for what its parameters are of."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision_of(trainer))


def _model_name(model: object) -> str:
    """Return what a model was loaded from, or else its class."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def steps_in_backward(trainer: Trainer | None) -> bool:
    """Tell whether the optimizer steps inside of backward, where no event is: so it does with DeepSpeed."""
    return bool(getattr(trainer, "is_deepspeed_enabled", False))


def batch_of(trainer: Trainer) -> int:
    """Return the samples that each rank's loader yields at once."""
    args = trainer.args
    is_split = bool(getattr(args.accelerator_config, "split_batches", False))
    found = trainer._train_batch_size  # noqa: SLF001 - what `auto_find_batch_size` has come to
    return found // args.world_size if is_split else found


def why_no_micro_batch(trainer: Trainer) -> str:
    """Return why batches of this trainer must go through the model as they are, empty if nothing is known."""
    args, parallelism = trainer.args, getattr(trainer.accelerator, "parallelism_config", None)
    optimizer = str(getattr(args.optim, "value", args.optim))
    if steps_in_backward(trainer):
        return "DeepSpeed accumulates gradients itself: set its train_micro_batch_size_per_gpu instead"
    if trainer.is_fsdp_enabled:
        return "FSDP gathers and reduces its shards in each pass: set per_device_train_batch_size instead"
    if args.n_gpu > 1:
        return "DataParallel cuts each batch for its GPUs itself: start one process for each GPU instead"
    if optimizer.endswith("layerwise") or "lomo" in optimizer:
        return f"the optimizer {optimizer} steps inside of backward, so each pass would be a step"
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        return "several ranks work on the same batch, which one of them cannot cut"
    return ""


def facts_of(trainer: Trainer | None, args: TrainingArguments, state: TrainerState) -> dict[str, JSON]:
    """Return what a reader of the report needs to know of the training."""
    facts: dict[str, JSON] = {
        "stage": "fit",
        "framework": "transformers",
        "model": "" if trainer is None else _model_name(trainer.model),
        "trainer": "" if trainer is None else type(trainer).__name__,
        "precision": "" if trainer is None else precision_of(trainer),
        "rank": args.process_index,
        "world_size": args.world_size,
        "train_batch_size": state.train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "num_workers": args.dataloader_num_workers,
    }
    if steps_in_backward(trainer):
        facts["phases"] = DEEPSPEED
    if state.trial_params is not None:
        facts["trial_params"] = json.loads(json.dumps(state.trial_params, default=str))
    return facts


def sum_over_ranks(args: TrainingArguments, joules: tuple[float, ...]) -> tuple[float, ...]:
    """Return the sums over all ranks. Collective."""
    if args.world_size == 1:
        return joules
    from accelerate.utils import reduce  # noqa: PLC0415 - for many ranks only

    summed = reduce(torch.tensor(joules, dtype=torch.float64, device=args.device), reduction="sum")
    return tuple(summed.tolist())
