"""What the kernel allows this process to do."""

from __future__ import annotations

from pathlib import Path

CAP_SYS_ADMIN = 21
"""What the kernel module asks for before a limit is set (NV_IS_SUSER in its sources; capability.h)."""


def has_capability(number: int, status: Path = Path("/proc/self/status")) -> bool:
    """Return whether this process has a capability in force; False where the system does not say."""
    return bool(int(_status_field(status, "CapEff") or "0", 16) >> number & 1)


def _status_field(status: Path, name: str) -> str | None:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), None)
