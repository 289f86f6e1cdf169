"""Running sums over settled spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.attribution import Z95, SpanEnergy
from energy_plugins.measure.silence import Recovered
from energy_plugins.measure.spans import Closed, Step


@dataclass
class KindSum:
    """What one kind of work took so far."""

    count: int = 0
    duration_ns: int = 0
    energy_j: float = 0.0
    variance_j2: float = 0.0
    shift_j: float = 0.0
    covered_ns: float = 0.0

    @property
    def measured(self) -> bool:
        """Whether any of its time was measured, or there was none to measure."""
        return self.covered_ns > 0 or self.duration_ns == 0

    @property
    def error_bound_j(self) -> float:
        """95 % bound of the energy: what is independent from span to span averages out, what they share adds up."""
        return Z95 * float(np.sqrt(max(self.variance_j2, 0.0) + self.shift_j**2))

    def add(self, durations_ns: NDArray[np.int64], energy: SpanEnergy) -> None:
        """Add stretches of time and their energy."""
        self.duration_ns += int(durations_ns.sum())
        self.energy_j += float(np.nansum(energy.joules))
        self.variance_j2 += float(np.nansum((energy.error_bound_j / Z95) ** 2 - energy.shift_j**2))
        self.shift_j += float(np.nansum(energy.shift_j))
        self.covered_ns += float((durations_ns * energy.coverage).sum())


@dataclass
class StepSum:
    """Sums over the settled steps."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    data_wait_j: float = 0.0
    stall_j: float = 0.0
    saw_samples: bool = False
    saw_tokens: bool = False
    saw_waits: bool = False
    saw_stalls: bool = False
    lost_waits: bool = False
    """Whether there is one of which nothing was measured."""
    lost_stalls: bool = False


@dataclass
class StepRows:
    """Energies of a batch of closed steps."""

    steps: Sequence[Step]
    energy: SpanEnergy
    data_wait_j: NDArray[np.float64]
    stall_j: NDArray[np.float64]


@dataclass
class Totals:
    """What has been settled so far."""

    steps: StepSum = field(default_factory=StepSum)
    kinds: dict[int, KindSum] = field(default_factory=dict)
    """By code: the time during which a kind was the innermost one. They add up to the run."""
    phases: dict[int, KindSum] = field(default_factory=dict)
    """By code: whole spans of a kind, with everything inside them."""

    def add_steps(self, rows: StepRows) -> None:
        """Add settled steps."""
        total = self.steps
        total.steps += len(rows.steps)
        total.samples += sum(step.samples for step in rows.steps if step.samples >= 0)
        total.tokens += sum(step.tokens for step in rows.steps if step.tokens >= 0)
        total.saw_samples |= any(step.samples >= 0 for step in rows.steps)
        total.saw_tokens |= any(step.tokens >= 0 for step in rows.steps)
        total.saw_waits |= any(step.waits for step in rows.steps)
        total.saw_stalls |= any(step.stall is not None for step in rows.steps)
        lost = zip(rows.steps, np.isnan(rows.data_wait_j).tolist(), np.isnan(rows.stall_j).tolist(), strict=True)
        for step, wait_lost, stall_lost in lost:
            total.lost_waits |= bool(step.waits) and wait_lost
            total.lost_stalls |= step.stall is not None and stall_lost
        total.data_wait_j += float(np.nansum(rows.data_wait_j))
        total.stall_j += float(np.nansum(rows.stall_j))

    def add_spans(self, spans: Sequence[Closed], energy: SpanEnergy) -> None:
        """Add settled spans, whole."""
        codes = np.array([span.kind for span in spans])
        durations = np.array([span.end_ns - span.start_ns for span in spans], np.int64)
        for code in np.unique(codes).tolist():
            rows = codes == code
            entry = self.phases.setdefault(code, KindSum())
            entry.count += int(rows.sum())
            entry.add(durations[rows], energy.take(rows))

    def add_recovered(self, code: int, one: Recovered) -> None:
        """Add joules that no segment holds."""
        entry = self.kinds.setdefault(code, KindSum())
        entry.energy_j += one.energy_j
        entry.variance_j2 += one.error_j**2

    def add_segments(
        self,
        codes: NDArray[np.int64],
        durations_ns: NDArray[np.int64],
        energy: SpanEnergy,
        begun: NDArray[np.bool_],
    ) -> None:
        """Add settled segments, each of its innermost kind; one that has not ``begun`` goes on from an earlier call."""
        for code in np.unique(codes).tolist():
            rows = codes == code
            entry = self.kinds.setdefault(code, KindSum())
            entry.count += int((rows & begun).sum())
            entry.add(durations_ns[rows], energy.take(rows))
