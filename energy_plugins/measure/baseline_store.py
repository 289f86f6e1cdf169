"""Idle power remembered for each node and GPU: ``$XDG_CACHE_HOME/energy-plugins/baselines.json``.

The file is read with suspicion: one that belongs to somebody else, that others may write, or that holds nonsense is
left aside, with the reason. It is replaced as a whole, so a reader never sees half of it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from energy_plugins.errors import ReportError
from energy_plugins.measure.json_section import Section, parse
from energy_plugins.measure.private_file import alone_with, cache_folder, read_private, replace_private

OLD = timedelta(days=30)
"""A baseline older than this is used, with a warning: dust, fans and drivers change what an idle card draws."""
_MOST_W = 10_000.0
"""No GPU draws as much; a file that says so is wrong."""


@dataclass(frozen=True, kw_only=True)
class IdlePower:
    """What one GPU draws when idle, and when that was measured."""

    uuid: str
    power_w: float
    error_bound_w: float
    """95 % bound against the GPU's own sensor."""
    measured: str
    """Wall time in UTC, ISO 8601."""
    seconds: float
    driver: str

    @classmethod
    def read(cls, uuid: str, section: Section) -> IdlePower:
        """Read it from JSON; raises ReportError."""
        idle = cls(
            uuid=uuid,
            power_w=section.number("power_w"),
            error_bound_w=section.number("error_bound_w"),
            measured=section.text("measured"),
            seconds=section.number("seconds"),
            driver=section.text("driver"),
        )
        if not 0 < idle.power_w < _MOST_W:
            raise section.error("power_w", f"is {idle.power_w}, which no GPU draws")
        try:
            aware = datetime.fromisoformat(idle.measured).tzinfo is not None
        except ValueError:
            aware = False
        if not aware:
            raise section.error("measured", "must be a time with its zone")
        return idle

    def age(self, at: str) -> timedelta:
        """Return how long before ``at`` (ISO 8601, with its zone) it was measured."""
        return datetime.fromisoformat(at) - datetime.fromisoformat(self.measured)

    def doubts(self, at: str, driver: str) -> list[str]:
        """Say why this may no longer hold at a later time and under another driver; nothing if it should."""
        age, found = self.age(at), []
        if age > OLD:
            found.append(f"the idle baseline of GPU {self.uuid} is {age.days} days old: measure it again")
        if driver != self.driver:
            found.append(
                f"the idle baseline of GPU {self.uuid} was measured with driver {self.driver}, and this is {driver}: "
                "measure it again"
            )
        return found


@dataclass(frozen=True)
class Remembered:
    """What the file holds for some GPUs of this node."""

    idle: Mapping[str, IdlePower] = field(default_factory=dict)
    trouble: str = ""
    """Why the file, or an entry of it, was left aside."""

    @property
    def idle_w(self) -> dict[str, float]:
        """Idle power (W) by UUID."""
        return {uuid: entry.power_w for uuid, entry in self.idle.items()}


def store_path() -> Path:
    """Return where the baselines of this user are kept."""
    return cache_folder() / "baselines.json"


def recall(uuids: Iterable[str]) -> Remembered:
    """Return what is remembered of these GPUs; never raises."""
    try:
        nodes = _read(store_path())
        entries = nodes.get(platform.node(), {})
    except (ReportError, OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return Remembered(trouble=f"the idle baselines are not used: {error}")
    idle, trouble = {}, ""
    for uuid in uuids:
        try:
            if uuid in entries:
                idle[uuid] = IdlePower.read(uuid, entries[uuid])
        except ReportError as error:
            trouble = f"an idle baseline is not used: {error}"
    return Remembered(idle, trouble)


def remember(idle: Iterable[IdlePower]) -> Path:
    """Keep these for this node, in place of what was known of the same GPUs, and return the file.

    Raises:
        OSError: it cannot be written, or what it holds of other GPUs cannot be read.
        RuntimeError: this user has no home folder.
    """
    path = store_path()
    with alone_with(path):
        try:
            nodes = _read(path)
        except ReportError:
            nodes = {}  # what cannot be trusted is not kept either
        known: dict[str, dict[str, object]] = {
            node: {uuid: entry.values for uuid, entry in entries.items()} for node, entries in nodes.items()
        }
        mine = known.setdefault(platform.node(), {})
        for one in idle:
            mine[one.uuid] = {name: value for name, value in asdict(one).items() if name != "uuid"}
        replace_private(path, json.dumps({"version": 1, "nodes": known}, indent=1) + "\n")
    return path


def _read(path: Path) -> dict[str, dict[str, Section]]:
    """Return the entries by node and GPU, none if there is no file. Raises ReportError, OSError."""
    content = read_private(path)
    if content is None:
        return {}
    section = parse(content, str(path))
    if section.count("version") != 1:
        raise section.error("version", "is not 1: it was written by another version of energy-plugins")
    nodes = section.section_by_name("nodes")
    return {node: {uuid: entries.section(uuid) for uuid in entries.values} for node, entries in nodes.items()}
