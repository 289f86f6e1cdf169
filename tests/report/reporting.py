"""Reports made by hand, for what reads reports."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import STATE_COLUMNS, DeviceInfo, Work

_NUMBERS = itertools.count()


def make_report(
    *,
    energy_j: float | None = 1000.0,
    duration_s: float = 10.0,
    node: str = "node-1",
    start_c: float | None = None,
    samples: int | None = 100,
    tokens: int | None = None,
    **others: Any,
) -> Report:
    """Return the report of a run on one GPU of ``node``."""
    number, uuid = next(_NUMBERS), f"GPU-of-{node}"
    values: dict[str, Any] = {
        "run_id": f"run-{number}",
        "name": "made by hand",
        "node": node,
        "started": "2026-11-22T08:00:00.000+00:00",
        "duration_s": duration_s,
        "complete": True,
        "simulated": False,
        "total_j": energy_j,
        "gpu_j": {uuid: energy_j},
        "coverage": 1.0,
        "devices": (DeviceInfo(uuid=uuid, name="NVIDIA H200", index=0, driver="580.1"),),
        "work": Work(steps=10, samples=samples, tokens=tokens),
        "state": {} if start_c is None else {uuid: state(start_c)},
    }
    return Report(**{**values, **others})


def state(start_c: float) -> Columns:
    """Return two readings of a state: one at the beginning, and a warmer one."""
    other = {name: np.zeros(2, code) for name, code in STATE_COLUMNS.items()}
    return Columns.of({**other, "t_s": np.array([1.0, 2.0]), "temperature_c": np.array([start_c, start_c + 5])})


def save_all(parent: Path, *reports: Report) -> Path:
    """Save each report in a folder of its own in ``parent``, and return that."""
    for number, report in enumerate(reports):
        report.save(parent / f"run-{number}")
    return parent
