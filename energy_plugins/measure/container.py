"""What a container, a batch system or a user's slice leaves a process of the machine: its cgroups' limits.

Version 2 has one tree, version 1 one for each controller (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of
Linux). A limit of a group holds for those inside it, too, so the least on the way up counts. Inside a container the
path of the group may be that of the host, of which nothing is mounted: then the root of the mount is its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def memory_limit_bytes(sys: Path, proc: Path) -> int | None:
    """Return the most memory that this process's cgroups allow; None where they set no limit.

    Args:
        sys: where sysfs is.
        proc: where the processes of this machine are listed.
    """
    limits = [
        number
        for group in _groups(sys, proc, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (number := _number(group / name)) is not None
    ]
    return min(limits, default=None)


def cpu_limit(sys: Path, proc: Path) -> float | None:
    """Return how many CPUs' time this process's cgroups allow at once, such as 1.5; None where they set no limit."""
    limits = []
    for group in _groups(sys, proc, "cpu"):
        newer, older = group / "cpu.max", group / "cpu.cfs_quota_us"
        quota, period = _number(newer), _number(newer, 1)
        if quota is None:
            quota, period = _number(older), _number(group / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:  # -1 is no limit, in version 1
            limits.append(quota / period)
    return min(limits, default=None)


def _groups(sys: Path, proc: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in, from its own up to the root of each mount."""
    root = sys / "fs/cgroup"
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root
        elif controller in controllers.split(","):
            mount = root / controller
        else:
            continue
        own = mount / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(mount) and group.is_dir():
                yield group


def _number(path: Path, place: int = 0) -> int | None:
    """Return a number of a file's first line; None if it is not there, or a word such as "max"."""
    try:
        return int(path.read_text(encoding="ascii").split()[place])
    except (OSError, ValueError, IndexError):
        return None
