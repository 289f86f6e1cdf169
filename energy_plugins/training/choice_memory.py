"""What searches chose, remembered on this node for each kind of training: a small file in the cache.

What such a file says is only where to look first: it is measured before it is used. It is read with suspicion all the
same, as the idle baselines are (`private_file`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from energy_plugins.errors import ReportError
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.json_section import JSON, Section, parse
from energy_plugins.measure.private_file import alone_with, cache_folder, read_private, replace_private
from energy_plugins.training.guard import FAILURES, warn

OLD = timedelta(days=90)
"""What is older is searched for again: drivers, dust and software have changed."""
_MOST = 200
"""Kinds of trainings that are remembered; the oldest are forgotten."""

Kind = Mapping[str, JSON]
"""What a training is known by: GPU model, model shape, batch, precision, and what was asked for."""


@dataclass(frozen=True)
class ChoiceMemory:
    """One file of choices, each a number above 0."""

    file: str
    """Its name in the cache."""
    section: str
    """The key under which it has all of them."""
    value: str
    """The key of the number in each."""
    what: str
    """What one is called in warnings."""
    several: str
    """What more than one are."""
    most: float
    """No such number is as high."""

    def recall(self, kind: Kind) -> float | None:
        """Return what was chosen for such a training, None if nothing is known; trouble is a warning."""
        try:
            entry = self._read().get(_name(kind))
            if entry is None:
                return None
            number, chosen = entry.number(self.value), datetime.fromisoformat(entry.text("chosen"))
            if not 0 < number < self.most or chosen.tzinfo is None:
                raise entry.error(self.value, "is none, or its date is")
        except FAILURES as error:
            warn(f"the {self.several} that are remembered are not used: {error}")
            return None
        age = _now() - chosen
        if not -timedelta(days=1) <= age <= OLD:
            warn(f"the {self.what} that is remembered is {age.days} days old: it is searched for again")
            return None
        return number

    def remember(self, kind: Kind, number: float) -> None:
        """Keep a choice for the next training of this kind; trouble is a warning."""
        try:
            path = self.path()
            with alone_with(path):
                try:
                    known = {name: dict(entry.values) for name, entry in self._read().items()}
                except ReportError:
                    known = {}  # what cannot be trusted is not kept either
                known.pop(_name(kind), None)
                known[_name(kind)] = {
                    self.value: number,
                    "chosen": _now().isoformat(timespec="seconds"),
                    "of": dict(kind),
                }
                replace_private(path, self._text(dict(list(known.items())[-_MOST:])))
        except FAILURES as error:
            warn(f"the {self.what} found is not remembered: {error}")

    def forget(self, kind: Kind) -> None:
        """Keep nothing of such trainings any more; trouble is a warning."""
        try:
            path = self.path()
            with alone_with(path):
                known = {name: dict(entry.values) for name, entry in self._read().items()}
                if known.pop(_name(kind), None) is not None:
                    replace_private(path, self._text(known))
        except FAILURES as error:
            warn(f"the {self.what} that is remembered is not forgotten: {error}")

    def path(self) -> Path:
        """Return where they are kept. Raises RuntimeError if there is no home folder."""
        return cache_folder() / self.file

    def _text(self, known: Mapping[str, Mapping[str, object]]) -> str:
        return json.dumps({"version": 1, self.section: known}, indent=1) + "\n"

    def _read(self) -> dict[str, Section]:
        """Return the entries by name, the oldest first. Raises ReportError, OSError."""
        content = read_private(self.path())
        if content is None:
            return {}
        section = parse(content, str(self.path()))
        if section.count("version") != 1:
            raise section.error("version", "is not 1: it was written by another version of energy-plugins")
        return section.section_by_name(self.section)


def _name(kind: Kind) -> str:
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:32]


def _now() -> datetime:
    return datetime.fromtimestamp(current_drivers().clock.wall_ns() * 1e-9, UTC)
