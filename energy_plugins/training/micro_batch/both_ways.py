"""One window of batches run both ways: as it came, and as a plan has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from energy_plugins.training.micro_batch.batch_tree import copied, cut, joined, samples_in
from energy_plugins.training.micro_batch.gradient_check import GradientCheck, compare, limit_of
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch.passes import Pass, passes, unheard
from energy_plugins.training.micro_batch.plan import MicroBatchPlan

Run = Callable[[Sequence[Pass]], object]
"""Runs passes forward and backward, and leaves their gradients in the models."""


def both_ways(  # noqa: PLR0913 - what a training is, and what it might be
    models: Sequence[torch.nn.Module],
    window: Sequence[Any],
    plan: MicroBatchPlan,
    run: Run,
    *,
    adds_up: bool,
    precision: torch.dtype | None,
) -> GradientCheck | None:
    """Return how the gradients of a window would differ under ``plan``; None if it is no whole one.

    Where batches are cut because whole ones do not fit into memory, the largest part of each that fits is compared; one
    micro-batch, if no more fits, with its own parts.

    Args:
        models: hold all parameters; left as they were, and no other rank hears of it.
        window: the batches of an optimizer step, left as they are.
        plan: what might be done with them.
        run: see `Run`.
        adds_up: see `passes`.
        precision: see `limit_of`.

    Raises:
        BatchError: if the batches do not go together.
        RuntimeError: if a pass fails, for want of memory for example.
    """
    if [samples_in(batch) for batch in window] != [plan.batch] * plan.accumulation:
        return None
    all_models = torch.nn.ModuleList(models)
    with ExitStack() as alone:
        for model in models:
            alone.enter_context(unheard(model))
        samples, finer = plan.batch, plan
        while True:
            usual = [Pass(cut(batch, samples)[0] if samples < plan.batch else batch, last=batch) for batch in window]
            other = _planned(usual, finer, adds_up=adds_up)
            try:
                found = compare(
                    all_models,
                    lambda usual=usual: run(_own(usual)),  # type: ignore[misc] # of this turn
                    lambda other=other: run(_own(other)),  # type: ignore[misc]
                    limit=limit_of(all_models, precision),
                )
                return found if samples == plan.batch else replace(found, samples=samples)
            except (RuntimeError, MemoryError) as error:
                fewer = _fewer(samples, plan.size)
                if not is_out_of_memory(error) or samples <= plan.size or fewer == 1:
                    raise
                samples = fewer
                if samples == plan.size:  # one micro-batch is all that fits: let its parts be compared with it
                    finer = replace(plan, size=_half(plan.size))
            free_caches()


def _planned(usual: Sequence[Pass], plan: MicroBatchPlan, *, adds_up: bool) -> list[Pass]:
    each = list[Pass]()
    for first in range(0, len(usual), plan.together):
        group = usual[first : first + plan.together]
        batches = [one.batch for one in group]
        joined(batches)  # what cannot be joined would run as it came, and prove nothing
        each += [one._replace(last=group[-1].last) for one in passes(batches, plan, adds_up=adds_up)]
    return each


def _own(each: Sequence[Pass]) -> list[Pass]:
    """Return passes of batches of their own: a step may take labels out of a dict, or change numbers in place."""
    return [one._replace(batch=copied(one.batch)) for one in each]


def _half(size: int) -> int:
    return size // 2 if size % 2 == 0 else 1


def _fewer(samples: int, size: int) -> int:
    """Return about half as many, in whole micro-batches."""
    return -(-samples // (2 * size)) * size
