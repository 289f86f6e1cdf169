"""Why the micro-batch of a model may not be changed, as far as looking at the model tells."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getclosurevars
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from energy_plugins.tune.micro_batch.sizes import MOST_SIZES

CUDA_GRAPHS = (
    "the model is compiled with CUDA graphs, which are recorded for one shape: compile it without "
    '(mode="default"), or choose the batch size yourself'
)

IN_BACKWARD = (
    "something is done with a parameter as soon as its gradient is there, as by an optimizer that steps inside of "
    "backward, so each pass would be a step"
)


def why_not(model: torch.nn.Module, *, allow_batch_statistics: bool = False) -> str:
    """Return a sentence that says why a model's micro-batch must stay as it is; empty if nothing speaks against it.

    What it cannot see, such as a loss that compares samples with each other, the check of gradients finds.

    Args:
        model: as it is trained.
        allow_batch_statistics: whether results may depend on the micro-batch.
    """
    if not allow_batch_statistics:
        normalising = [name for name, module in model.named_modules() if _normalises(module)]
        if normalising:
            more = f" and {len(normalising) - 1} more" if len(normalising) > 1 else ""
            return (
                f"{normalising[0]}{more} normalise by the statistics of a batch (BatchNorm), so another micro-batch is "
                "another model: say allow_batch_statistics=True if that is all right, or use GroupNorm"
            )
    if any(_acts_inside_of_backward(parameter) for parameter in model.parameters()):
        return IN_BACKWARD
    return CUDA_GRAPHS if _records(model) else ""


def _normalises(module: torch.nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training


def _acts_inside_of_backward(parameter: torch.nn.Parameter) -> bool:
    """Tell whether a hook waits for a gradient; torch tells it in private places only."""
    applied = vars(parameter).get("_in_backward_optimizers")  # by torch.distributed's _apply_optimizer_in_backward
    return bool(applied or getattr(parameter, "_post_accumulate_grad_hooks", None))


def most_sizes(model: torch.nn.Module) -> int:
    """Return how many sizes may be tried: with ``dynamic=False`` each is compiled, up to torch's limit of eight.

    Some of these the last batches of epochs take, and evaluation; beyond the limit a model silently runs uncompiled.
    """
    return 4 if any(getattr(context, "_dynamic", None) is False for context in _contexts(model)) else MOST_SIZES


def _records(model: torch.nn.Module) -> bool:
    """Tell whether part of a model is compiled with CUDA graphs; torch tells it in private places only."""
    return any(
        (getattr(context, "compiler_config", None) or {}).get("triton.cudagraphs", False)
        or _backend_of(context) == "cudagraphs"
        for context in _contexts(model)
    )


def _backend_of(context: object) -> str | None:
    """Return the name of the backend that compiles, None if it has none."""
    backend = getattr(context, "callback", None)
    while (inner := getattr(backend, "_torchdynamo_orig_backend", None)) is not None:
        backend = inner
    return getattr(backend, "compiler_name", None)


def _contexts(model: torch.nn.Module) -> Iterator[Any]:
    """Yield what `torch.compile` left in the modules that it was called with or for, in Lightning's own place, too."""
    for module in model.modules():
        yield getattr(module, "dynamo_ctx", None)
        yield (getattr(module, "_compiler_ctx", None) or {}).get("dynamo_ctx")
        tells = getattr(getattr(module, "_compiled_call_impl", None), "get_compiler_config", None)
        if tells is not None:
            yield getclosurevars(tells).nonlocals.get("self")
