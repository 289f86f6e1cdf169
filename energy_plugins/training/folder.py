"""Where the reports of a training's runs go."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from pathlib import Path


def new_folder(parent: Path, name: str) -> Path:
    """Make the first free ``<parent>/<name>-<n>``; raises OSError or ValueError without a place to write."""
    numbers = count(1)
    while True:
        folder = parent / f"{name}-{next(numbers)}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
