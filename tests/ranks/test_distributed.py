"""Several real processes of one training: what rank 0's report says of all, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_launcher import Launcher, clean

from energy_plugins.distributed import RankExchange, this_rank
from energy_plugins.errors import ReportError
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.rank_part import Rank
from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant, Simulation, simulated_gpus

MEASURED = """
dist.init_process_group("gloo")
with EnergyMeter("train", folder=folder, distributed=True) as meter:
    train(meter)
"""


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be no rank, whatever runs the tests."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """Give the process that ranks are forked from."""
    made = Launcher()
    yield made
    made.close()


def reports(folder: Path, ranks: int) -> list[Report]:
    return [Report.load(folder / f"rank-{rank}" if rank else folder) for rank in range(ranks)]


def test_the_whole_is_the_sum_of_its_parts(launcher: Launcher, tmp_path: Path) -> None:
    with simulated_gpus([Constant(300), Constant(400), Constant(500)]) as simulation:
        assert clean(launcher.run(MEASURED + "dist.destroy_process_group()", tmp_path, simulation, 3))
        uuids = [gpu.uuid for gpu in simulation.gpus]
    alone = reports(tmp_path, 3)
    ranks = alone[0].ranks
    assert ranks is not None
    assert [list(report.gpu_j) for report in alone] == [[uuid] for uuid in uuids]
    assert ranks.total_j == pytest.approx(sum(report.total_j or 0 for report in alone), rel=1e-12)
    assert (ranks.complete, ranks.absent, ranks.gpus) == (True, (), 3)
    assert (ranks.steps, ranks.samples) == (90, 360)
    assert ranks.error_bound_j == pytest.approx(sum((report.error_bound_j or 0) ** 2 for report in alone) ** 0.5)
    assert alone[0].total_j == pytest.approx(300 * alone[0].duration_s, rel=0.02)
    assert alone[0].observer.ranks_s > 0
    assert [report.ranks for report in alone[1:]] == [None, None]
    assert "report of rank 0" in alone[1].missing["peer_wait_j"]
    assert [report.rank and report.rank.rank for report in alone] == [0, 1, 2]
    assert "3 ranks on 1 node, 3 GPUs" in " ".join(str(alone[0]).split())


def test_a_slow_rank_is_the_one_that_the_others_wait_for(launcher: Launcher, tmp_path: Path) -> None:
    code = """
import torch
dist.init_process_group("gloo")
with EnergyMeter("train", folder=folder, distributed=True) as meter:
    for _ in range(20):
        with meter.step(samples=4):
            if rank == 1:
                time.sleep(0.05)  # before backward: the others meet it in there
            with meter.span(Kind.BACKWARD):
                time.sleep(0.01)
                dist.all_reduce(torch.ones(1))
dist.destroy_process_group()
"""
    with simulated_gpus([Constant(300)] * 3) as simulation:
        assert clean(launcher.run(code, tmp_path, simulation, 3))
    report = Report.load(tmp_path)
    assert report.ranks is not None
    assert report.ranks.stragglers == (1,)
    waited_j = [row.peer_wait_j for row in report.ranks.rows]
    assert waited_j[1] == 0
    for joules in (waited_j[0], waited_j[2]):
        assert joules == pytest.approx(20 * 0.05 * 300, rel=0.3)
    assert report.peer_wait_j == waited_j[0]
    assert "the others wait for it" in str(report)


def test_two_ranks_on_one_gpu_are_not_counted_twice(launcher: Launcher, tmp_path: Path) -> None:
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        first = simulation.gpus[0].uuid
        assert clean(launcher.run(MEASURED, tmp_path, simulation, 2, {"CUDA_VISIBLE_DEVICES": first}))
    alone = reports(tmp_path, 2)
    ranks = alone[0].ranks
    assert ranks is not None
    assert [list(report.gpu_j) for report in alone] == [[first], [first]]
    assert ranks.gpus == 1
    assert ranks.total_j in [report.total_j for report in alone]
    assert [note for note in ranks.notes if "share" in note]


def test_a_rank_that_is_killed_leaves_what_it_told(launcher: Launcher, tmp_path: Path) -> None:
    code = """
from energy_plugins.testing import Constant, simulated_gpus
dist.init_process_group("gloo")
with simulated_gpus(Constant(300 + 100 * rank), virtual=True, start_s=10, seed=rank) as simulation:
    meter = EnergyMeter("train", folder=folder, distributed=True).start()
    for _ in range(60):
        with meter.step(samples=4):
            simulation.advance(1)
    time.sleep(2)  # long enough to tell
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    began = time.monotonic()
    meter.stop()
    assert time.monotonic() - began < 5, "a process that has ended was waited for"
    os._exit(0)
