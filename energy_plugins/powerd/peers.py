"""Who is at the other end of a connection, and who computes on a GPU: as the kernel says, never as anybody claims.

A process is told by its uid and its namespaces. Two containers may both run as uid 0, or 1000, and mean different
people: so they are somebody else to each other.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SO_PEERPIDFD = 77  # asm-generic/socket.h; Linux 6.5
_PROC = Path("/proc")


class UnknownPeer(Exception):  # noqa: N818 - an answer, not a failure
    """The kernel does not tell who is at the other end, or they have gone."""


@dataclass(frozen=True)
class Namespaces:
    """The user and pid namespaces of a process, by their inodes."""

    user: int
    pid: int


@dataclass(frozen=True)
class Process:
    """Somebody as far as authority goes."""

    pid: int
    uid: int | None
    """None if it cannot be told: the process is hidden, has ended, or is of several users at once."""
    namespaces: Namespaces | None
    start_ticks: int = 0
    name: str = ""

    def is_same_user(self, other: Process) -> bool:
        """Whether both are known to act for one user of one machine or container."""
        known = None not in {self.uid, self.namespaces}
        return known and (self.uid, self.namespaces) == (other.uid, other.namespaces)


@dataclass(frozen=True)
class Peer:
    """The process that made a connection."""

    process: Process
    uid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket, quiet_ticks: int) -> tuple[Peer, int]:
    """Return who made a connection and a pidfd of it, which the caller closes.

    ``quiet_ticks``: a time when nobody waited to be accepted, of `ticks_now`. Raises UnknownPeer.
    """
    try:
        pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        pidfd = _pidfd(connection, pid, quiet_ticks)
        try:
            groups = frozenset({gid, *_groups(pid)})
            return Peer(_process_behind(pidfd, pid, uid), uid, groups), pidfd
        except BaseException:
            os.close(pidfd)
            raise
    except OSError as error:
        raise UnknownPeer(f"the peer cannot be identified: {error}") from error


def _process_behind(pidfd: int, pid: int, uid: int) -> Process:
    process = process_of(pid)
    # Whatever /proc/PID said was of this very process if that has not ended since.
    if pid <= 0 or _has_ended(pidfd):
        raise UnknownPeer("the peer has ended, or is not seen from here")
    if process.namespaces is None:
        raise UnknownPeer("the namespaces of the peer are hidden")
    if process.uid != uid:
        raise UnknownPeer("the peer is not of the user that connected")
    return process


def process_of(pid: int, proc: Path = _PROC) -> Process:
    """Return what the kernel says of a process that NVML lists."""
    folder = proc / str(pid)
    try:
        started = _start_ticks(folder)
        status = _status(folder)
        uids = set(status["Uid"].split())
        spaces = Namespaces(user=(folder / "ns/user").stat().st_ino, pid=(folder / "ns/pid").stat().st_ino)
        if _start_ticks(folder) != started:
            return Process(pid, None, None)  # the number was used again meanwhile
        # Real, effective, saved and file system's: a program that runs for another user is nobody's in particular.
        uid = int(uids.pop()) if len(uids) == 1 else None
        return Process(pid, uid, spaces, started, status["Name"].strip())
    except (OSError, ValueError, KeyError, IndexError):
        return Process(pid, None, None)


def own_namespaces() -> Namespaces:
    """Return those of this process. Raises OSError where /proc is not there."""
    folder = _PROC / "self/ns"
    return Namespaces(user=(folder / "user").stat().st_ino, pid=(folder / "pid").stat().st_ino)


def _pidfd(connection: socket.socket, pid: int, quiet_ticks: int) -> int:
    try:
        (pidfd,) = struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        pidfd = pidfd_by_number(pid, quiet_ticks)
    return int(pidfd)


def pidfd_by_number(pid: int, quiet_ticks: int) -> int:
    """Return a pidfd of the process that had this number at ``quiet_ticks`` and has it still.

    Before Linux 6.5 a connection gives a number alone, which may be used again before it is looked at. When nobody
    waited to be accepted at ``quiet_ticks``, whoever connected did so later; so a process of that number which is older
    than that is the one that connected. Raises UnknownPeer if it is younger: it may try again a moment later.
    """
    pidfd = os.pidfd_open(pid)
    if _start_ticks(_PROC / str(pid)) < quiet_ticks and not _has_ended(pidfd):
        return pidfd
    os.close(pidfd)
    raise UnknownPeer("the peer has only just started, or has ended: try again")


def ticks_now() -> int:
    """Return the time since boot as /proc/PID/stat counts it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()  # select() knows no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _groups(pid: int) -> Iterator[int]:
    # Not SO_PEERGROUPS: Python's getsockopt gives room for 256 groups, and some people have more.
    return map(int, _status(_PROC / str(pid))["Groups"].split())


def _status(folder: Path) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition(":") for line in _text(folder / "status").splitlines())}


def _start_ticks(folder: Path) -> int:
    # The name stands in parentheses and may hold any character; field 22 of proc(5) is the 20th after it.
    return int(_text(folder / "stat").rpartition(")")[2].split()[19])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
