"""A model that is run on trial, and afterwards is as it was: gradients, buffers, attributes and random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from energy_plugins.training.micro_batch.attributes import attributes_kept


@contextmanager
def left_as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Put back, whatever happens in the block, what running and differentiating ``model`` changes.

    These are the gradients (set to None within), buffers such as the statistics of BatchNorm, the modules' attributes
    (`attributes_kept`), the states of all random generators of torch on the model's devices, of numpy and of Python,
    and `_teachers`. Other parameters are the block's own affair.
    """
    parameters = list(model.parameters())
    teachers = [(one, one.detach().to("cpu", copy=True)) for one in _teachers(parameters)]
    gradients = [parameter.grad for parameter in parameters]
    places = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()  # noqa: SLF001 - where torch itself assigns them
        if buffer is not None
    ]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - loaders and losses use it still
    try:
        with torch.random.fork_rng(devices=_gpus(parameters)), attributes_kept(model):
            clear_gradients(parameters)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, value in places:
                buffer.copy_(value)
                module._buffers[name] = buffer  # noqa: SLF001
            for teacher, value in teachers:
                there = value.to(teacher.device)
                if not torch.equal(teacher, there):
                    teacher.copy_(there)


def _teachers(parameters: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Return parameters without gradients that passes may move: the means over time of others (MoCo, BYOL, DINO).

    These are no more numbers than are trained; where more are held fast (a large model that is adapted) they are left
    out, since nobody moves them and copies would take long.
    """
    held = [one for one in parameters if not one.requires_grad and not one.is_meta]
    trained = sum(one.numel() for one in parameters if one.requires_grad)
    return held if sum(one.numel() for one in held) <= trained else []


def clear_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Have no parameter hold a gradient."""
    for parameter in parameters:
        parameter.grad = None


def _gpus(parameters: Sequence[torch.nn.Parameter]) -> list[torch.device]:
    return sorted({one.device for one in parameters if one.device.type == "cuda"}, key=str)
