"""Limits that searches chose, remembered on this node for each kind of training: ``power_limits.json`` in the cache.

What the file says is only where to look first: a limit from it is measured before it is used. It is read with suspicion
all the same, as the idle baselines are (`private_file`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from energy_plugins.errors import ReportError
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.json_section import JSON, Section, parse
from energy_plugins.measure.private_file import alone_with, cache_folder, read_private, replace_private
from energy_plugins.training.guard import FAILURES, warn
from energy_plugins.training.limit_check import Kept

OLD = timedelta(days=90)
"""What is older is searched for again: drivers, dust and software have changed."""
_MOST = 200
"""Kinds of trainings that are remembered; the oldest are forgotten."""
_MOST_VALUE = 1e5
"""No limit in watts and no clock in megahertz is as high."""

Kind = Mapping[str, JSON]
"""What a training is known by: GPU model, model shape, batch, precision, and what was asked for."""


def recall(kind: Kind) -> float | None:
    """Return the limit that was chosen for such a training, None if none is known; trouble is a warning."""
    try:
        entry = _read(store_path()).get(_name(kind))
        if entry is None:
            return None
        limit, chosen = entry.number("limit"), datetime.fromisoformat(entry.text("chosen"))
        if not 0 < limit < _MOST_VALUE or chosen.tzinfo is None:
            raise entry.error("limit", "is none, or its date is")
    except FAILURES as error:
        warn(f"the power limits that are remembered are not used: {error}")
        return None
    age = _now() - chosen
    if not -timedelta(days=1) <= age <= OLD:
        warn(f"the power limit that is remembered is {age.days} days old: it is searched for again")
        return None
    return limit


def remember(kind: Kind, kept: Kept) -> None:
    """Keep a choice for the next training of this kind; trouble is a warning."""
    path = store_path()
    try:
        with alone_with(path):
            try:
                known = {name: dict(entry.values) for name, entry in _read(path).items()}
            except ReportError:
                known = {}  # what cannot be trusted is not kept either
            known.pop(_name(kind), None)
            known[_name(kind)] = {"limit": kept.limit, "chosen": _now().isoformat(timespec="seconds"), "of": dict(kind)}
            latest = dict(list(known.items())[-_MOST:])
            replace_private(path, json.dumps({"version": 1, "limits": latest}, indent=1) + "\n")
    except FAILURES as error:
        warn(f"the power limit found is not remembered: {error}")


def store_path() -> Path:
    """Return where they are kept. Raises RuntimeError if there is no home folder."""
    return cache_folder() / "power_limits.json"


def _name(kind: Kind) -> str:
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:32]


def _now() -> datetime:
    return datetime.fromtimestamp(current_drivers().clock.wall_ns() * 1e-9, UTC)


def _read(path: Path) -> dict[str, Section]:
    """Return the entries by name, the oldest first. Raises ReportError, OSError."""
    content = read_private(path)
    if content is None:
        return {}
    section = parse(content, str(path))
    if section.count("version") != 1:
        raise section.error("version", "is not 1: it was written by another version of energy-plugins")
    return section.section_by_name("limits")
