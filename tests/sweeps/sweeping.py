"""Studies on simulated GPUs, in storages of every kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend

from energy_plugins.testing import Simulation

Simulated = Callable[..., Simulation]

optuna.logging.set_verbosity(optuna.logging.WARNING)


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def journal(folder: Path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))


def wait_until(is_so: Callable[[], bool], patience_s: float = 20.0) -> None:
    end_s = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < end_s, "it did not come to be"
        time.sleep(0.05)
