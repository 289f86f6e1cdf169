"""Loops of one's own under a power limit."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from accelerate_training import Model, Training, fresh_state, loader
from limiting import FOUND_W, SHARE, assert_saved, limit_w, limited_gpu, limits_during, part_of, work
from outcomes import load

from energy_plugins.accelerate import EnergyPlugin, attach

__all__ = ["fresh_state"]


def test_it_saves_energy_and_leaves_the_gpu_as_found(tmp_path: Path) -> None:
    """Nobody knows when such a loop ends: the search begins once its share of what has passed is enough."""
    reports = []
    both: list[tuple[str, dict[str, Any]]] = [("plain", {}), ("limited", {"max_slowdown": 0.03, "search_share": SHARE})]
    for name, settings in both:
        with limited_gpu() as simulation:
            training = Training(tmp_path / name, loader(750, batch_size=1), Model(work(simulation)))
            with attach(training.accelerator, table=False, **settings) as energy:
                training.epoch()
            assert energy.report is not None
            reports.append(energy.report)
            assert limit_w() == FOUND_W
    plain, limited = reports
    assert_saved(limited, plain)
    assert part_of(limited).search_s <= 60


@pytest.mark.parametrize("settings", [{}, {"plugin": EnergyPlugin(table=False)}])
def test_a_limit_that_was_chosen_holds_from_the_first_step_to_an_exception(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    seen: list[float] = []
    with limited_gpu() as simulation:
        training = Training(tmp_path, loader(40, batch_size=1), Model(limits_during(simulation, seen)))
        with suppress(RuntimeError), attach(training.accelerator, **settings, fixed_limit_w=500):
            training.epoch()
            raise RuntimeError("of the loop")
        assert limit_w() == FOUND_W
    assert set(seen) == {500}
    assert part_of(load(tmp_path)).binding
    assert len(seen) == 40
