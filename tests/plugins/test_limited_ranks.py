"""Two real ranks under a power limit: they choose the same one, whatever each of them measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Callback, Trainer
from limiting import FOUND_W, limit_w, operator_sets, part_of
from outcomes import load
from test_lightning import Model, loader, make_trainer

from energy_plugins.lightning import EnergyMonitor, PowerLimitTuner
from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.report import Report
from energy_plugins.testing import NoPermission, simulated_gpus
from energy_plugins.testing.ranks import in_ranks
from energy_plugins.training.limits.timing import Timing

pytestmark = pytest.mark.alone

MOST_STEPS = 2400
"""About a minute, of which a search may take a third."""
QUICK = Timing(first_s=0.2, settle_s=0.05, check_s=0.3, watch_s=2.0, least_search_s=1.0, shorter=10.0, tolerance=1.0)


class Until(Callback):
    """Ends a training once enough is told of its limit, which is after the same step on all ranks."""

    def __init__(self, monitor: EnergyMonitor, enough: Callable[[LimitPart], bool]) -> None:
        self._monitor = monitor
        self._enough = enough

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        limiter = self._monitor._monitor.limiter
        trainer.should_stop = limiter is not None and self._enough(limiter.part())


def is_chosen(part: LimitPart) -> bool:
    return part.chosen is not None


def one_was_tried_alone(part: LimitPart) -> bool:
    return len({one.limit for one in part.tried if one.ranks}) > 1


def trained(
    folder: Path,
    *,
    one_may_not: bool = False,
    slower: float = 1.0,
    longer: float = 1.0,
    max_slowdown: float = 0.05,
    search_share: float = 0.3,
    until: Callable[[LimitPart], bool] = is_chosen,
) -> list[LimitPart]:
    """Train with two ranks, the second one slower, and return what their reports say of the limit."""
    with simulated_gpus(count=2) as simulation:
        for index in range(2):
            operator_sets(FOUND_W, index)
        if one_may_not:
            simulation.gpus[1].inject(NoPermission("nvmlDeviceSetPowerManagementLimit"))

        def train(rank: int) -> None:
            more = longer * (slower if rank == 1 else 1.0)
            gpu = simulation.gpus[rank]
            monitor = EnergyMonitor(table=False, log=False, progress_bar=False)
            monitor._monitor.timing = QUICK
            model = Model(lambda _: gpu.launch(ops=8e12 * more, bytes=8.6e10 * more, wait=True), batch_size=1)
            tuner = PowerLimitTuner(max_slowdown=max_slowdown, search_share=search_share)
            steps = 100 if one_may_not else MOST_STEPS
            trainer = make_trainer(folder, monitor, tuner, Until(monitor, until), strategy="ddp", devices=2)
            trainer.fit(model, loader(2 * steps, batch_size=1))
            assert model.steps == steps or not one_may_not

        assert in_ranks(2, train, patience_s=300) == [0, 0]  # a search takes half a minute, and more on a busy machine
        assert [limit_w(0), limit_w(1)] == [FOUND_W, FOUND_W]
    return [part_of(load(folder)), part_of(Report.load(folder / "energy" / "run-1" / "rank-1"))]


@pytest.mark.slow
def test_ranks_choose_alike(tmp_path: Path) -> None:
    """In real time, as long as it takes: how noisy steps are is up to the machine."""
    first, second = trained(tmp_path)
    assert (first.chosen, first.tried, first.why) == (second.chosen, second.tried, second.why)
    assert (first.source, first.why) == ("search", "")
    assert len({one.limit for one in first.tried}) > 1


@pytest.mark.slow
def test_on_a_rank_that_waits_for_the_other_limits_are_tried_alone(tmp_path: Path) -> None:
    """Its backward takes longer by over a quarter of a step, far more than the noise of any machine.

    Which limit it gets is another matter: that is known to half a per cent, which in a few seconds of real time it is
    not. tests/training/test_stragglers.py follows a model of such a training to its end.
    """
    first, second = trained(
        tmp_path, slower=1.4, longer=4.0, max_slowdown=1.0, search_share=0.9, until=one_was_tried_alone
    )
    assert (first.tried, first.why) == (second.tried, second.why)
    assert {one.ranks for one in first.tried} == {(), (0,)}
    alone = [one for one in first.tried if one.ranks]
    assert min(one.limit for one in alone) < alone[0].limit <= FOUND_W


@pytest.mark.slow
def test_where_one_may_not_none_does(tmp_path: Path) -> None:
    parts = trained(tmp_path, one_may_not=True)
    assert [part.chosen for part in parts] == [None, None]
    assert parts[0].why == "another rank measures nothing, or may not change its GPU"
    assert "run as root" in parts[1].advice
