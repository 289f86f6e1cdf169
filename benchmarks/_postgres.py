"""A PostgreSQL server of one's own: unprivileged, in a temporary folder, reached by a socket there and nothing else."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 60.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
"""prctl(2), linux/prctl.h."""
_OWNER = "nobody"
"""Whom the server runs as if we are root, which it refuses."""


def postgres_missing() -> str:
    """Say what is missing to start a server; nothing if all is there."""
    try:
        _tool("initdb"), _tool("postgres")
    except FileNotFoundError as error:
        return f"needs PostgreSQL's {error} (Debian's package postgresql)"
    return ""


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server with an empty database, yield the URL of that, and stop it."""
    owner = _OWNER if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="energy-pg-"))
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        data = str(folder / "data")
        command = [_tool("initdb"), "--no-sync", "--auth=trust", "--username=energy", "--encoding=UTF8", "-D", data]
        subprocess.run(command, cwd=folder, user=owner, check=True, capture_output=True, timeout=_PATIENCE_S)
        # No TCP: nobody but this machine's users can reach it.
        options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "max_connections=200"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [_tool("postgres"), "-D", data, *options],
                cwd=folder,
                user=owner,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call of the kernel, which takes no lock
            )
        try:
            _await(folder, server)
            yield f"postgresql+psycopg://energy@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # fast: it disconnects clients
            server.wait(_PATIENCE_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    """Have the kernel stop the server when this process is killed and cannot."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _tool(name: str) -> str:
    """Return a program of the server, which Debian keeps out of PATH. Raises FileNotFoundError."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    found = shutil.which(name) or next((str(place / name) for place in places if (place / name).exists()), None)
    if found is None:
        raise FileNotFoundError(name)
    return found


def _await(folder: Path, server: subprocess.Popen[bytes]) -> None:
    import psycopg  # noqa: PLC0415 - an extra

    end_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            psycopg.connect(host=str(folder), user="energy", dbname="postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError((folder / "log").read_text()) from None
            time.sleep(0.05)
        else:
            return
