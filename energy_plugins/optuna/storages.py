"""A storage of Optuna's by what a user calls it: a URL, a journal file, or the address of a gRPC proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import optuna

from energy_plugins.errors import ConfigError

_GRPC: Final = "grpc://"
_GRPC_PORT: Final = 13000
"""Optuna's default (`optuna.storages.run_grpc_proxy_server`)."""


def open_storage(storage: str) -> optuna.storages.BaseStorage:
    """Open ``sqlite:///file.db`` or any URL of SQLAlchemy's, a file (SQLite or a journal), or ``grpc://host:port``.

    Raises:
        ConfigError: there is no such file, or this version of Optuna has no such storage.
    """
    if storage.startswith(_GRPC):
        proxy = getattr(optuna.storages, "GrpcStorageProxy", None)  # since Optuna 4.2
        if proxy is None:
            raise ConfigError(f"{storage}: Optuna {optuna.__version__} has no gRPC storage, 4.2 or newer has")
        host, _, port = storage.removeprefix(_GRPC).partition(":")
        opened: optuna.storages.BaseStorage = proxy(host=host or "localhost", port=int(port or _GRPC_PORT))
        return opened
    if "://" in storage:
        return optuna.storages.get_storage(storage)
    path = Path(storage)
    if not path.is_file():
        raise ConfigError(f"{storage} is no file: give one, or a URL such as sqlite:///study.db or grpc://host:13000")
    with path.open("rb") as file:
        is_sqlite = file.read(16) == b"SQLite format 3\0"  # sqlite.org/fileformat.html
    if is_sqlite:
        return optuna.storages.get_storage(f"sqlite:///{path}")
    if hasattr(optuna.storages, "journal"):  # since Optuna 4
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return optuna.storages.JournalStorage(optuna.storages.JournalFileStorage(str(path)))