"""
    with simulated_gpus() as simulation:
        zero, one = launcher.run(code, tmp_path, simulation, 2)
    assert (zero.code, one.code) == (0, -signal.SIGKILL), zero.err
    assert "rank 1 never told the end" in zero.err
    report = Report.load(tmp_path)
    assert report.ranks is not None
    assert not report.ranks.complete
    left = report.ranks.rows[1].part
    assert 40 < left.duration_s < 60
    assert left.energy_j == pytest.approx(400 * left.duration_s, rel=0.01)
    assert report.ranks.total_j == pytest.approx((report.total_j or 0) + (left.energy_j or 0))
    assert "never told the end" in str(report)


def test_a_training_that_is_killed_is_merged_from_its_folders(launcher: Launcher, tmp_path: Path) -> None:
    code = """
dist.init_process_group("gloo")
meter = EnergyMeter("train", folder=folder, distributed=True).start()
train(meter, steps=150)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        assert [one.code for one in launcher.run(code, tmp_path, simulation, 2)] == [-signal.SIGKILL] * 2
    assert Report.load(tmp_path).ranks is None
    command = [sys.executable, "-m", "energy_plugins", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    assert "2 ranks on 1 node, 2 GPUs" in shown
    assert "ranks 0, 1 never told the end" in shown


@pytest.mark.parametrize(
    ("letter", "said"), [("{nonsense", "what rank 1 told is no JSON"), ("", "nothing is known of rank 1 of 2")]
)
def test_a_last_word_that_says_nothing_is_a_warning(launcher: Launcher, tmp_path: Path, letter: str, said: str) -> None:
    code = f"""
dist.init_process_group("gloo")
if rank:
    from torch.distributed.distributed_c10d import _get_default_store
    _get_default_store().set("energy_plugins/0/train/0/last/1", {letter!r})
    dist.barrier()
else:
    with EnergyMeter("train", folder=folder, distributed=True) as meter:
        train(meter)
        began = time.monotonic()
    assert time.monotonic() - began < 3, "there was nothing to wait for"
    dist.barrier()
"""
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        zero, one = launcher.run(code, tmp_path, simulation, 2)
    assert (zero.code, one.code) == (0, 0), zero.err
    assert said in zero.err
    report = Report.load(tmp_path)
    assert report.ranks is not None
    assert report.ranks.absent == (1,)
    assert report.ranks.total_j == report.total_j


def test_a_rank_that_gives_up_is_not_waited_for(launcher: Launcher, tmp_path: Path) -> None:
    code = """
from energy_plugins.distributed import RankExchange
dist.init_process_group("gloo")
exchange = RankExchange("fit")
meter = EnergyMeter(devices=exchange.own_gpus(), rank=exchange.who).start()
exchange.watch(meter)
train(meter)
meter.stop()
if rank:
    exchange.abandon()
    dist.barrier()
else:
    dist.barrier()
    began = time.monotonic()
    report = exchange.finish(meter.report())
    assert time.monotonic() - began < 3, "it was waited for"
    print([row.part.who.rank for row in report.ranks.rows], report.ranks.complete)
"""
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        zero, one = launcher.run(code, tmp_path, simulation, 2)
    assert (zero.code, one.code) == (0, 0), zero.err
    assert zero.out == "[0, 1] False\n"  # what it told before counts


def test_a_meter_may_begin_before_the_process_group_and_end_after_it(launcher: Launcher, tmp_path: Path) -> None:
    code = """
with EnergyMeter("train", folder=folder, distributed=True) as meter:
    dist.init_process_group("gloo")
    train(meter, steps=60)
    time.sleep(0.5)
    dist.destroy_process_group()
"""
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        assert clean(launcher.run(code, tmp_path, simulation, 2))
    assert getattr(Report.load(tmp_path).ranks, "complete", False)


def test_without_a_process_group_the_folders_are_merged(launcher: Launcher, tmp_path: Path) -> None:
    code = """
with EnergyMeter("train", folder=folder, distributed=True) as meter:
    train(meter)
    time.sleep(0 if rank else 2)
"""
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        zero, one = launcher.run(code, tmp_path, simulation, 2)
    assert (zero.code, one.code) == (0, 0)
    assert "torch.distributed is not initialised" in zero.err
    ranks = Report.load(tmp_path).ranks
    assert ranks is not None
    assert len(ranks.rows) == 2


@pytest.mark.alone
def test_ranks_that_fail_write_their_reports_and_wait_for_nobody(launcher: Launcher, tmp_path: Path) -> None:
    code = """
dist.init_process_group("gloo")
try:
    with EnergyMeter("train", folder=folder, distributed=True) as meter:
        train(meter)
        if rank == 0:
            failed = time.monotonic()
            raise RuntimeError("planned")
        time.sleep(2.5)
except RuntimeError as error:
    assert str(error) == "planned"
    assert time.monotonic() - failed < 2
    time.sleep(4)  # the store is this process's
"""
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        zero, one = launcher.run(code, tmp_path, simulation, 2)
    assert (zero.code, one.code) == (0, 0), zero.err
    report = Report.load(tmp_path)
    assert report.complete
    assert report.ranks is not None
    assert not report.ranks.complete
    assert one.err == ""


def test_modules_agree_on_a_folder(launcher: Launcher, tmp_path: Path) -> None:
    code = """
from pathlib import Path
from energy_plugins.distributed import RankExchange
dist.init_process_group("gloo")
for _ in range(2):
    def claim():
        made = Path(folder) / f"fit-{len(list(Path(folder).iterdir()))}"
        made.mkdir()
        return made
    print(RankExchange("fit").agree(claim))
    dist.barrier()
print(RankExchange("none").agree(lambda: None))
dist.barrier()  # the store is rank 0's
"""
    with simulated_gpus() as simulation:
        endings = launcher.run(code, tmp_path, simulation, 2)
    assert clean(endings)
    assert endings[0].out.split() == [f"{tmp_path}/fit-0", f"{tmp_path}/fit-1", "None"]
    assert endings[1].out.split() == [f"{tmp_path}/fit-0/rank-1", f"{tmp_path}/fit-1/rank-1", "None"]


def test_fsdp2(launcher: Launcher, tmp_path: Path) -> None:
    """A model whose parameters are sharded over the ranks: their collectives are none of ours, and ours are none."""
    code = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(3)])
