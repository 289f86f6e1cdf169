"""One run of a training while it is being measured."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.forecast import Forecast, Limits, Pace, Position, batches_left, in_short
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.spans import Kind
from energy_plugins.training.figures import figures
from energy_plugins.training.guard import FAILURES
from energy_plugins.training.place import Place
from energy_plugins.training.replaced import Replaced
from energy_plugins.training.steps import Steps
from energy_plugins.units import j_to_kwh

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report

Outlook = Callable[[], tuple[Limits, Position]]
"""What may end a training, and where it stands."""


_MOST_STEPS = 100_000
"""That are remembered: more are in no window."""


class Measured:
    """One fit, validate, test or predict that is being measured: whatever lives only as long as it.

    Args:
        meter: started.
        place: where it measures, and with whom.
        fitting: whether it is a fit, which has a span of its own and adds to what the training drew.
        outlook: asked when a forecast is made.
    """

    def __init__(self, meter: EnergyMeter, place: Place, *, fitting: bool, outlook: Outlook) -> None:
        self.key = uuid.uuid4().hex
        self.owner = os.getpid()
        self.meter = meter
        self.place = place
        self.fitting = fitting
        self.steps = Steps(meter, current_drivers().clock.now_ns)
        self.replaced = Replaced()
        self.made = 0
        """Steps."""
        self.samples: int | None = None
        """Of the last step."""
        self.drawn_j = 0.0
        self.in_short = ""
        """What a progress bar shows."""
        self.rows_a_step = 1
        """Rows of the report that make an optimizer step, as a rule."""
        self.step_ends: deque[int] | None = None
        """Before which row each optimizer step began; None while a row is looked at as a step."""
        self._outlook = outlook
        self._pace = Pace()
        if fitting:
            meter.begin(Kind.FIT)

    def group_steps(self, rows: int) -> None:
        """From now on look at optimizer steps, of about so many rows of the report each; one begins now."""
        self.rows_a_step = rows
        self.step_ends = deque([self.steps.closed], maxlen=_MOST_STEPS)

    def stepped(self) -> None:
        """Note that an optimizer step has ended with the last row."""
        if self.step_ends is not None:
            self.step_ends.append(self.steps.closed)

    def figures(self, earlier_j: float, *, peek: bool = True) -> dict[str, float]:
        """Return the latest figures by the key under which they are logged; what is not known is left out.

        Means over steps begin where the last call without ``peek`` ended.
        """
        return figures(self.meter.latest(peek=peek), earlier_j if self.fitting else 0.0)

    def forecast(self) -> Forecast | None:
        """Return what to expect of this run, None while too little is known or if its end is not."""
        progress = self.meter.latest(peek=True)
        if progress is None:
            return None
        self._pace = self._pace.seen(progress.spent)
        limits, position = self._outlook()
        left = batches_left(limits, position)
        return self._pace.forecast(left, made=self.made, seconds_left=limits.seconds_left)

    def left_j(self) -> float | None:
        """Return what this run will still draw, as `forecast` has it."""
        forecast = self.forecast()
        return None if forecast is None else max(forecast.energy_j - self.meter.drawn_j(), 0.0)

    def left_s(self, step_s: float) -> float | None:
        """Return how long this run will still take at ``step_s`` for a step, None if its end is not known."""
        limits, position = self._outlook()
        left = batches_left(limits, position)
        known = [limits.seconds_left, None if left is None else left * step_s / self.rows_a_step]
        return min((seconds for seconds in known if seconds is not None), default=None)

    def prospects(self, earlier_j: float) -> dict[str, float]:
        """Return the forecast by the keys under which it is logged, and have the progress bar show it."""
        progress, forecast = self.meter.latest(peek=True), self.forecast()
        if progress is not None:
            self.in_short = in_short(progress.total_j + earlier_j, forecast, earlier_j)
        if forecast is None:
            return {}
        return {
            "energy/forecast_kwh": j_to_kwh(forecast.energy_j + earlier_j),
            "energy/forecast_s": forecast.left_s,
        }

    def note_drawn(self) -> None:
        """Look what was drawn until now; if that fails, what was seen last counts."""
        with suppress(*FAILURES):
            self.drawn_j = self.meter.drawn_j()

    def finish(self, *, failed: bool) -> Report:
        """Put everything back, stop the meter and return its report; on rank 0 with those of all ranks.

        That waits up to 10 s for the others, unless the training has ``failed``.
        """
        try:
            self._close(failed=failed)
            report = self.meter.report()
        except BaseException:
            self.place.abandon()
            raise
        exchange = self.place.exchange
        return report if exchange is None else exchange.finish(report, self.place.folder, failed=failed)

    def drop(self) -> None:
        """Put everything back and stop the meter, whose report nobody will ask for."""
        self.place.abandon()
        self._close(failed=False)

    def _close(self, *, failed: bool) -> None:
        self.replaced.close()
        try:
            self.steps.close()
            if self.fitting:
                self.meter.end(Kind.FIT)
        finally:
            self.meter.stop(failed=failed)
