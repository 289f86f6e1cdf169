"""Whether a size fits into the memory of all ranks, found out by one pass on trial before any step depends on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.micro_batch.as_it_was import left_as_it_was
from energy_plugins.training.micro_batch.batch_tree import copied, samples_in
from energy_plugins.training.micro_batch.both_ways import Run
from energy_plugins.training.micro_batch.gradient_check import uncompiled
from energy_plugins.training.micro_batch.out_of_memory import free_caches, is_out_of_memory
from energy_plugins.training.micro_batch.passes import passes, unheard
from energy_plugins.training.micro_batch.plan import MicroBatchPlan

_FITS, _TOO_LARGE, _UNKNOWN = 1.0, -1.0, math.nan


class Probe:
    """A question that all ranks answer together, with one of their next windows.

    A pass in which ranks reduce gradients cannot be begun anew where one of them runs out of memory; this one reduces
    nothing, so it can fail on any of them.

    Args:
        ranks: all of them.
        size: samples at once.
    """

    def __init__(self, ranks: AllRanks, size: int) -> None:
        self.size = size
        self.fits: bool | None = None
        """None until it is known."""
        self._ranks = ranks

    def look(self, try_pass: Callable[[], bool]) -> None:
        """Answer it, if this window tells. Collective until it is answered; ``try_pass`` is `one_pass`."""
        if self.fits is not None:
            return
        answers = [answer for (answer,) in self._ranks.hear((self._own(try_pass),))]
        if _TOO_LARGE in answers:
            self.fits = False
        elif all(answer == _FITS for answer in answers):
            self.fits = True

    def _own(self, try_pass: Callable[[], bool]) -> float:
        too_large = False
        try:
            return _FITS if try_pass() else _UNKNOWN
        except Exception as error:  # noqa: BLE001 - whatever a training's own code says of it, the others wait
            too_large = is_out_of_memory(error)
        if too_large:
            free_caches()
        return _TOO_LARGE if too_large else _UNKNOWN


def one_pass(
    models: Sequence[torch.nn.Module], window: Sequence[Any], plan: MicroBatchPlan, run: Run, *, adds_up: bool
) -> bool:
    """Run one micro-batch of ``plan`` forward and backward; False if the batches of the window do not make one.

    Args:
        models: hold all parameters; left as they were, and no other rank hears of it.
        window: the batches of an optimizer step, or the first of them.
        plan: whose micro-batch is tried.
        run: see `Run`.
        adds_up: see `passes`.

    Raises:
        RuntimeError: if it fails, for want of memory for example.
    """
    batches = window[: plan.together]
    if [samples_in(batch) for batch in batches] != [plan.batch] * plan.together:
        return False
    with ExitStack() as alone:
        for model in models:
            alone.enter_context(unheard(model))
        with left_as_it_was(torch.nn.ModuleList(models)), uncompiled():
            run(passes([copied(one) for one in batches], plan, adds_up=adds_up)[:1])
    return True
