"""A counter that does what counters must not do costs the sum of the stretch in which it does it, and no other."""

from __future__ import annotations

import pytest
from faulty import BLOCK_S, Between, Outcome, measured, truth_j
from measuring import POWER_W, SECOND, Simulated

from energy_plugins.measure.attribution import Z95
from energy_plugins.measure.power_sensors import SAMPLE_BUFFER
from energy_plugins.testing import Constant, CounterJump, CounterReset, Fault, GpuLost, Script, Simulation

RISING = Script([(30, 300.0), (30, 600.0), (600, 200.0)], repeat=False)


def one_block_rests_on_samples(simulation: Simulation, outcome: Outcome, at_s: float) -> bool:
    """Return whether the bound is that of samples alone for the block that holds ``at_s``, and little beyond."""
    at_ns = outcome.start_ns + round(at_s * SECOND)
    starts_ns = range(at_ns - BLOCK_S * SECOND, at_ns + 1, SECOND)
    most_j = max(truth_j(simulation, start_ns, start_ns + BLOCK_S * SECOND) for start_ns in starts_ns)
    return outcome.error_j() <= outcome.bound_j <= Z95 * SAMPLE_BUFFER.model.unanchored * most_j


@pytest.mark.parametrize("at_s", [0.0, 0.4, 7.0, 25.0, 41.0, 59.9])
def test_a_reset_costs_no_other_block_its_sum(simulated: Simulated, at_s: float) -> None:
    simulation = simulated(RISING, virtual=True, start_s=10, faults=[CounterReset(at_s)])
    outcome = measured(simulation)
    assert outcome.report.coverage == pytest.approx(1)
    assert one_block_rests_on_samples(simulation, outcome, at_s)
    assert outcome.says("went backwards") == 1


def test_many_resets_are_one_warning(simulated: Simulated) -> None:
    resets = [CounterReset(float(at_s)) for at_s in range(5, 55, 7)]
    outcome = measured(simulated(Constant(POWER_W), virtual=True, start_s=10, faults=resets))
    assert outcome.says("went backwards") == 1
    assert outcome.error_j() <= outcome.bound_j


@pytest.mark.parametrize(
    ("leap_j", "said"),
    [
        (1e9, "leapt ahead"),
        (1e5, "leapt ahead"),
        (4e3, "contradicts the power samples"),
        (-4e3, "contradicts the power samples"),
    ],
)
def test_an_absurd_rise_is_not_believed(simulated: Simulated, leap_j: float, said: str) -> None:
    simulation = simulated(RISING, virtual=True, start_s=10, faults=[CounterJump(leap_j, at_s=25)])
    outcome = measured(simulation)
    assert outcome.says(said) == 1
    assert outcome.report.coverage == pytest.approx(1)
    assert one_block_rests_on_samples(simulation, outcome, 25)


@pytest.mark.parametrize("fault", [CounterReset(30), CounterJump(1e9, at_s=30)])
def test_a_counter_that_fails_in_a_silence_leaves_the_joules_unknown(simulated: Simulated, fault: Fault) -> None:
    lost = GpuLost(at_s=15, back_s=50)
    outcome = measured(simulated(Constant(POWER_W), virtual=True, start_s=10, faults=[lost, fault]), 900)
    covered_j = outcome.report.coverage * outcome.true_j
    assert outcome.total_j == pytest.approx(covered_j, rel=0.02)
    assert outcome.says("are missing from the total") == 1


class TestSuspend:
    """The monotonic clock stands still while the wall clock and the counter go on."""

    @pytest.mark.parametrize("seconds", [0.7, 5.0, 90.0, 7200.0])
    @pytest.mark.parametrize("power_w", [0.0, 15.0, 90.0])
    def test_no_joule_of_it_is_in_any_span(self, simulated: Simulated, seconds: float, power_w: float) -> None:
        simulation = simulated(RISING, virtual=True, start_s=10)
        outcome = measured(simulation, between=_at(300, simulation, seconds, power_w))
        assert outcome.says("the machine was suspended") == 1
        assert outcome.report.coverage > 0.95
        lost_j = (1 - outcome.report.coverage) * 60 * 600
        assert outcome.error_j() <= outcome.bound_j + lost_j
        whole = {phase.kind: phase.energy_j for phase in outcome.report.phases}
        assert whole["fit"] == pytest.approx(outcome.total_j, rel=1e-2)

    def test_at_the_very_end_it_is_noticed_too(self, simulated: Simulated) -> None:
        simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
        outcome = measured(simulation, between=_at(599, simulation, 600.0, 20.0))
        assert outcome.says("the machine was suspended") == 1
        assert outcome.error_j() <= outcome.bound_j + (1 - outcome.report.coverage) * 60 * POWER_W

    def test_a_set_wall_clock_is_none(self, simulated: Simulated) -> None:
        simulation = simulated(Constant(POWER_W), virtual=True, start_s=10)
        outcome = measured(simulation)
        assert outcome.report.warnings == ()


def _at(step: int, simulation: Simulation, seconds: float, power_w: float) -> Between:
    def between(number: int) -> None:
        if number == step:
            simulation.suspend(seconds, power_w)

    return between
