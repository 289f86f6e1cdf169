"""Work on which a power limit saves something, and GPUs seen from outside. Time is virtual: a search takes no while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from controlling import limit_w, operator_sets

from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation, simulated_gpus

__all__ = ["limit_w", "operator_sets"]

FOUND_W = 690.0
"""What an operator has set before: neither the default nor the highest."""
STEP = {"ops": 4e14, "bytes": 4.3e12}
"""A second for the memory, and half of one for the arithmetic: clocks may fall by half before steps take longer."""
OTHER = {"ops": 1e15, "bytes": 8e11}
"""A quarter more, and for the arithmetic: slower clocks make it longer."""
SHARE = 0.3
"""Of a short training that may go into the search."""
STEPS = 260


@contextmanager
def limited_gpu(**settings: Any) -> Iterator[Simulation]:
    """Give simulated GPUs on which an operator has set a limit, in virtual time."""
    with simulated_gpus(virtual=True, start_s=10, **settings) as simulation:
        for index in range(len(simulation.gpus)):
            operator_sets(FOUND_W, index)
        yield simulation


def work(simulation: Simulation, **ops: float) -> Callable[[int], None]:
    """Return what a step does on the GPU, and waits for."""
    (gpu,) = simulation.gpus
    return lambda _: gpu.launch(**(ops or STEP), wait=True)


def limits_during(simulation: Simulation, seen: list[float], **ops: float) -> Callable[[int], None]:
    """Return the same, and note the limit of each step."""
    do = work(simulation, **ops)

    def noting(step: int) -> None:
        seen.append(limit_w())
        do(step)

    return noting


def part_of(report: Report | None) -> LimitPart:
    """Return what a report says of the limit."""
    assert report is not None
    assert report.power_limit is not None
    return report.power_limit


def assert_saved(limited: Report, plain: Report) -> None:
    """Check that a training under the limit chosen drew less than without one, and kept its promise."""
    part = part_of(limited)
    assert plain.power_limit is None
    assert limited.total_j is not None
    assert plain.total_j is not None
    assert limited.total_j < 0.92 * plain.total_j
    late = slice(limited.steps.rows // 2, None)
    lengths = [float((one.steps["end_s"] - one.steps["start_s"])[late].mean()) for one in (limited, plain)]
    assert lengths[0] <= 1.035 * lengths[1]
    energies = [float(one.steps["energy_j"][late].mean()) for one in (limited, plain)]
    assert part.expected_saving is not None
    assert 1 - energies[0] / energies[1] > 0.1
    assert abs(1 - energies[0] / energies[1] - part.expected_saving) < 0.02
