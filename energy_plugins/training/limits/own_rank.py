"""One rank's part in trying limits: its knob, and what it tells of its steps. Nothing here raises."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from energy_plugins.measure.drivers import current_drivers
from energy_plugins.training.guard import TROUBLE, warn
from energy_plugins.training.limits.knob import SharedKnob
from energy_plugins.training.measured import Measured
from energy_plugins.training.step_window import Heard, Told, WindowNs

T = TypeVar("T")


class OwnRank:
    """What one rank turns and measures: `what`.

    Args:
        knob: of its GPUs; None if it has none of its own.
        measured: the run; None if nothing is measured.
        other: makes the knob to take where the first cannot do anything; None if there is no other.
    """

    what = "the power limit"

    def __init__(
        self, knob: SharedKnob | None, measured: Measured | None, other: Callable[[], SharedKnob] | None = None
    ) -> None:
        self.knob = knob
        self._other = other
        self.trouble = "" if measured is not None else "nothing is measured"
        """Why this rank can neither turn nor tell; empty if it can."""
        self.steps = 0
        """Made so far."""
        self.turned_ns = 0
        self.turn_s = 0.0
        """What turning took of the training thread."""
        self._clock = current_drivers().clock
        self._began_ns = self._clock.now_ns()
        self._measured = measured
        self._heard: Heard | None = None
        if measured is not None and measured.meter.run is not None:
            queue = measured.meter.run.listen_to_steps()
            self._heard = Heard(queue, lambda: measured.step_ends, first=measured.steps.closed)

    def now_ns(self) -> int:
        """Return the time."""
        return self._clock.now_ns()

    @property
    def why_not(self) -> str:
        """Why this rank can not turn and tell, empty if it can."""
        return self.trouble or ("" if self.knob is None else self.knob.why_not)

    @property
    def elapsed_s(self) -> float:
        """Since the first step began, about."""
        return (self._clock.now_ns() - self._began_ns) * 1e-9

    def open(self) -> None:
        """Find the limits."""
        if self.knob is not None and not self.trouble:
            self.knob.open()

    def take_other(self) -> None:
        """Let go of the knob, and take the other one, if there is one."""
        other, self._other = self._other, None
        if other is not None and self.knob is not None and not self.trouble:
            self.knob.close()
            self.knob = other()
            self.knob.open()

    def turn(self, value: float, *, exact: bool = False) -> None:
        """Set the knob; if that fails, what was found is put back, and this rank says so from now on."""
        if self.knob is not None and not self.trouble:
            knob, began_s = self.knob, time.perf_counter()
            self._try(lambda: knob.turn(value, exact=exact), None)
            self.turn_s += time.perf_counter() - began_s
        self.turned_ns = self.now_ns()

    def let_settle(self) -> None:
        """Take note that others turn theirs: steps of all ranks count again once all have settled."""
        self.turned_ns = self.now_ns()

    def told(self, window: WindowNs, least: int) -> Told:
        """Return what the steps of a window tell, at least so many of them."""
        run = None if self._measured is None else self._measured.meter.run
        if self.trouble or self._heard is None or run is None:
            return Told(1.0)
        heard = self._heard
        if run.live().t_ns < window.closed_ns:
            return Told(0.0)
        if self.knob is not None:
            self._try(self.knob.check, None)
        told = self._try(lambda: Told.of(heard.steps(window), least), Told(1.0))
        if self.trouble:
            return Told(1.0)
        if self._measured is not None and not self._measured.place.counts:
            return told._replace(energy_j=0.0, energy_sem=0.0, drawn_w=0.0)  # they are another rank's joules
        return told

    def left_s(self, step_s: float) -> float | None:
        """Return how long the training will still take, None if its end is not known."""
        measured = self._measured
        return None if measured is None else self._try(lambda: measured.left_s(step_s), None)

    def lose(self, why: str) -> None:
        """Measure no more."""
        self.trouble = self.trouble or why
        self._measured = self._heard = None

    def _try(self, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except TROUBLE as error:
            self.trouble = str(error)
            if self.knob is not None:
                self.knob.close()
            warn(f"{self.what} is given up, training goes on: {error}")
            return otherwise
