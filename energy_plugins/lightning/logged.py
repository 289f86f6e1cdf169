"""What a ``training_step`` logs of the parts of a batch, logged once for the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import Any, NamedTuple

import torch
from torchmetrics import Metric

from energy_plugins.lightning.installed import LightningModule


class _Said(NamedTuple):
    samples: int
    value: Any
    arguments: dict[str, Any]


class Logged:
    """Collects the calls of a module's ``log`` in several passes, and hands on one for each key.

    Means are weighted by samples, or by the ``batch_size`` that the module gives; what is reduced by sum, min or max is
    reduced so here, too. Metric objects add up by themselves.

    Args:
        module: of the training.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._said: dict[str, list[_Said]] = {}
        self._samples = 0
        self._all = 0

    @contextmanager
    def of(self, samples: int) -> Iterator[None]:
        """Collect what is logged of so many samples."""
        self._samples = samples
        self._all += samples
        with logging_to(self._module, self._log):
            yield

    def _log(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as Lightning's
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        name, value = given.pop("name"), given.pop("value")
        kept = value.detach() if isinstance(value, torch.Tensor) and not given.get("enable_graph") else value
        self._said.setdefault(name, []).append(_Said(self._samples, kept, given))

    def hand_on(self) -> None:
        """Log everything, as from ``training_step``."""
        module = self._module
        results = module.trainer._results  # noqa: SLF001 - there is no public way to say how many samples a value is of
        batch_size = None if results is None else results.batch_size
        if results is not None:
            results.batch_size = self._all
        before, module._current_fx_name = module._current_fx_name, "training_step"  # noqa: SLF001 - as its caller does
        try:
            for name, said in self._said.items():
                value, arguments = _one(said)
                module.log(name, value, **arguments)
        finally:
            module._current_fx_name = before  # noqa: SLF001
            if results is not None:
                results.batch_size = batch_size
            self._said.clear()


_ARGUMENTS = tuple(name for name in signature(LightningModule.log).parameters if name != "self")


def _one(said: list[_Said]) -> tuple[Any, dict[str, Any]]:
    """Return the value of all, and with which arguments."""
    last = said[-1]
    arguments = dict(last.arguments)
    sizes = [one.arguments["batch_size"] for one in said if one.arguments.get("batch_size") is not None]
    if len(sizes) == len(said):
        arguments["batch_size"] = sum(sizes)
    values = [one.value for one in said]
    if len(said) == 1 or not all(isinstance(value, int | float | torch.Tensor) for value in values):
        return last.value, arguments
    weights = sizes if len(sizes) == len(said) and sum(sizes) else [one.samples for one in said]
    reduction = arguments.get("reduce_fx", "mean")
    name = reduction if isinstance(reduction, str) else reduction.__name__
    if name == "sum":
        return sum(values[1:], values[0]), arguments
    if name in {"max", "min"}:
        return (max if name == "max" else min)(values), arguments
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights), arguments


@contextmanager
def logging_to(module: LightningModule, log: Callable[..., None]) -> Iterator[None]:
    """Have what a module logs in the block go to ``log``."""
    attributes = vars(module)
    before = attributes.get("log")
    attributes["log"] = log
    try:
        yield
    finally:
        if before is None:
            attributes.pop("log", None)
        else:
            attributes["log"] = before


@contextmanager
def metrics_kept(module: torch.nn.Module) -> Iterator[None]:
    """Have the metrics of a module know nothing of what they are told in the block."""
    before = [
        (metric, {name: deepcopy(vars(metric)[name]) for name in (*metric._defaults, *_OF_METRICS)})  # noqa: SLF001
        for metric in module.modules()
        if isinstance(metric, Metric)
    ]
    try:
        yield
    finally:
        for metric, values in before:
            vars(metric).update(values)


_OF_METRICS = ("_update_count", "_computed", "_forward_cache")
"""What a metric keeps beside its states."""
