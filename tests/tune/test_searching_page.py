"""What docs/searching.md has its readers write finds what it says, on a simulated GPU, and puts back what it found."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from energy_plugins.testing import Simulation

PAGE = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")
*LIMITS, MICRO_BATCH = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PRINTED = re.compile(r"^(\d+) (W|MHz): ([\d.]+)% less energy, ([\d.]+)% longer$", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_what_it_shows_finds_what_it_says(
    simulated: Callable[..., Simulation], capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = simulated(virtual=True)
    gpu = simulation.gpus[0]
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def busy() -> None:
        gpu.launch(ops=1.4e14, bytes=1.4e11, wait=True)

    def waiting() -> None:
        simulation.advance(0.2)
        gpu.launch(ops=9e12, bytes=1.5e11, wait=True)

    def truth(step: Callable[[], None]) -> tuple[float, float]:
        """Return a step's seconds and joules."""
        start_ns = simulation.clock.now_ns()
        step()
        end_ns = simulation.clock.now_ns()
        return (end_ns - start_ns) * 1e-9, gpu.true_energy_j(start_ns, end_ns)

    names: dict[str, Any] = {}
    for code, step, unit in zip(LIMITS, (busy, waiting), ("W", "MHz"), strict=True):
        names["train_step"] = step
        free_s, free_j = truth(step)
        exec(code, names)  # noqa: S102 - our own page
        assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == 700_000
        assert truth(step) == pytest.approx((free_s, free_j), rel=0.005)

        found = names["found"]
        assert found.binding
        if unit == "W":
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(found.limit_w * 1e3))
        else:
            pynvml.nvmlDeviceSetGpuLockedClocks(handle, round(found.clock_mhz), round(found.clock_mhz))
        slow_s, slow_j = truth(step)
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, 700_000)
        pynvml.nvmlDeviceResetGpuLockedClocks(handle)
        assert slow_s / free_s - 1 <= 0.055
        assert found.expected_slowdown == pytest.approx(slow_s / free_s - 1, abs=0.005)
        assert found.expected_saving == pytest.approx(1 - slow_j / free_j, abs=0.01)

    printed, said = PRINTED.findall(capsys.readouterr().out), PRINTED.findall(PAGE)
    for (value, unit, *shares), (value_said, unit_said, *shares_said) in zip(printed, said, strict=True):
        assert unit == unit_said
        assert float(value) == pytest.approx(float(value_said), rel=0.05)
        assert [*map(float, shares)] == pytest.approx([*map(float, shares_said)], abs=0.5)
    assert len(printed) == len(LIMITS)


def test_what_it_shows_of_micro_batches_finds_what_it_says(
    simulated: Callable[..., Simulation], capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = simulated(virtual=True)
    gpu = simulation.gpus[0]
    names: dict[str, Any] = {}

    def train_step() -> None:
        if names["micro_batch"] > 128:
            raise MemoryError
        simulation.advance(256 // names["micro_batch"] * 0.015)
        gpu.launch(ops=1e14, bytes=1e11, wait=True)

    def step_j(size: int) -> float:
        names["micro_batch"] = size
        start_ns = simulation.clock.now_ns()
        train_step()
        return gpu.true_energy_j(start_ns, simulation.clock.now_ns())

    window = LIMITS[0].partition("\n\ndef at_limit")[0]
    names["train_step"] = train_step
    exec(window, names)  # noqa: S102 - our own page
    exec(MICRO_BATCH, names)  # noqa: S102 - our own page
    found = names["found"]
    assert found.size == 128
    assert found.expected_saving == pytest.approx(1 - step_j(128) / step_j(8), abs=0.01)

    printed = capsys.readouterr().out
    said = PAGE.partition("it prints:\n\n```\n128 of")[2].partition("```")[0]
    assert NUMBER.sub("n", printed) == NUMBER.sub("n", f"128 of{said}")
    numbers, numbers_said = ([float(number) for number in NUMBER.findall(text)] for text in (printed, f"128 of{said}"))
    assert numbers == pytest.approx(numbers_said, rel=0.05)
