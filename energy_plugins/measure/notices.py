"""What a run has to say: each sentence once, as a warning and in the report."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from energy_plugins.errors import EnergyError


class Notices:
    """Says what goes wrong, and keeps it from ending the training."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        """What was said so far."""
        return tuple(self._said)

    def say(self, text: str) -> None:
        """Say ``text``, unless it has been said."""
        if text not in self._said:
            self._said[text] = None
            with suppress(RuntimeWarning):  # where warnings are errors, this one must still not end the training
                warnings.warn(f"energy: {text}", RuntimeWarning, stacklevel=4)

    @contextmanager
    def kept_from_training(self) -> Iterator[None]:
        """Be the one boundary: what goes wrong between readings and joules ends neither the training nor the report."""
        try:
            yield
        except (
            EnergyError,
            ArithmeticError,
            AssertionError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            self.say(f"some readings could not be turned into joules: {type(error).__name__}: {error}")
