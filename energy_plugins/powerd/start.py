"""How the helper starts: it refuses to unless root alone can change what it runs and believes."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from energy_plugins.powerd.check import findings, preflight, show
from energy_plugins.powerd.config import DEFAULT_PATH, Config
from energy_plugins.powerd.journal import Journal
from energy_plugins.powerd.leases import Leases
from energy_plugins.powerd.nvml import DriverError, Nvml
from energy_plugins.powerd.peers import own_namespaces
from energy_plugins.powerd.policy import Site
from energy_plugins.powerd.server import Server

REFUSED = 3
"""Exit code: something is wrong that only an administrator can put right, so starting again is of no use."""
_BACKLOG = 512


def main(arguments: Sequence[str], loader_variables: Sequence[str]) -> int:
    """Serve until told to stop; return the exit code."""
    parser = argparse.ArgumentParser("energy-powerd", description="Sets power limits for users, as the site allows.")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="say what would be refused and granted, and exit")
    options = parser.parse_args(arguments)
    config, wrong = preflight(options.config, loader_variables)
    if options.check:
        return show(findings(config, wrong))
    for sentence in wrong:
        _log(f"will not start: {sentence}")
    return REFUSED if wrong or config is None else _serve(config)


def _serve(config: Config) -> int:
    os.umask(0o077)
    journal = Journal(config.journal)
    try:
        journal.open()
        nvml = Nvml(config.nvml)
        gpus = frozenset(nvml.uuids())
        leases = Leases(Site(config, own_namespaces()), nvml, journal, _log, gpus)
        with _alone(config.journal), _listener(config) as listener:
            leases.recover(time.monotonic())
            _log(f"serves {len(gpus)} GPUs on {config.socket}")
            Server(listener, leases, _log).run()
    except (OSError, DriverError) as error:
        _log(f"cannot serve: {error}")
        return 1
    with suppress(OSError):
        config.socket.unlink()
    return 1 if leases.owed() else 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second helper out, which would put back what this one sets. Raises OSError if there is one already."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _listener(config: Config) -> socket.socket:
    """Bind the socket, for root and the site's group."""
    if not config.socket.parent.exists():
        config.socket.parent.mkdir(parents=True)
        config.socket.parent.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(config.socket.lstat().st_mode):
            config.socket.unlink()
    listener.bind(str(config.socket))
    if config.gid is not None:
        os.chown(config.socket, 0, config.gid)
    config.socket.chmod(0o660)
    listener.listen(_BACKLOG)
    return listener


def _log(line: str) -> None:
    with suppress(OSError):  # a full disk under the log is no reason to let go of GPUs
        os.write(2, f"energy-powerd: {line}\n".encode(errors="backslashreplace"))
