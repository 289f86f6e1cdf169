"""Letters between the ranks of a training, through the key-value store that torch.distributed was started with.

The store is a server that every rank is connected to anyway: of the launcher (torchrun's own, which outlives the
ranks) or of rank 0. Its calls are no collectives, but they may hang as networks do: so each is made aside, for 2 s at
most, and after one that hung or failed no more are made.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from energy_plugins.measure.patience import Aside

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_T = TypeVar("_T")
_PATIENCE_S = 2.0
_EACH_S = 0.01
"""More for each letter that is asked for."""


class Mail:
    """The letters of one training under one ``key``, which all ranks use alike. Nothing here raises.

    Attributes:
        trouble: why there will be no more letters, empty if nothing is wrong.
        cpu_s: CPU time spent in the store.
    """

    def __init__(self, key: str) -> None:
        self.trouble = ""
        self.cpu_s = 0.0
        self._key = f"energy_plugins/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{key}"
        self._store: Store | None = None

    @property
    def open(self) -> bool:
        """Whether there is a store by now; there is none before the process group is initialised."""
        if self._store is None and not self.trouble:
            self._store = self._aside(_find_store)
        return self._store is not None and not self.trouble

    def put(self, name: str, data: bytes) -> bool:
        """Leave a letter for everyone, in place of an earlier one; return whether it is there."""
        if not self.open or (store := self._store) is None:
            return False
        place = f"{self._key}/{name}"

        def leave() -> bool:
            store.set(place, data)  # type: ignore[arg-type] # bytes are taken as they are
            return bool(store.check([place]))  # it has arrived, even if this process exits now

        return self._aside(leave) or False

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return those letters that are there."""
        if not self.open or (store := self._store) is None:
            return {}
        places = {name: f"{self._key}/{name}" for name in names}
        found = self._aside(
            lambda: {name: store.get(place) for name, place in places.items() if store.check([place])},
            _PATIENCE_S + _EACH_S * len(names),
        )
        return found or {}

    def _aside(self, work: Callable[[], _T], patience_s: float = _PATIENCE_S) -> _T | None:
        def counted() -> _T:
            began = time.thread_time()
            try:
                return work()
            finally:
                self.cpu_s += time.thread_time() - began

        try:
            return Aside(counted).within(patience_s)
        except (TimeoutError, ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            self.trouble = f"the store of torch.distributed fails: {error}"
            return None


def process_group() -> tuple[int, int] | None:
    """Return rank and world size of the process group that is initialised, None if there is none."""
    distributed = _distributed()
    if distributed is None or not distributed.is_initialized():
        return None
    return int(distributed.get_rank()), int(distributed.get_world_size())


def _distributed() -> Any:  # noqa: ANN401 - a module, which may not be there
    """Return torch.distributed if this program has anything to do with it; importing it takes seconds."""
    if "torch" not in sys.modules and "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        distributed = import_module("torch.distributed")
    except ImportError:
        return None
    return distributed if distributed.is_available() else None


def _find_store() -> Store | None:
    """Return the launcher's store, which is there before any process group, or that of the process group."""
    distributed = _distributed()
    if distributed is None:
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store: Store = distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_PATIENCE_S),
        )
        return store
    if not distributed.is_initialized():
        return None
    default: Store = distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - torch has no public name for it
    return default
