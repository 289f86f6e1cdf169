"""The attempts in one training to find a batch size (``auto_find_batch_size``), and what those drew that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from accelerate.utils.memory import should_reduce_batch_size

from energy_plugins.training.guard import guarded
from energy_plugins.training.monitor import Monitor
from energy_plugins.training.replaced import Replaced
from energy_plugins.transformers.trainers import MAY_FAIL

if TYPE_CHECKING:
    from transformers.trainer import Trainer
    from transformers.training_args import TrainingArguments


class Attempts:
    """Knows how each attempt ends, whether or not it is measured.

    Args:
        monitor: measures them, one after the other.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.wasted_j = 0.0
        """Drawn by attempts of this training whose batch did not fit."""
        self._monitor = monitor
        self._replaced = Replaced()
        self._before_j = 0.0
        """What the monitor had counted when the present attempt began."""
        self._did_not_fit: int | None = None
        """The batch size of the attempt before the present one."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in this process only."""
        return {**self.__dict__, "_replaced": Replaced()}

    def give_up(self, error: Exception) -> None:
        """End the measurement because of ``error``."""
        self._monitor.give_up(error)

    def begin(self, trainer: Trainer | None, args: TrainingArguments, saved: Mapping[str, Any] | None) -> None:
        """Count from the joules that a checkpoint has ``saved``, and from those of attempts before this one."""
        self.end()
        batch_size: int | None = getattr(trainer, "_train_batch_size", None)
        if self._did_not_fit is None or batch_size is None or batch_size >= self._did_not_fit:
            self.wasted_j = 0.0  # those were of another training
        self._did_not_fit = None
        self._monitor.forget()
        if saved is not None:
            self._monitor.load(saved)
        self._monitor.earlier_j += self.wasted_j
        self._before_j = self._monitor.earlier_j
        if trainer is None or not self._monitor.config.measure.enabled:
            return
        failed = partial(self._failed, args, batch_size)
        for name in MAY_FAIL:
            if hasattr(trainer, name):
                self._replaced.cover(trainer, name, partial(_telling, failed))

    def end(self) -> None:
        """Put everything back."""
        self._replaced.close()

    @guarded
    def _failed(self, args: TrainingArguments, batch_size: int | None, error: BaseException) -> None:
        """Keep the report of what was done; if it was because the batch did not fit, a smaller one is tried next."""
        self.end()
        fits = not (args.auto_find_batch_size and isinstance(error, Exception) and should_reduce_batch_size(error))
        if not fits:
            self._monitor.note_stop(f"a batch of {batch_size} did not fit the GPU's memory")
        if self._monitor.run is not None:
            self._monitor.finish(show=fits, failed=True)
        if not fits:
            # What was counted, not what a report says: an attempt whose measuring failed has none.
            self.wasted_j += self._monitor.earlier_j - self._before_j
            self._before_j = self._monitor.earlier_j
            self._did_not_fit = batch_size


def _telling(
    failed: Callable[[BaseException], None], original: Callable[..., object], /, *args: object, **kwargs: object
) -> object:
    try:
        return original(*args, **kwargs)
    except BaseException as error:
        failed(error)
        raise
