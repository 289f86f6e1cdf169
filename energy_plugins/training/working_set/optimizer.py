"""A step of an optimizer, followed without data: what its state takes, and what it needs for a moment."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from energy_plugins.training.working_set.allocations import Allocations
from energy_plugins.training.working_set.passes import without_data


@dataclass(frozen=True)
class OptimizerBytes:
    """What an optimizer takes beside parameters and gradients."""

    state_bytes: int
    momentary_bytes: int
    """At the fullest moment of a step, on top of its state."""


def optimizer_bytes(optimizer: torch.optim.Optimizer, device: torch.device) -> OptimizerBytes:
    """Follow a step of an optimizer on parameters of the same shapes; neither it nor they change.

    Raises:
        Exception: what an optimizer raises that cannot be stepped so.
    """
    with FakeTensorMode():
        twin = copy.copy(optimizer)
        twin.state = defaultdict(dict)
        twin.param_groups = [_twin_of(group, device) for group in optimizer.param_groups]
        parameters = [one for group in twin.param_groups for one in group["params"]]
        for one in parameters:
            one.grad = torch.empty_like(one) if one.requires_grad else None
        step = _without_hooks(type(twin).step).__get__(twin)  # a scheduler puts its own over that of the object
        with Allocations() as seen:
            seen.hold(parameters)
            seen.hold(one.grad for one in parameters if one.grad is not None)
            before = seen.live_bytes
            step()
            state = seen.live_bytes - before
        # Of a step that makes no state, because it was made before, the rest is what is needed for a moment.
        with Allocations() as again:
            step()
    return OptimizerBytes(state, max(again.moments, default=0))


def _without_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return what torch's wrapper calls between the hooks of an optimizer, and of all: they count real steps."""
    wrapped: Callable[..., Any] = getattr(step, "__wrapped__", step)
    return wrapped if getattr(step, "hooked", False) else step


def _twin_of(group: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a group of stand-ins that is stepped as the group itself."""
    twin = {**group, "params": [without_data(one, device) for one in group["params"]]}
    # Which of its loops an optimizer takes by default depends on the type of the tensors, too: these have one of their
    # own. On a GPU it takes the one that works on all parameters at once.
    if device.type == "cuda" and twin.get("foreach", False) is None and not twin.get("fused"):
        twin["foreach"] = True
    return twin
