"""What every framework module must do, as tests: subclass `PluginContract` and say how your framework trains."""

# ruff: noqa: S101 - assert is how a test speaks

from __future__ import annotations

import math
import os
import signal
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import numpy as np

from energy_plugins.measure.drivers import Drivers, use_drivers
from energy_plugins.measure.ledger_entry import LedgerEntry, Status
from energy_plugins.measure.rank_folders import rank_folder
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report
from energy_plugins.measure.spool import SUFFIX, spool_folder
from energy_plugins.testing import Constant, SimulatedDevice, simulated_gpus
from energy_plugins.testing.faults import GpuLost
from energy_plugins.testing.ranks import in_ranks

STEP_OPS = 8e12
"""About 10 ms of a simulated H200."""


class PlannedError(Exception):
    """Raised by `Plan.step` in a training that is meant to fail."""


class Wait(Enum):
    """A way in which a training may wait for its device."""

    NUMBER = "a number is read, as by `Tensor.item`"
    COPY = "a tensor is copied to the host"
    EVENT = "an event is waited for"
    DEVICE = "all that the device has to do is waited for"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training small enough to be checked row by row."""

    folder: Path
    """Where the plugin may write; one folder for each plan."""
    gpu: SimulatedDevice | None = None
    steps: int = 20
    batch_size: int = 4
    wait_s: float = 0.0
    """How long the data loader takes for each batch."""
    fail_at: int | None = None
    """The step, counted from zero, in which the training fails."""
    resume_from: Path | None = None
    """The checkpoint of an earlier training to go on from, for as many steps again."""
    with_plugin: bool = True
    waits: tuple[Wait, ...] = ()
    """How a hook of the training's own, of the kind that a plugin uses, waits for the device once in every step."""
    lose_gpu_at: int | None = None
    ranks: int = 1
    """How many processes train together, each for as many steps; then each has torchrun's variables."""
    kill_at: int | None = None
    """The step in which this process is killed."""

    def step(self, index: int) -> None:
        """Do one step's work on the GPU. Every training step calls this with its number in this training.

        Raises:
            PlannedError: It is time to.
        """
        if index == self.fail_at:
            raise PlannedError
        if index == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.gpu is None:
            return
        if index == self.lose_gpu_at:
            self.gpu.inject(GpuLost(at_s=0.0))
        self.gpu.launch(ops=STEP_OPS, wait=True)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of a plan."""

    steps: int
    """Training steps that the framework itself counted."""
    report: Report | None
    """The report that the plugin left in the plan's folder, as loaded from there."""
    total_j: float | None = None
    """The running total that the plugin published last, earlier trainings included."""
    checkpoint: Path | None = None
    """Written at the end of the training."""
    failure: BaseException | None = None
    """What the framework raised."""
    hosts: tuple[object, ...] = ()
    """Objects of the framework in which a plugin might have left something."""
    synchronisations: Counter[str] = field(default_factory=Counter)
    """Names of what waits for the device, such as ``cudaStreamSynchronize``, and how often it came. On a CPU these are
    the calls that would have waited, and the operations of torch behind them, such as ``aten::_local_scalar_dense``.
    """


