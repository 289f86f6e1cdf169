"""Work that may never return, done aside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what ``work`` returns, or raise what it raises.

    It runs on a thread of its own. One that hangs is left behind, and what it may still return is dropped there.

    Raises:
        TimeoutError: it did not return within ``seconds``.
    """
    returned: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            returned.append(work())
        except Exception as error:  # noqa: BLE001 - whoever waits raises it again
            raised.append(error)

    aside = threading.Thread(target=run, name="energy-aside", daemon=True)
    aside.start()
    aside.join(seconds)
    if raised:
        raise raised.pop()
    if not returned:
        message = f"no answer within {seconds:g} s"
        raise TimeoutError(message)
    return returned.pop()
