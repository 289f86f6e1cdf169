"""The marks of a training loop."""

from __future__ import annotations

from collections.abc import Callable

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.spans import Kind


class Steps:
    """The marks of the training loop: a step for each batch, from the start of its fetch."""

    def __init__(self, meter: EnergyMeter, now_ns: Callable[[], int]) -> None:
        self._meter = meter
        self._now_ns = now_ns
        self._fetching_since_ns = 0
        self._fetch_ns: tuple[int, int] | None = None
        self.closed = 0
        """How many steps there have been, of which each is a row of the report."""
        self._is_open = False
        self._in_phases = False
        self._phase: Kind | None = None

    def fetch_begins(self) -> None:
        """Note the time and no more: a fetch that finds the data exhausted begins no step."""
        self._fetching_since_ns = self._now_ns()
        if self._fetch_ns is None:
            self._meter.expect(self._fetching_since_ns)

    def fetch_ends(self) -> None:
        """Keep the wait for the step it leads to, or mark it in the open step if the training step itself fetches."""
        begin_ns = self._fetching_since_ns if self._fetch_ns is None else self._fetch_ns[0]
        self._fetch_ns = (begin_ns, self._now_ns())
        if self._is_open:
            self._mark_wait(*self._fetch_ns)
            self._fetch_ns = None

    def open(self, *, in_phases: bool) -> None:
        """Begin a step at the start of its fetch, which for a loader without a length can be two fetches in a row."""
        if self._fetch_ns is None:
            self._meter.begin(Kind.STEP)
        else:
            self._meter.begin(Kind.STEP, at_ns=self._fetch_ns[0])
            self._mark_wait(*self._fetch_ns)
        self._fetch_ns = None
        self._meter.expect(None)
        self._is_open = True
        self._in_phases = in_phases
        self.enter(Kind.FORWARD)

    def enter(self, phase: Kind | None) -> None:
        """Go from one phase of the step to the next, or to none; nothing in steps that are marked as a whole."""
        if not self._in_phases:
            return
        if self._phase is not None:
            self._meter.end(self._phase)
        if phase is not None:
            self._meter.begin(phase)
        self._phase = phase

    def close(self, samples: int | None = None, tokens: int | None = None) -> None:
        """End the step, if one is open; a fetch that led to none is forgotten."""
        if self._is_open:
            self.enter(None)
            self._meter.end(Kind.STEP, samples=samples, tokens=tokens)
            self.closed += 1
        self._is_open = self._in_phases = False
        self._fetch_ns = None
        self._meter.expect(None)

    def _mark_wait(self, begin_ns: int, end_ns: int) -> None:
        self._meter.begin(Kind.DATA_WAIT, at_ns=begin_ns)
        self._meter.end(Kind.DATA_WAIT, event=False, at_ns=end_ns)
