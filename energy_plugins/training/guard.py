"""Keeping what goes wrong in measuring out of the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from energy_plugins.errors import EnergyError

FAILURES: tuple[type[Exception], ...] = (
    EnergyError,
    OSError,
    RuntimeError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What may go wrong in measuring, and in what a framework of another version no longer has."""

TROUBLE: tuple[type[Exception], ...] = (*FAILURES, RuntimeWarning)
"""The same where a warning may be an error."""


class GivesUp(Protocol):
    """Whoever can stop measuring in the middle of a training."""

    def give_up(self, error: Exception) -> None:
        """Stop measuring, and say why."""


_Self = TypeVar("_Self", bound=GivesUp)
_P = ParamSpec("_P")
_Hook = Callable[Concatenate[_Self, _P], None]


def guard(*more: type[Exception]) -> Callable[[_Hook[Any, _P]], _Hook[Any, _P]]:
    """Return a decorator for hooks: a failure inside (`FAILURES`, ``more``) ends the measurement, not the training."""
    failures = (*FAILURES, *more)

    def guarded(hook: _Hook[_Self, _P]) -> _Hook[_Self, _P]:
        @wraps(hook)
        def wrapped(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
            try:
                hook(self, *args, **kwargs)
            except failures as error:
                self.give_up(error)

        return wrapped

    return guarded


guarded = guard()


def warn(text: str) -> None:
    """Warn of something in measuring."""
    with suppress(RuntimeWarning):  # where warnings are errors, this one must still not end the training
        warnings.warn(f"energy: {text}", RuntimeWarning, stacklevel=4)
