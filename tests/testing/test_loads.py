from __future__ import annotations

import numpy as np
import pytest

from energy_plugins.testing import random_load, simulated_gpus


@pytest.mark.parametrize("seed", range(40))
def test_random_loads_last_as_long_as_asked_and_stay_in_range(seed: int) -> None:
    load = random_load(np.random.default_rng(seed), 10.0)
    powers_w = [power_w for _, power_w in load.pieces]
    assert min(powers_w) >= 100
    assert max(powers_w) <= 800
    assert sum(duration_s for duration_s, _ in load.pieces) < 16.0


def test_the_same_seed_gives_the_same_load() -> None:
    one, other = (random_load(np.random.default_rng(7), 5.0) for _ in range(2))
    assert one == other


def test_an_hour_of_any_load_can_be_played() -> None:
    rng = np.random.default_rng(1)
    with simulated_gpus([random_load(rng, 3600.0) for _ in range(6)], virtual=True) as simulation:
        for gpu in simulation.gpus:
            assert 100 < gpu.true_energy_j(0, 3600 * 10**9) / 3600 < 800
