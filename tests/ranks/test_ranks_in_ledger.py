"""The ledger has the ranks of a training as one run, whose joules count once, also if they were killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_launcher import Launcher, clean

from energy_plugins.measure.ledger_entry import Status
from energy_plugins.measure.report import Report
from energy_plugins.report.ledger import Ledger
from energy_plugins.report.ledger.runs import Run
from energy_plugins.report.ledger.totals import overall
from energy_plugins.testing import Constant, simulated_gpus

MEASURED = """
dist.init_process_group("gloo")
with EnergyMeter("train", folder=folder, distributed=True) as meter:
    train(meter)
dist.destroy_process_group()
"""
KILLED = """
from energy_plugins.testing import Constant, simulated_gpus
dist.init_process_group("gloo")
with simulated_gpus(Constant(300 + 100 * rank), virtual=True, start_s=10, seed=rank) as simulation:
    meter = EnergyMeter("train", folder=folder, distributed=True).start()
    simulation.advance(30)
    time.sleep(2)  # long enough for rank 0 to tell, and for the other to hear
    simulation.advance(30)
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)
"""
LAUNCHED = """
from energy_plugins.config import EnergyConfig
from energy_plugins.run.process import Process
os.chdir(folder)  # where the report goes
process = Process(EnergyConfig(), ["train.py"])
process.start()
dist.init_process_group("gloo")
time.sleep(1)
process.finish()
"""


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """Give the process that ranks are forked from."""
    made = Launcher()
    yield made
    made.close()


def in_ledger() -> tuple[Run, ...]:
    with Ledger() as ledger:
        assert ledger.import_spool().troubles == ()
        return ledger.runs()


def test_ranks_are_one_run(launcher: Launcher, tmp_path: Path) -> None:
    with simulated_gpus([Constant(300), Constant(400), Constant(500)]) as simulation:
        assert clean(launcher.run(MEASURED, tmp_path, simulation, 3))
    (run,) = in_ledger()
    report = Report.load(tmp_path)
    assert report.ranks is not None
    assert (run.run_id, run.ranks, run.world_size, run.status) == (report.run_id, 3, 3, Status.FINISHED)
    assert run.energy_j == pytest.approx(report.ranks.total_j, rel=1e-12)
    assert (run.samples, run.steps) == (report.ranks.samples, report.work.steps)
    assert overall([run]).jobs == 1


def test_a_gpu_that_two_ranks_measure_counts_once(launcher: Launcher, tmp_path: Path) -> None:
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        first = simulation.gpus[0].uuid
        assert clean(launcher.run(MEASURED, tmp_path, simulation, 2, {"CUDA_VISIBLE_DEVICES": first}))
    (run,) = in_ledger()
    alone = [Report.load(folder).total_j for folder in (tmp_path, tmp_path / "rank-1")]
    assert [gpu.uuid for gpu in run.gpus] == [first]
    assert run.energy_j == max(joules for joules in alone if joules is not None)


def test_ranks_that_are_killed_are_one_killed_run(launcher: Launcher, tmp_path: Path) -> None:
    with simulated_gpus() as simulation:
        endings = launcher.run(KILLED, tmp_path, simulation, 2)
    assert [ending.code for ending in endings] == [-signal.SIGKILL] * 2, endings
    (run,) = in_ledger()
    assert (run.ranks, run.status, len(run.gpus)) == (2, Status.KILLED, 2)
    assert run.energy_j == pytest.approx((300 + 400) * 60, rel=0.2)
    assert run.simulated


def test_processes_of_a_program_without_a_framework_are_one_run(launcher: Launcher, tmp_path: Path) -> None:
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        endings = launcher.run(LAUNCHED, tmp_path, simulation, 2)
    assert [ending.code for ending in endings] == [0, 0], endings
    (run,) = in_ledger()
    assert (run.ranks, len(run.gpus), run.framework) == (2, 2, "command")
    assert (tmp_path / "energy" / "run-1" / "report.json").exists()
