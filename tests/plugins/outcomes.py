"""What a training leaves behind: reports, warnings, and what its profile shows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from energy_plugins.measure.report import Report

_SYNCHRONISING = ("Synchronize", "cudaMemcpy", "cudaEventQuery")


def load(folder: Path, number: int = 1) -> Report:
    return Report.load(folder / "energy" / f"run-{number}")


def load_if_any(folder: Path) -> Report | None:
    return load(folder) if (folder / "energy" / "run-1" / "report.json").exists() else None


def counts(report: Report) -> dict[str, int]:
    return {phase.kind: phase.count for phase in report.phases}


def synchronisations(profile: torch.profiler.profile) -> Counter[str]:
    """Count the calls that wait for the device, or copy to or from it."""
    return Counter(event.name for event in profile.events() or () if any(name in event.name for name in _SYNCHRONISING))


@contextmanager
def our_warnings() -> Iterator[list[str]]:
    """Collect what would have been warned of measuring."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield texts
    texts += [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
