"""The truth: what the simulation says was drawn is the integral of what it was told to draw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.testing import Constant, Script, Simulation, SimulatorError, Square, Step, simulated_gpus

S = 1_000_000_000

pieces = st.lists(st.tuples(st.integers(1, 3 * S), st.floats(0.0, 1000.0)), min_size=1, max_size=20)
times = st.integers(0, 40 * S)


def summed_j(script: list[tuple[int, float]], repeat: bool, start_ns: int, end_ns: int) -> float:
    """Integrate by walking over every piece: slow, and obviously right."""
    total_j, t = 0.0, 0
    while t < end_ns:
        for length_ns, power_w in script:
            total_j += power_w * max(min(t + length_ns, end_ns) - max(t, start_ns), 0) * 1e-9
            t += length_ns
        if not repeat:
            return total_j + script[-1][1] * max(end_ns - max(t, start_ns), 0) * 1e-9
    return total_j


@given(script=pieces, repeat=st.booleans(), bounds=st.tuples(times, times))
def test_a_script_draws_the_sum_of_its_pieces(
    script: list[tuple[int, float]], repeat: bool, bounds: tuple[int, int]
) -> None:
    if repeat and sum(length_ns for length_ns, _ in script) < S // 10:
        repeat = False
    start_ns, end_ns = sorted(bounds)
    load = Script([(length_ns * 1e-9, power_w) for length_ns, power_w in script], repeat=repeat)
    with simulated_gpus(load, virtual=True) as simulation:
        energy_j = simulation.gpus[0].true_energy_j(start_ns, end_ns)
    assert energy_j == pytest.approx(summed_j(script, repeat, start_ns, end_ns), rel=1e-9, abs=1e-9)


@given(cuts=st.lists(times, min_size=3, max_size=3))
def test_adjacent_windows_add_up(cuts: list[int]) -> None:
    a, b, c = sorted(cuts)
    with simulated_gpus(Square(130, 700, 0.037), virtual=True) as simulation:
        gpu = simulation.gpus[0]
        assert gpu.true_energy_j(a, b) + gpu.true_energy_j(b, c) == pytest.approx(gpu.true_energy_j(a, c), abs=1e-8)


def test_a_day_of_a_fast_square_wave_is_exact() -> None:
    with simulated_gpus(Square(130, 700, 0.01), virtual=True) as simulation:
        assert simulation.gpus[0].true_energy_j(0, 24 * 3600 * S) == pytest.approx(415.0 * 24 * 3600, rel=1e-12)


def test_steps_up_and_down_are_charged_alike() -> None:
    with simulated_gpus([Step(100, 700, at_s=1), Step(700, 100, at_s=1)], virtual=True) as simulation:
        up, down = simulation.gpus
        assert up.true_energy_j(0, 3 * S) == pytest.approx(100 + 1400)
        assert down.true_energy_j(0, 3 * S) == pytest.approx(700 + 200)


def test_a_new_script_takes_over_where_it_is_played() -> None:
    with simulated_gpus(Constant(100), virtual=True) as simulation:
        gpu = simulation.gpus[0]
        simulation.advance(2.0)
        gpu.play(Step(300, 500, at_s=1))
        simulation.advance(2.0)
        assert gpu.true_energy_j(0, 4 * S) == pytest.approx(200 + 300 + 500)


def test_before_the_beginning_the_first_power_held_or_the_script_repeated() -> None:
    with simulated_gpus(Step(100, 700, at_s=1), virtual=True) as simulation:
        assert simulation.gpus[0].true_energy_j(-5 * S, 0) == pytest.approx(500)
    with simulated_gpus(Square(100, 700, 1.0), virtual=True) as simulation:
        assert simulation.gpus[0].true_energy_j(-S // 4, 0) == pytest.approx(25)
        assert simulation.gpus[0].true_energy_j(-5 * S, 5 * S) == pytest.approx(4000)


def test_start_s_is_how_much_has_been_played() -> None:
    with simulated_gpus(Step(100, 700, at_s=1), virtual=True, start_s=5.0) as simulation:
        assert simulation.clock.now_ns() == 5 * S
        assert simulation.gpus[0].true_energy_j(0, 5 * S) == pytest.approx(100 + 2800)


@given(
    kernels=st.lists(
        st.tuples(st.floats(0, 2e12), st.floats(0, 4e9), st.floats(0, 0.01)),
        min_size=1,
        max_size=30,
    )
)
def test_work_replaces_the_script_while_it_runs(kernels: list[tuple[float, float, float]]) -> None:
    """With kernels at the script's own power nothing may change; with others only the time they ran."""
    with simulated_gpus(Constant(100), virtual=True) as simulation:
        gpu = simulation.gpus[0]
        expected_j, ends_ns = 0.0, [0]
        for ops, traffic, gap_s in kernels:
            simulation.advance(gap_s)
            start_ns = max(simulation.clock.now_ns(), ends_ns[-1])
            expected_j += 100 * (start_ns - ends_ns[-1]) * 1e-9
            gpu.launch(ops, traffic)
            ends_ns.append(idle_at_ns(simulation))
            work_j = gpu.true_energy_j(start_ns, ends_ns[-1])
            assert work_j >= 124.9 * (ends_ns[-1] - start_ns) * 1e-9
            expected_j += work_j
        gpu.synchronize()
        assert gpu.true_energy_j(0, ends_ns[-1]) == pytest.approx(expected_j, rel=1e-9)
        assert gpu.true_energy_j(ends_ns[-1], ends_ns[-1] + S) == pytest.approx(100)


def idle_at_ns(simulation: Simulation) -> int:
    from energy_plugins.testing import library

    return int(library.nvml().ep_sim_idle_at_ns(simulation.gpus[0].index))


def test_a_repeating_script_goes_on_under_the_work() -> None:
    with simulated_gpus(Square(100, 500, 1.0), virtual=True) as simulation:
        gpu = simulation.gpus[0]
        gpu.launch(ops=8e14)  # about a second
        gpu.synchronize()
        end_ns = simulation.clock.now_ns()
        rest_ns = 10 * S - end_ns
        late_j = summed_j([(S // 2, 500.0), (S // 2, 100.0)], True, end_ns, end_ns + rest_ns)
        assert gpu.true_energy_j(end_ns, end_ns + rest_ns) == pytest.approx(late_j)


@pytest.mark.parametrize("pieces", [[], [(0.0, 100.0)], [(-1.0, 100.0)]])
def test_a_script_without_time_is_refused(pieces: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Script(pieces)


def test_loads_and_count_must_agree() -> None:
    with pytest.raises(SimulatorError, match="2 loads for 3 GPUs"), simulated_gpus([Constant(1), Constant(2)], count=3):
        pass
