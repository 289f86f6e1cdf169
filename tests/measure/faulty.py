"""What the tests of faults share: a training on simulated GPUs in virtual time, and what must be true of its report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pynvml
import pytest
from numpy.typing import NDArray

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation

BLOCK_S = 30
"""Between two readings of the counter, at most (csrc/device.cpp)."""

Between = Callable[[int], None]
"""Called before each step with its number."""


@dataclass(frozen=True)
class Outcome:
    """A report, beside what was true."""

    report: Report
    start_ns: int
    true_j: float
    """What the GPUs drew in the window."""
    step_j: NDArray[np.float64]
    """What they drew in each step."""

    @property
    def total_j(self) -> float:
        """Of the report."""
        assert self.report.total_j is not None
        return self.report.total_j

    @property
    def bound_j(self) -> float:
        """Of the report."""
        assert self.report.error_bound_j is not None
        return self.report.error_bound_j

    def says(self, text: str) -> int:
        """Return how many warnings say ``text``."""
        return sum(text in warning for warning in self.report.warnings)

    def error_j(self) -> float:
        return abs(self.total_j - self.true_j)


@contextmanager
def quietly() -> Iterator[None]:
    """Let warnings be, which the report repeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def measured(
    simulation: Simulation,
    steps: int = 600,
    step_s: float = 0.1,
    between: Between | None = None,
    held: float = 0.95,
) -> Outcome:
    """Train; every step is inside a span "fit" and looks at its progress. What comes of it is honest.

    ``held`` is the share of covered steps that must be within their bound.
    """
    clock = simulation.clock
    with quietly(), EnergyMeter() as meter, meter.span("fit"):
        start_ns = clock.now_ns()
        for number in range(steps):
            if between is not None:
                between(number)
            with meter.step(samples=1):
                simulation.advance(step_s)
            meter.latest()
        end_ns = clock.now_ns()
    report = meter.report()
    bounds = [
        (start_ns + round(begin_s * 1e9), start_ns + round(end_s * 1e9))
        for begin_s, end_s in zip(report.steps["start_s"].tolist(), report.steps["end_s"].tolist(), strict=True)
    ]
    outcome = Outcome(
        report=report,
        start_ns=start_ns,
        true_j=truth_j(simulation, start_ns, end_ns),
        step_j=np.array([truth_j(simulation, *bound) for bound in bounds]),
    )
    assert report.steps.rows == report.work.steps == steps
    assert_honest(outcome, held)
    return outcome


def truth_j(simulation: Simulation, start_ns: int, end_ns: int) -> float:
    """Return what all GPUs drew."""
    return sum(gpu.true_energy_j(start_ns, end_ns) for gpu in simulation.gpus)


def assert_honest(outcome: Outcome, held: float = 0.95) -> None:
    """Assert that nothing is wrong: steps within their bounds, sums that are sums, nothing that is None and is 0."""
    report, total_j = outcome.report, outcome.report.total_j
    energy_j, coverage, bound_j = (report.steps[name] for name in ("energy_j", "coverage", "error_bound_j"))
    assert report.complete
    assert "no reason was recorded" not in str(report)
    assert {f"gpu_j {uuid}" for uuid, joules in report.gpu_j.items() if joules is None and total_j} <= set(
        report.missing
    )
    for waste_j, each_j in ((report.data_wait_j, "data_wait_j"), (report.stall_j, "stall_j")):
        assert waste_j != 0 or not np.isnan(report.steps[each_j][1:]).any()
    assert (np.isnan(energy_j) == (coverage == 0)).all()
    covered = coverage >= 1 - 1e-9
    if covered.any():
        assert (np.abs(energy_j - outcome.step_j) <= bound_j)[covered].mean() >= held
    if total_j is None:
        assert "total_j" in report.missing
        assert not np.isfinite(energy_j).any()
        return
    assert sum(kind.energy_j or 0.0 for kind in report.kinds) == pytest.approx(total_j, rel=1e-9)
    assert sum(joules or 0.0 for joules in report.gpu_j.values()) == pytest.approx(total_j, rel=1e-9)
    whole_j = {phase.kind: phase.energy_j for phase in report.phases}
    assert whole_j["run"] == pytest.approx(total_j, rel=1e-9)
    # What was lost can only be missing; the bound is one of 95 %.
    assert total_j <= outcome.true_j + 1.5 * (report.error_bound_j or 0.0)
    assert len(report.warnings) <= 12 * max(len(report.gpu_j), 1)
    assert len(set(report.warnings)) == len(report.warnings)


def shut_down() -> None:
    """Call nvmlShutdown until nobody's NVML is open."""
    for _ in range(50):
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError_Uninitialized:
            return
    raise AssertionError("the driver cannot be shut down")
