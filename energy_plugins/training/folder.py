"""Where the reports of a training's runs go, and those of commands."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path


def new_folder(parent: Path, name: str) -> Path:
    """Make the first free ``<parent>/<name>-<n>``; raises OSError or ValueError without a place to write.

    A name is no path, so that no run's report climbs out of ``parent``: its slashes become dashes.
    """
    plain = name.replace(os.sep, "-")
    return first_free(parent, (f"{plain}-{number}" for number in count(1)))


def first_free(parent: Path, names: Iterable[str]) -> Path:
    """Make ``parent``, and in it a folder by the first of ``names``, which do not end, that nothing there has."""
    # Apart from the loop: of a parent that is a link to nowhere, too, is said that it exists.
    parent.mkdir(parents=True, exist_ok=True)
    for folder in (parent / name for name in names):
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError
