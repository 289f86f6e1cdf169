"""Work that may never return, done aside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """Work that has begun on a thread of its own. If it hangs it is left behind, and what it may yet return is dropped.

    So is the work of one that nobody asks for its result.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._returned: list[T] = []
        self._raised: list[Exception] = []
        # Bound to the lists alone: what comes back late must not be kept by anybody.
        self._thread = threading.Thread(
            target=_run, args=(work, self._returned, self._raised), name="energy-aside", daemon=True
        )
        self._thread.start()

    def within(self, seconds: float) -> T:
        """Return what the work returns, or raise what it raises; to be called once.

        Raises:
            TimeoutError: it does not return within ``seconds`` from now.
        """
        self._thread.join(seconds)
        if self._raised:
            raise self._raised.pop()
        if not self._returned:
            message = f"no answer within {seconds:g} s"
            raise TimeoutError(message)
        return self._returned.pop()


def _run(work: Callable[[], T], returned: list[T], raised: list[Exception]) -> None:
    try:
        returned.append(work())
    except Exception as error:  # noqa: BLE001 - whoever waits raises it again
        raised.append(error)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what ``work`` returns, or raise what it raises; TimeoutError if it does not within ``seconds``."""
    return Aside(work).within(seconds)
