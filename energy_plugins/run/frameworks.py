"""What is added to frameworks when a program imports them: the plugin of each, unless the program has it itself.

Only one measures a loop. A transformers Trainer makes an accelerator of its own, which is therefore left alone. That
Lightning's trainers are measured sees to its entry point (`energy_plugins.lightning_factory`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any
from weakref import WeakSet

from energy_plugins.run.imports import Imports
from energy_plugins.training.guard import FAILURES, warn

_FAILURES: tuple[type[Exception], ...] = (*FAILURES, ImportError)


def measure_frameworks() -> None:
    """Have the trainings of this process measured, whatever they will be."""
    imports, of_trainers = Imports(), _OfTrainers()
    imports.react("accelerate.accelerator", of_trainers.measure_loops)
    imports.react("transformers.trainer", of_trainers.measure_trainers)


class _OfTrainers:
    """Tells accelerators that a Trainer made from those of a program's own loop."""

    def __init__(self) -> None:
        self._accelerators: WeakSet[Any] = WeakSet()

    def measure_loops(self, module: ModuleType) -> None:
        """Measure what uses an accelerator from its first ``prepare`` on, and let ``log_with="energy"`` be known."""
        _around(module.Accelerator, "__init__", before=lambda _: _register_tracker())
        _around(module.Accelerator, "prepare", after=self._attach)

    def measure_trainers(self, module: ModuleType) -> None:
        """Add the callback to every Trainer."""
        _around(module.Trainer, "create_accelerator_and_postprocess", after=self._keep)
        _around(module.Trainer, "__init__", before=lambda _: _register_callback(), after=self._add_callback)

    def _keep(self, trainer: Any) -> None:  # noqa: ANN401 - of a framework that may not be there
        self._accelerators.add(trainer.accelerator)

    def _add_callback(self, trainer: Any) -> None:  # noqa: ANN401
        from energy_plugins.transformers import EnergyCallback  # noqa: PLC0415 - the program has imported its framework

        self._keep(trainer)
        if not any(isinstance(callback, EnergyCallback) for callback in trainer.callback_handler.callbacks):
            EnergyCallback().attach(trainer)

    def _attach(self, accelerator: Any) -> None:  # noqa: ANN401
        from energy_plugins.accelerate import attach, attached  # noqa: PLC0415

        if accelerator in self._accelerators:
            return
        handle = attached(accelerator)
        if handle is None or (handle.report is not None and not handle.is_live):
            attach(accelerator)


def _register_tracker() -> None:
    import energy_plugins.accelerate  # noqa: F401, PLC0415


def _register_callback() -> None:
    import energy_plugins.transformers  # noqa: F401, PLC0415


def _nothing(_: object) -> None:
    pass


def _around(
    owner: type, name: str, *, before: Callable[[Any], None] = _nothing, after: Callable[[Any], None] = _nothing
) -> None:
    """Have functions called with the object before and after a method of it, whatever becomes of them."""
    method = getattr(owner, name, None)
    if method is None:
        warn(f"{owner.__name__} of this version has no {name}: its trainings are perhaps not measured")
        return

    @wraps(method)
    def wrapped(self: object, *args: object, **kwargs: object) -> object:
        _try(before, self)
        result = method(self, *args, **kwargs)
        _try(after, self)
        return result

    setattr(owner, name, wrapped)


def _try(function: Callable[[Any], None], of: object) -> None:
    try:
        function(of)
    except _FAILURES as error:
        warn(f"this training is not measured: {error}")
