"""Ranks of a training as real processes, started as a launcher would."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import closing


def in_ranks(ranks: int, work: Callable[[int], object], *, patience_s: float = 90.0) -> list[int]:
    """Call ``work`` with its rank in each of ``ranks`` processes, and return how they ended, as `subprocess` has it.

    They are forked from this one, so all that it has imported is there, and have torchrun's variables. Those that do
    not end within ``patience_s`` are killed.
    """
    fork = multiprocessing.get_context("fork")
    port = _free_port()
    processes = [fork.Process(target=_as_rank, args=(work, rank, ranks, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline_s = time.monotonic() + patience_s
    codes = []
    for process in processes:
        with closing(process):
            process.join(max(deadline_s - time.monotonic(), 0.0))
            if process.exitcode is None:
                process.kill()
                process.join()
            codes.append(process.exitcode or 0)
    return codes


def _as_rank(work: Callable[[int], object], rank: int, ranks: int, port: int) -> None:
    os.environ |= {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    warnings.simplefilter("default")  # what frameworks warn of is no failure of the test that forked this
    work(rank)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
