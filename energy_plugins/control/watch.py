"""A look at the GPU now and then, off the training thread: a call of the driver takes up to milliseconds there."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from energy_plugins.measure.drivers import Clock

_JOIN_S = 0.3


class Watch:
    """Calls ``look`` every ``every_s`` seconds from `begin` to `end`: on a thread, if time passes by itself.

    It does not keep alive whose method ``look`` is: with a forgotten one, it ends.
    """

    def __init__(self, look: Callable[[], None], every_s: float, clock: Clock) -> None:
        self._look = weakref.WeakMethod(look)
        self._every_s = every_s
        self._clock = clock
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Look from now on."""
        if self._clock.threaded:
            self._thread = threading.Thread(target=self._run, name="energy-limit-watch", daemon=True)
            self._thread.start()
        else:
            self._clock.attach(self._tick)

    def end(self) -> None:
        """Look no more; a look that hangs in the driver is left behind."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        else:
            self._clock.detach(self._tick)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._look_once()

    def _tick(self, now_ns: int) -> int:
        self._look_once()
        return now_ns + round(self._every_s * 1e9)

    def _look_once(self) -> None:
        look = self._look()
        if look is None:
            self._ended.set()
        else:
            look()
