"""What a site allows: a TOML file that only root may write, read once, at the start."""

from __future__ import annotations

import grp
import math
import pwd
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

DEFAULT_PATH = Path("/etc/energy-plugins/powerd.toml")
DEFAULT_SOCKET = Path("/run/energy-powerd/socket")

UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,80}")
EVERY = "*"

_NOBODY_AT_ALL = 2**32 - 1  # (uid_t) -1, which asks system calls to change nothing

T = TypeVar("T")
D = TypeVar("D")


class SiteConfigError(Exception):
    """A key that does not exist or a value that is not allowed; the message says where."""


@dataclass(frozen=True)
class Range:
    """Limits that a site allows on some GPUs, in watts."""

    min_w: float
    max_w: float
    gpus: frozenset[str] = frozenset({EVERY})


@dataclass(frozen=True)
class Grant:
    """GPUs whose limit some users may set whoever computes on them."""

    gpus: frozenset[str]
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    containers: bool = False
    """Whether it holds for processes in containers too, where anybody may be any uid of theirs."""

    def covers(self, uuid: str) -> bool:
        """Whether it is about a GPU."""
        return bool(self.gpus & {uuid, EVERY})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the file says."""

    nvml: Path
    """The driver's library: nothing else names it."""
    socket: Path = DEFAULT_SOCKET
    gid: int | None = None
    """The group whose members may connect; None: root's alone."""
    journal: Path = Path("/var/lib/energy-powerd")
    lease_s: float = 15.0
    """How long a limit stays without a word from its client."""
    above_found: bool = False
    """Whether a client may set more than the limit it found."""
    sets_per_minute: float = 60.0
    """For each user."""
    messages_per_s: float = 50.0
    """For each user, on all its connections together: more are read later."""
    connections: int = 1024
    connections_per_user: int = 256
    ranges: tuple[Range, ...] = ()
    grants: tuple[Grant, ...] = ()

    def range_of(self, uuid: str) -> Range:
        """Return the site's range of a GPU: the one that names it, else that of every GPU, else no bounds."""
        for name in (uuid, EVERY):
            for one in self.ranges:
                if name in one.gpus:
                    return one
        return Range(0.0, math.inf)


def read(path: Path) -> Config:
    """Return what a file says.

    Raises:
        SiteConfigError: It says what it may not.
        OSError: It cannot be read.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOML's and Unicode's
        raise SiteConfigError(str(error)) from error


def parse(text: str) -> Config:
    """Return what the text of a file says. Raises SiteConfigError, or ValueError where it is no TOML."""
    table = _Table(tomllib.loads(text), "")
    config = Config(
        nvml=table.take("nvml", _path),
        socket=table.take("socket", _path, Config.socket),
        gid=table.take("group", _gid, None),
        journal=table.take("journal", _path, Config.journal),
        lease_s=table.take("lease_s", _between(1.0, 3600.0), Config.lease_s),
        above_found=table.take("above_found", _flag, Config.above_found),
        sets_per_minute=table.take("sets_per_minute", _between(1.0, 6e4), Config.sets_per_minute),
        messages_per_s=table.take("messages_per_s", _between(1.0, 1e5), Config.messages_per_s),
        connections=table.take("connections", _count, Config.connections),
        connections_per_user=table.take("connections_per_user", _count, Config.connections_per_user),
        ranges=tuple(_range(_Table(row, "range")) for row in table.take("range", _rows, [])),
        grants=tuple(_grant(_Table(row, "grant")) for row in table.take("grant", _rows, [])),
    )
    table.end()
    return config


class _Table:
    """A table of the file from which each key is taken once."""

    def __init__(self, values: Mapping[str, object], name: str) -> None:
        self._values = dict(values)
        self._prefix = f"{name}." if name else ""

    def take(self, key: str, kind: Callable[[object, str], T], *default: D) -> T | D:
        """Take a value of a kind. Raises SiteConfigError if it is none, or missing without a default."""
        where = self._prefix + key
        if key in self._values:
            return kind(self._values.pop(key), where)
        if not default:
            raise SiteConfigError(f"{where} is missing")
        return default[0]

    def end(self) -> None:
        """Raise SiteConfigError if something is left."""
        for key in self._values:
            raise SiteConfigError(f"{self._prefix}{key} is no key of this file")


def _range(table: _Table) -> Range:
    watts = _between(1.0, 1e5)
    found = Range(table.take("min_w", watts), table.take("max_w", watts), table.take("gpus", _gpus, Range.gpus))
    table.end()
    if found.min_w > found.max_w:
        raise SiteConfigError("range.min_w is above range.max_w")
    return found


def _grant(table: _Table) -> Grant:
    found = Grant(
        gpus=table.take("gpus", _gpus),
        uids=frozenset(_uid(name, "grant.users") for name in table.take("users", _list, [])),
        gids=frozenset(_gid(name, "grant.groups") for name in table.take("groups", _list, [])),
        containers=table.take("containers", _flag, Grant.containers),
    )
    table.end()
    if not found.uids and not found.gids:
        raise SiteConfigError("a grant names neither users nor groups")
    return found


def _path(value: object, where: str) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise SiteConfigError(f"{where} must be a full path")
    return Path(value)


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise SiteConfigError(f"{where} must be true or false")
    return value


def _count(value: object, where: str) -> int:
    return int(_between(1, 60_000)(value, where))


def _between(lowest: float, highest: float) -> Callable[[object, str], float]:
    def number(value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
            raise SiteConfigError(f"{where} must be a number from {lowest:g} to {highest:g}")
        return float(value)

    return number


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise SiteConfigError(f"{where} must be a list of at least one")
    return value


def _rows(value: object, where: str) -> list[dict[str, object]]:
    rows = _list(value, where)
    if not all(isinstance(row, dict) for row in rows):
        raise SiteConfigError(f"{where} must be written as [[{where}]]")
    return [row for row in rows if isinstance(row, dict)]


def _gpus(value: object, where: str) -> frozenset[str]:
    names = [name for name in _list(value, where) if isinstance(name, str) and (name == EVERY or UUID.fullmatch(name))]
    if names != value:
        raise SiteConfigError(f'{where} must hold UUIDs of GPUs (GPU-...), or "*" for all')
    return frozenset(names)


def _uid(name: object, where: str) -> int:
    return _number_of(name, where, lambda text: pwd.getpwnam(text).pw_uid)


def _gid(name: object, where: str) -> int:
    return _number_of(name, where, lambda text: grp.getgrnam(text).gr_gid)


def _number_of(name: object, where: str, look_up: Callable[[str], int]) -> int:
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < _NOBODY_AT_ALL:
        return name
    if not isinstance(name, str):
        raise SiteConfigError(f"{where} must be a name or a number")
    try:
        return look_up(name)
    except KeyError:
        raise SiteConfigError(f"{where}: there is no {name!r} here") from None