class PluginContract(ABC):
    """The tests; each trains on a simulated GPU."""

    @abstractmethod
    def train(self, plan: Plan) -> Trained:
        """Train as planned, catching what the framework raises; if ``plan.ranks`` are several, in each of them."""

    def test_every_step_is_marked_once(self, tmp_path: Path) -> None:
        """One row for each step, in order, with its samples."""
        with simulated_gpus() as simulation:
            trained = self.train(Plan(folder=tmp_path, gpu=simulation.gpus[0]))
        report = _report(trained)
        assert report.steps.rows == report.work.steps == trained.steps == 20
        assert report.steps["index"].tolist() == list(range(20))
        assert set(report.steps["samples"].tolist()) == {4}
        assert report.work.samples == 80
        assert report.simulated

    def test_steps_and_gaps_make_the_run(self, tmp_path: Path) -> None:
        """Steps do not overlap, and kinds, the unattributed rest among them, add up to the total."""
        with simulated_gpus() as simulation:
            report = _report(self.train(Plan(folder=tmp_path, gpu=simulation.gpus[0], wait_s=0.005)))
        starts, ends = report.steps["start_s"], report.steps["end_s"]
        assert np.all(starts[1:] >= ends[:-1] - 1e-9)
        assert np.all(starts >= 0)
        assert ends[-1] <= report.duration_s + 1e-9
        assert report.total_j is not None
        parts = [kind.energy_j for kind in report.kinds if kind.energy_j is not None]
        assert np.isclose(sum(parts), report.total_j, rtol=1e-6)
        assert float(np.nansum(report.steps["energy_j"])) <= report.total_j * (1 + 1e-9)

    def test_waiting_for_data_is_seen(self, tmp_path: Path) -> None:
        """A step begins with the fetch of its batch, and a wait the GPU had to sit out has its joules."""
        with simulated_gpus() as simulation:
            report = _report(self.train(Plan(folder=tmp_path, gpu=simulation.gpus[0], wait_s=0.03)))
        assert np.all(report.steps["end_s"] - report.steps["start_s"] >= 0.03)
        assert report.data_wait_j is not None
        assert report.data_wait_j > 0
        waited_j, stalled_j = report.steps["data_wait_j"][1:], report.steps["stall_j"][1:]  # the first follows no step
        assert np.all(stalled_j >= waited_j * (1 - 1e-6))

    def test_lost_gpu_does_not_stop_training(self, tmp_path: Path) -> None:
        """All steps are trained; the report says what is missing."""
        with simulated_gpus() as simulation, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            trained = self.train(Plan(folder=tmp_path, gpu=simulation.gpus[0], lose_gpu_at=10))
        assert trained.failure is None
        assert trained.steps == 20
        report = _report(trained)
        assert report.coverage < 1
        assert report.warnings or report.missing

    def test_no_driver_does_not_stop_training(self, tmp_path: Path) -> None:
        """Without NVML there is one warning, and training goes on."""
        nowhere = Drivers(nvml=str(tmp_path / "no-nvml.so"), cuda=str(tmp_path / "no-cuda.so"))
        with use_drivers(nowhere), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            trained = self.train(Plan(folder=tmp_path / "run"))
        assert trained.failure is None
        assert trained.steps == 20
        assert len([warning for warning in caught if "nergy" in str(warning.message)]) == 1

    def test_no_synchronisation_is_added(self, tmp_path: Path) -> None:
        """The training waits for the device as often as it does without the plugin."""
        with simulated_gpus() as simulation:
            plan = Plan(folder=tmp_path / "with", gpu=simulation.gpus[0], waits=tuple(Wait))
            plain = self.train(replace(plan, folder=tmp_path / "without", with_plugin=False)).synchronisations
            assert plain.total() >= plan.steps * len(plan.waits)
            assert self.train(plan).synchronisations == plain

    def test_a_synchronisation_would_be_seen(self, tmp_path: Path) -> None:
        """If the plugin waited in its hooks, in whatever way, the test above would fail."""
        plan = Plan(folder=tmp_path, steps=5, with_plugin=False)
        plain = self.train(plan).synchronisations
        for way in Wait:
            added = self.train(replace(plan, folder=tmp_path / way.name, waits=(way,))).synchronisations - plain
            assert plan.steps in added.values(), way

    def test_nothing_survives_the_run(self, tmp_path: Path) -> None:
        """No thread of ours is left, and no function of ours in the framework's objects."""
        with simulated_gpus() as simulation:
            plan = Plan(folder=tmp_path / "first", gpu=simulation.gpus[0])
            self.train(plan)  # the framework starts threads of its own when it is first used
            threads = _threads()
            trained = self.train(replace(plan, folder=tmp_path / "second"))
            assert _threads() == threads
        for host in trained.hosts:
            assert {name: value for name, value in vars(host).items() if _is_ours(value)} == {}

    def test_a_failing_training_leaves_its_report(self, tmp_path: Path) -> None:
        """The failure is the training's own, and the steps before it have their joules."""
        with simulated_gpus() as simulation:
            trained = self.train(Plan(folder=tmp_path, gpu=simulation.gpus[0], fail_at=10))
        assert isinstance(trained.failure, PlannedError)
        report = _report(trained)
        assert report.complete
        assert report.steps.rows >= 10
        assert np.all(report.steps["energy_j"][:10] > 0)
        entry = _entry(report)
        assert entry.status in {Status.FAILED, Status.FINISHED}  # a loop of one's own does not say how it ended
        assert (entry.energy_j, entry.steps) == (report.total_j, report.work.steps)
        assert entry.framework

    def test_two_trainings_are_two_reports(self, tmp_path: Path) -> None:
        """Each has its own steps and its own joules."""
        with simulated_gpus() as simulation:
            plans = [
                Plan(folder=tmp_path / name, gpu=simulation.gpus[0], steps=steps)
                for name, steps in (("one", 10), ("two", 20))
            ]
            one, two = (_report(self.train(plan)) for plan in plans)
        assert (one.steps.rows, two.steps.rows) == (10, 20)
        assert one.run_id != two.run_id
        assert [_entry(report).status for report in (one, two)] == [Status.FINISHED] * 2
        assert _entry(one).energy_j == one.total_j

    def test_resuming_adds_up(self, tmp_path: Path) -> None:
        """The running total goes on from that of the checkpoint, while the report counts its own run only."""
        with simulated_gpus() as simulation:
            first = self.train(Plan(folder=tmp_path / "first", gpu=simulation.gpus[0]))
            plan = Plan(folder=tmp_path / "second", gpu=simulation.gpus[0], resume_from=first.checkpoint)
            second = self.train(plan)
        assert second.failure is None
        report = _report(second)
        assert report.steps.rows == 20
        assert first.total_j is not None
        assert second.total_j is not None
        assert report.total_j is not None
        assert np.isclose(second.total_j, first.total_j + report.total_j)

    def test_the_report_of_two_ranks_is_the_sum_of_its_parts(self, tmp_path: Path) -> None:
        """Each rank measures its own GPU and marks its own steps, and rank 0's report has both."""
        with simulated_gpus([Constant(300), Constant(400)]) as simulation:
            assert self._train_ranks(Plan(folder=tmp_path), simulation.gpus) == [0, 0]
            uuids = [gpu.uuid for gpu in simulation.gpus]
        reports, ranks = _reports_of_ranks(tmp_path)
        assert len(reports) == 2
        assert [list(report.gpu_j) for report in reports] == [[uuid] for uuid in uuids]
        for rank, report in enumerate(reports):
            assert report.steps["index"].tolist() == list(range(20))
            assert (tmp_path / f"steps-{rank}").read_text() == "20"
        assert reports[1].ranks is None
        assert (ranks.complete, ranks.absent, ranks.gpus, ranks.steps, ranks.samples) == (True, (), 2, 40, 160)
        assert ranks.total_j is not None
        assert math.isclose(ranks.total_j, math.fsum(report.total_j or 0.0 for report in reports), rel_tol=1e-12)
        assert [row.part.run_id for row in ranks.rows] == [report.run_id for report in reports]
        assert [_entry(report).training_id for report in reports] == [reports[0].run_id] * 2
        assert [_entry(report).energy_j for report in reports] == [report.total_j for report in reports]

    def test_a_rank_that_is_killed_is_named(self, tmp_path: Path) -> None:
        """Rank 0 comes to an end, and its report says of whom it knows no end."""
        with simulated_gpus([Constant(300), Constant(400)]) as simulation:
            codes = self._train_ranks(Plan(folder=tmp_path, kill_at=10), simulation.gpus)
        assert codes == [1, -signal.SIGKILL], "rank 0 ends, because it cannot train without the other"
        reports, ranks = _reports_of_ranks(tmp_path)
        assert reports[0].complete
        assert reports[0].steps.rows >= 10
        assert not ranks.complete
        assert [row.part.who.rank for row in ranks.rows if row.part.complete] == [0]
        assert [text for text in reports[0].warnings if "rank 1" in text]

    def _train_ranks(self, plan: Plan, gpus: Sequence[SimulatedDevice]) -> list[int]:
        """Train in a process for each of ``gpus``, of which the last is killed if one is; return how they ended."""
        last = len(gpus) - 1

        def train(rank: int) -> None:
            own = replace(plan, gpu=gpus[rank], ranks=len(gpus), kill_at=plan.kill_at if rank == last else None)
            trained = self.train(own)
            if trained.failure is not None:
                raise trained.failure
            (plan.folder / f"steps-{rank}").write_text(str(trained.steps))

        return in_ranks(len(gpus), train)


def _reports_of_ranks(folder: Path) -> tuple[list[Report], Ranks]:
    """Return the reports of the training in ``folder`` by rank, those that lie where they should, and the whole."""
    found = {path.parent: Report.load(path.parent) for path in folder.rglob("report.json")}
    (whole,) = (place for place, report in found.items() if report.rank is not None and report.rank.rank == 0)
    ranks = found[whole].ranks
    assert ranks is not None
    return [found[place] for rank in range(ranks.world_size) if (place := rank_folder(whole, rank)) in found], ranks


def _entry(report: Report) -> LedgerEntry:
    """Return what a run left for the ledger."""
    path = spool_folder() / f"{report.run_id}{SUFFIX}"
    return LedgerEntry.decode(path.read_bytes(), str(path))


def _report(trained: Trained) -> Report:
    assert trained.report is not None, "the plugin left no report"
    return trained.report


def _threads() -> list[str]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return sorted((task / "comm").read_text().strip() for task in tasks)


def _is_ours(value: object) -> bool:
    function = getattr(value, "func", value)
    module = getattr(function, "__module__", None) or type(function).__module__
    return callable(value) and module.startswith("energy_plugins") and not module.startswith("energy_plugins.testing")
