"""What it costs eight ranks to tell each other of their joules: collectives, and CPU time, in a minute of training.

Eight processes of torchrun with a gloo group, each on a simulated GPU of its own, train in epochs of 10 s; each step
ends with an all-reduce. Rank 3 is slower than the others. All that crosses between ranks is counted: collectives by the
group's own sequence number, CPU time on every thread by the report.

    python benchmarks/ranks.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import Bar, finish, gpu_names

from energy_plugins import EnergyMeter, Kind, Report
from energy_plugins.testing import Constant, simulated_gpus

_RANKS = 8
_SECONDS = 60.0
_EPOCH_S = 10.0
_SLOW, _SLOW_S = 3, 0.04
_POWER_W = [300.0 + 20 * rank for rank in range(_RANKS)]


def train(folder: Path, seconds: float) -> None:
    """Be one rank: train for some time, and leave beside the report how many collectives were whose."""
    import torch  # noqa: PLC0415 - only ranks need it
    import torch.distributed as dist  # noqa: PLC0415

    dist.init_process_group("gloo")
    rank, own, epochs = dist.get_rank(), 0, 0
    dist.barrier()
    before = _collectives()
    with EnergyMeter("ranks", folder=folder, distributed=True) as meter:
        go_on = torch.ones(1)
        began = epoch_began = time.monotonic()
        while go_on.item():
            with meter.step(samples=8):
                time.sleep(0.05 + (_SLOW_S if rank == _SLOW else 0.0))
                with meter.span(Kind.BACKWARD):
                    go_on = torch.tensor([float(time.monotonic() - began < seconds)])
                    dist.all_reduce(go_on, dist.ReduceOp.MIN)
                    own += 1
            if time.monotonic() - epoch_began >= _EPOCH_S:
                epochs, epoch_began = epochs + 1, time.monotonic()
    counts = {"own": own, "all": _collectives() - before, "epochs": epochs}
    (folder / f"counts-{rank}.json").write_text(json.dumps(counts))
    dist.barrier()
    dist.destroy_process_group()


def _collectives() -> int:
    from torch.distributed import distributed_c10d  # noqa: PLC0415

    group: Any = distributed_c10d._get_default_group()  # noqa: SLF001 - torch counts, and has no public name for it
    return int(group._get_sequence_number_for_group())  # noqa: SLF001


def main() -> int:
    """Start the ranks, read what they left, write the result, print the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the time")
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    seconds = _SECONDS / 4 if asked.quick else _SECONDS
    if asked.rank_in is not None:
        train(asked.rank_in, seconds)
        return 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={_RANKS}", __file__]
    with (
        simulated_gpus([Constant(power_w) for power_w in _POWER_W]) as simulation,
        tempfile.TemporaryDirectory() as place,
    ):
        environment = {**simulation.environment(), "OMP_NUM_THREADS": "1"}
        quick = ["--quick"] if asked.quick else []
        subprocess.run([*command, "--rank-in", place, *quick], env=environment, check=True)
        gpus = gpu_names()
        reports = [Report.load(Path(place, f"rank-{rank}" if rank else "")) for rank in range(_RANKS)]
        counts = [json.loads(Path(place, f"counts-{rank}.json").read_text()) for rank in range(_RANKS)]
    ranks = reports[0].ranks
    assert ranks is not None
    parts_j = sum(report.total_j or 0.0 for report in reports)
    share = [report.observer.ranks_s / report.duration_s for report in reports]
    bars = [
        Bar(
            "collectives beside the training's own, per epoch",
            max((count["all"] - count["own"]) / count["epochs"] for count in counts),
            at_most=1,
            show=".2f",
        ),
        Bar(
            "CPU time of telling and merging on the rank with most of it, of a core",
            max(share),
            at_most=0.002,
            show=".3%",
        ),
        Bar(
            "sum of all ranks against the sum of their reports",
            abs((ranks.total_j or 0.0) / parts_j - 1),
            at_most=1e-9,
            show=".1e",
        ),
        Bar(
            "ranks wrongly called stragglers, or wrongly not",
            len({*ranks.stragglers} ^ {_SLOW}),
            at_most=0,
            show="d",
        ),
    ]
    figures = {
        "ranks": {
            "count": _RANKS,
            "duration_s": ranks.duration_s,
            "total_j": ranks.total_j,
            "error_bound_j": ranks.error_bound_j,
            "peer_wait_j": ranks.peer_wait_j,
            "stragglers": list(ranks.stragglers),
            "complete": ranks.complete,
        }
    }
    raw = {
        "by_rank": {
            "ranks_s": [report.observer.ranks_s for report in reports],
            "energy_j": [report.total_j or float("nan") for report in reports],
            "backward_s": [row.part.backward.seconds if row.part.backward else float("nan") for row in ranks.rows],
            "peer_wait_j": [row.peer_wait_j if row.peer_wait_j is not None else float("nan") for row in ranks.rows],
            "own_collectives": [count["own"] for count in counts],
            "all_collectives": [count["all"] for count in counts],
            "epochs": [count["epochs"] for count in counts],
        }
    }
    return finish("ranks", gpus=gpus, figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
