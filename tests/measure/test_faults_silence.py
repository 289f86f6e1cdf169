"""Stretches without samples: their joules are what the counter says, and no step is guessed."""

from __future__ import annotations

import numpy as np
import pytest
from faulty import BLOCK_S, Outcome, measured, quietly
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import COUNTER, POWER_W, SAMPLES, Simulated

from energy_plugins.measure.attribution import Z95
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.power_sensors import SAMPLE_BUFFER
from energy_plugins.testing import (
    Constant,
    CounterReset,
    Fault,
    GpuLost,
    Hang,
    NoCounter,
    NoPermission,
    NoSampleBuffer,
    Script,
    WallClockStep,
    simulated_gpus,
)

RISING = Script([(30, 300.0), (30, 650.0), (600, 150.0)], repeat=False)
SPLIT_J = np.sqrt(2) * Z95 * SAMPLE_BUFFER.model.unanchored * BLOCK_S * 650.0
"""How far it may be unknown, at most, what of a counter's sum was drawn in a silence and what beside it: as far as the
samples beside it may be off, once for either part."""


def silent(simulated: Simulated, *faults: Fault, steps: int = 900) -> Outcome:
    return measured(simulated(RISING, virtual=True, start_s=10, faults=faults), steps)


@pytest.mark.parametrize(
    ("fault", "quiet_s"),
    [
        (GpuLost(15, 18), 3),
        (GpuLost(18, 24), 6),
        (GpuLost(12, 30), 18),
        (GpuLost(15, 75), 60),
        (NoSampleBuffer(15, 75), 60),
        (NoPermission(SAMPLES, 15, 35), 20),
        (Hang(SAMPLES, 10, 15, 17.5), 10),
        (Hang(COUNTER, 50, 15, 40), 50),  # the counter is read after 10 s, and then after 24 to 30 s more
    ],
)
def test_no_joule_that_the_counter_saw_is_lost(simulated: Simulated, fault: Fault, quiet_s: float) -> None:
    outcome = silent(simulated, fault)
    lasted_s = outcome.report.duration_s
    assert (1 - outcome.report.coverage) * lasted_s == pytest.approx(quiet_s, abs=3)
    assert outcome.error_j() <= outcome.bound_j < SPLIT_J
    assert outcome.error_j() < 1e-3 * outcome.true_j
    assert outcome.says("the energy counter tells their joules") == 1
    whole = {phase.kind: phase for phase in outcome.report.phases}
    assert whole["fit"].energy_j == pytest.approx(outcome.true_j, rel=0.01)


@pytest.mark.parametrize("fault", [GpuLost(15, 16), NoSampleBuffer(15, 16), NoPermission(SAMPLES, 15, 16)])
def test_a_silence_that_the_driver_buffers_over_costs_nothing(simulated: Simulated, fault: Fault) -> None:
    outcome = silent(simulated, fault)
    assert outcome.report.coverage > 0.99
    assert outcome.error_j() <= outcome.bound_j < 1e-3 * outcome.true_j
    assert outcome.says("had no power samples") == 0


def test_what_is_recovered_goes_to_spans_that_hold_the_whole_silence_and_to_no_other(simulated: Simulated) -> None:
    simulation = simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[GpuLost(10, 50)])
    with quietly(), EnergyMeter() as meter, meter.span("epoch"):
        with meter.span("first"):
            simulation.advance(30)
        with meter.span("second"):
            simulation.advance(40)
    report = meter.report()
    whole = {phase.kind: phase for phase in report.phases}
    assert whole["epoch"].energy_j == pytest.approx(70 * POWER_W, rel=0.01)
    for name in ("first", "second"):
        covered_j = whole[name].coverage * whole[name].duration_s * POWER_W
        assert whole[name].energy_j == pytest.approx(covered_j, rel=0.03)
    kinds = {kind.kind: kind.energy_j or 0.0 for kind in report.kinds}
    assert kinds["unattributed"] == pytest.approx(0.55 * 70 * POWER_W, rel=0.1)
    assert sum(kinds.values()) == pytest.approx(report.total_j, rel=1e-9)


def test_a_gpu_that_is_back_is_noticed_within_5_s(simulated: Simulated) -> None:
    outcome = silent(simulated, GpuLost(10, 70))
    energy_j, end_s = outcome.report.steps["energy_j"], outcome.report.steps["end_s"]
    again_s = end_s[np.isfinite(energy_j) & (end_s > 40)].min()
    assert again_s <= 70 + 5.0


def test_a_gpu_that_is_back_just_before_the_end_tells_its_sum(simulated: Simulated) -> None:
    outcome = silent(simulated, GpuLost(20, 88.5), steps=900)
    assert outcome.error_j() <= outcome.bound_j < 0.05 * outcome.true_j


def test_a_gpu_that_stays_lost_does_not_take_the_others_along(simulated: Simulated) -> None:
    simulation = simulated([Constant(200), Constant(500)], virtual=True, start_s=10)
    simulation.gpus[1].inject(GpuLost(20))
    outcome = measured(simulation)
    kept, lost = (outcome.report.gpu_j[gpu.uuid] for gpu in simulation.gpus)
    assert kept == pytest.approx(outcome.report.duration_s * 200, rel=2e-3)
    assert lost == pytest.approx(20 * 500, rel=0.1)
    assert outcome.says("are missing from the total") == 1


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 0.4, -0.4, 40.0, -40.0])
def test_a_wall_clock_that_is_set_costs_next_to_nothing(simulated: Simulated, seconds: float) -> None:
    simulation = simulated(RISING, virtual=True, start_s=10)

    def between(number: int) -> None:
        if number in {200, 420}:
            simulation.gpus[0].inject(WallClockStep(seconds if number == 200 else -2 * seconds))

    outcome = measured(simulation, between=between)
    assert outcome.error_j() <= max(outcome.bound_j, 0.005 * outcome.true_j)
    assert outcome.report.coverage > 0.97


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    faults=st.lists(
        st.builds(lambda at_s, back_s: GpuLost(at_s, at_s + back_s), st.floats(0.0, 50.0), st.floats(0.5, 30.0))
        | st.builds(
            lambda at_s, back_s: NoSampleBuffer(at_s, at_s + back_s), st.floats(2.0, 50.0), st.floats(0.5, 30.0)
        )
        | st.builds(lambda at_s, back_s: NoCounter(at_s, at_s + back_s), st.floats(2.0, 50.0), st.floats(0.5, 30.0))
        | st.builds(lambda s, at_s, for_s: Hang(SAMPLES, s, at_s, at_s + for_s), *[st.floats(0.1, 6.0)] * 3),
        max_size=4,
    ),
    reset_s=st.none() | st.floats(0.0, 60.0),
)
def test_whatever_is_lost_and_when_no_number_is_wrong(seed: int, faults: list[Fault], reset_s: float | None) -> None:
    rng = np.random.default_rng(seed)
    load = Script([(float(rng.uniform(0.15, 8.0)), float(rng.uniform(120, 700))) for _ in range(30)])
    with simulated_gpus(load, virtual=True, start_s=10, seed=seed) as simulation:
        for fault in [*faults, *([] if reset_s is None else [CounterReset(reset_s)])]:
            simulation.gpus[0].inject(fault)
        outcome = measured(simulation, 120, 0.5)
        missing_s = (1 - outcome.report.coverage) * outcome.report.duration_s
        # Not more than was drawn, and short by no more than what the gaps can have held.
        if outcome.report.total_j is not None:
            assert outcome.true_j - outcome.total_j <= outcome.bound_j + missing_s * 700