mesh = init_device_mesh("cpu", (2,))
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
shard = next(model.parameters())
assert shard.to_local().numel() * 2 == shard.numel()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with EnergyMeter("train", folder=folder, distributed=True) as meter:
    for _ in range(20):
        with meter.step(samples=4):
            loss = model(torch.ones(4, 16)).square().mean()
            with meter.span(Kind.BACKWARD):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
dist.destroy_process_group()
"""
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        assert clean(launcher.run(code, tmp_path, simulation, 2))
    alone = reports(tmp_path, 2)
    ranks = alone[0].ranks
    assert ranks is not None
    assert [report.steps.rows for report in alone] == [20, 20]
    assert (ranks.complete, ranks.gpus, ranks.steps) == (True, 2, 40)
    assert ranks.total_j == pytest.approx(sum(report.total_j or 0 for report in alone), rel=1e-12)
    assert all(row.part.backward is not None for row in ranks.rows)


@pytest.mark.slow
def test_torchrun_as_it_is(tmp_path: Path) -> None:
    """The launcher's own store serves ranks that never make a process group."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\n"
        "from energy_plugins import EnergyMeter\n"
        "with EnergyMeter(folder=sys.argv[1], distributed=True) as meter:\n"
        "    with meter.step(samples=4):\n"
        "        time.sleep(0.5)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with simulated_gpus([Constant(300), Constant(400)]) as simulation:
        done = subprocess.run(
            [*command, str(script), str(tmp_path / "run")],
            env=simulation.environment(),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert getattr(Report.load(tmp_path / "run").ranks, "complete", False)


# One process.


def test_one_process_is_measured_as_ever(tmp_path: Path) -> None:
    with simulated_gpus([Constant(300), Constant(400)], virtual=True, start_s=10) as simulation:
        with EnergyMeter(folder=tmp_path, distributed=True) as meter:
            simulation.advance(1)
        report = meter.report()
    assert len(report.gpu_j) == 2
    assert report.ranks is None
    assert report.rank == this_rank()


def test_a_folder_is_not_overwritten_by_a_rank(tmp_path: Path, virtual_gpu: Simulation) -> None:
    for _ in range(2):
        meter = EnergyMeter(folder=tmp_path, distributed=True)
        try:
            meter.start().stop()
        except ReportError:
            break
    else:
        pytest.fail("the second run took the first one's folder")


@pytest.fixture
def virtual_gpu() -> object:
    with simulated_gpus(virtual=True, start_s=10) as simulation:
        yield simulation


@pytest.mark.parametrize(
    ("visible", "local", "local_size", "expected", "said", "first"),
    [
        (None, 1, 4, [1], True, True),
        (None, 5, 8, [1], True, False),
        ("2", 1, 4, None, False, False),
        ("2", 0, 4, None, False, True),
        ("3,1", 1, 2, [1], True, True),
        (None, 0, 1, None, False, True),
    ],
)
def test_the_gpu_of_a_rank(
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    local: int,
    local_size: int,
    expected: list[int] | None,
    said: bool,
    first: bool,
) -> None:
    with simulated_gpus(count=4) as simulation:
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        exchange = RankExchange("gpus", Rank(rank=local, world_size=8, local_rank=local, local_world_size=local_size))
        chosen = exchange.own_gpus()
        assert chosen == (None if expected is None else [simulation.gpus[index].uuid for index in expected])
        assert bool(exchange.who.gpu_choice) == said
        assert exchange.first_on_gpu == first


def test_a_process_that_has_ended_is_told_from_one_that_has_not() -> None:
    from energy_plugins.distributed import _has_ended

    own = this_rank()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    ghost = Rank(pid=child, boot_id=own.boot_id, pid_space=own.pid_space)
    assert _has_ended(ghost, own)  # it has ended, and nobody has asked how
    os.waitpid(child, 0)
    assert _has_ended(ghost, own)
    assert not _has_ended(own, own)
    assert not _has_ended(Rank(pid=child, boot_id="another", pid_space=own.pid_space), own)
