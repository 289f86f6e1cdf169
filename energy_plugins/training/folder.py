"""Where the reports of a training's runs go."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from pathlib import Path


def new_folder(parent: Path, name: str) -> Path:
    """Make the first free ``<parent>/<name>-<n>``; raises OSError or ValueError without a place to write.

    A name is no path, so that no run's report climbs out of ``parent``: its slashes become dashes.
    """
    # Apart from the loop: of a parent that is a link to nowhere, too, is said that it exists.
    parent.mkdir(parents=True, exist_ok=True)
    numbers = count(1)
    while True:
        folder = parent / f"{name.replace(os.sep, '-')}-{next(numbers)}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
