"""Whether somebody else is profiling the GPUs of this machine."""

from __future__ import annotations

from pathlib import Path

_SERVICES = frozenset({"nv-hostengine", "dcgm-exporter"})
_MONITOR = "dcgmi"


def dcgm_processes(proc: Path) -> tuple[str, ...]:
    """Return the DCGM profilers that run, by name and process id, as far as ``proc`` (normally /proc) shows them.

    Those are its host engine, its exporter and ``dcgmi dmon``. In a container of its own nothing of the host is seen.
    """
    found = []
    for comm in proc.glob("[0-9]*/comm"):
        name = _text(comm).strip()
        arguments = _text(comm.with_name("cmdline")).split("\0") if name == _MONITOR else []
        if name in _SERVICES or "dmon" in arguments:
            found.append(f"{name} (process {comm.parent.name})")
    return tuple(sorted(found))


def _text(path: Path) -> str:
    """Return what a file of a process says; nothing once the process has ended."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
