"""What happens inside a Trainer and has no event: fetching, forward and backward, evaluating, saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from energy_plugins.measure.spans import Kind
from energy_plugins.training.batch import Work
from energy_plugins.training.guard import guarded
from energy_plugins.training.measured import Measured
from energy_plugins.training.monitor import Monitor

Original = Callable[..., Any]


class Inside:
    """Puts itself over a trainer's own functions for the time of a run; each still does what it did.

    Args:
        monitor: told what is going on.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.work = Work()
        """Of the optimizer step that runs."""
        self.evaluating = False

    def give_up(self, error: Exception) -> None:
        """End the measurement because of ``error``."""
        self._monitor.give_up(error)

    def enter(self, run: Measured, trainer: object) -> None:
        """Do so until ``run`` is over.

        Args:
            run: the run.
            trainer: a Trainer; of a function that it does not have, there will be no news.
        """
        ours: dict[str, Original] = {
            "get_batch_samples": self._fetching,
            "training_step": self._in_training_step,
            "compute_loss": self._in_forward,
            "evaluate": self._in_evaluation,
            "_save_checkpoint": self._saving,
        }
        for name, function in ours.items():
            if hasattr(trainer, name):
                run.replaced.cover(trainer, name, function)

    def _fetching(self, original: Original, /, *args: object, **kwargs: object) -> object:
        self._monitor.fetch_begins()
        try:
            return original(*args, **kwargs)
        finally:
            self._monitor.fetch_ends()

    def _in_training_step(self, original: Original, /, *args: object, **kwargs: object) -> object:
        if self.work.batches:
            self._monitor.enter(Kind.FORWARD)  # the first began with the step
        self._note_work(kwargs.get("inputs", args[1] if len(args) > 1 else None))
        loss = original(*args, **kwargs)
        self._monitor.enter(None)
        return loss

    @guarded
    def _note_work(self, batch: object) -> None:
        self.work.add(batch)

    def _in_forward(self, original: Original, /, *args: object, **kwargs: object) -> object:
        loss = original(*args, **kwargs)
        self._monitor.enter(Kind.BACKWARD)
        return loss

    def _in_evaluation(self, original: Original, /, *args: object, **kwargs: object) -> object:
        if self.evaluating:  # of several data sets: the trainer calls itself for each
            return original(*args, **kwargs)
        self.evaluating = True
        try:
            with self._span(Kind.VALIDATE):
                return original(*args, **kwargs)
        finally:
            self.evaluating = False

    def _saving(self, original: Original, /, *args: object, **kwargs: object) -> object:
        with self._span(Kind.CHECKPOINT):
            return original(*args, **kwargs)

    @contextmanager
    def _span(self, kind: Kind) -> Iterator[None]:
        self._monitor.begin(kind)
        try:
            yield
        finally:
            self._monitor.end(kind)
