"""Many GPUs and many spans: nothing is lost, and memory does not know how long the run was."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from faulty import measured
from measuring import POWER_W, Simulated

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant, GpuLost, Simulation

SPANS = 120_000
"""benchmarks/limits.py marks 10,000,000."""


def test_64_gpus_are_measured_by_one_meter(simulated: Simulated) -> None:
    simulation = simulated([Constant(100.0 + 8 * number) for number in range(64)], virtual=True, start_s=10)
    simulation.gpus[7].inject(GpuLost(at_s=20, back_s=31))
    simulation.gpus[40].inject(GpuLost(at_s=25))
    outcome = measured(simulation, 120, 0.5)
    report = outcome.report
    lost = {simulation.gpus[7].uuid, simulation.gpus[40].uuid}
    for number, gpu in enumerate(simulation.gpus):
        if gpu.uuid not in lost:
            assert report.gpu_j[gpu.uuid] == pytest.approx((100 + 8 * number) * report.duration_s, rel=0.01)
    assert report.gpu_j[simulation.gpus[7].uuid] == pytest.approx((100 + 8 * 7) * report.duration_s, rel=0.02)
    assert report.coverage == pytest.approx(1 - (11 / 60 + 35 / 60) / 64, abs=0.005)
    assert report.observer.driver_call_s < 0.3 * report.duration_s  # as an H200 would take


def test_memory_and_folder_do_not_mind_many_spans(virtual: Simulation, tmp_path: Path) -> None:
    sizes = []  # how much waits to be settled at a look is chance: the largest of several is not
    tracemalloc.start()
    try:
        with EnergyMeter(folder=tmp_path / "run") as meter:
            for number in range(1, SPANS + 1):
                with meter.span("forward" if number % 2 else "backward"):
                    virtual.advance(0.001)
                if number % (SPANS // 24) == 0:
                    sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes[16:]) - max(sizes[8:16]) < 1_000_000, sizes  # a third of the spans would take 6 MB
    loaded = Report.load(tmp_path / "run")
    assert loaded.spans.rows == SPANS + 1
    energy_j = loaded.spans["energy_j"]
    assert isinstance(energy_j.base, np.memmap)
    assert np.isfinite(energy_j).all()
    forward = {phase.kind: phase for phase in loaded.phases}["forward"]
    assert forward.count == SPANS // 2
    assert forward.energy_j == pytest.approx(forward.duration_s * POWER_W, rel=0.01)
