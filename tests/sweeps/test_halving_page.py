"""What docs/halving.md has its readers write runs, and finds what is best."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from energy_plugins.optuna import EnergySuccessiveHalvingPruner

PAGE = (Path(__file__).parents[2] / "docs" / "halving.md").read_text(encoding="utf-8")
PRUNER, SCHEDULER, SEARCH = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_pruner_is_one() -> None:
    names: dict[str, Any] = {}
    exec(PRUNER, names)  # noqa: S102 - the page is ours
    assert isinstance(names["study"].pruner, EnergySuccessiveHalvingPruner)


def test_the_scheduler_is_one() -> None:
    pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install energy-plugins[ray]")
    from energy_plugins.ray import EnergySuccessiveHalvingScheduler

    names: dict[str, Any] = {}
    exec(SCHEDULER, names)  # noqa: S102 - the page is ours
    assert isinstance(names["tune_config"].scheduler, EnergySuccessiveHalvingScheduler)


def test_the_search_finds_what_is_best() -> None:
    names: dict[str, Any] = {}
    exec(SEARCH, names)  # noqa: S102 - the page is ours
    space, best = names["space"], names["best"]

    def to_target_j(batch: int, limit_w: float) -> float:
        training = names["Training"](batch)
        epoch_j = float(training.window(limit_w))
        while not (seen := training.until_evaluated(limit_w)).reached:
            assert not seen.ended
        return float(seen.epochs * epoch_j)

    every = {(batch, limit_w): to_target_j(batch, limit_w) for batch in space.batches for limit_w in space.limits_w}
    assert every[best.batch, best.limit_w] == min(every.values())
    assert best.energy_j == min(every.values())
    assert best.batch != space.start_batch
