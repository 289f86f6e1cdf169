"""What a forked child must let go of: a worker of a DataLoader would keep a port or a pipe open for its parent."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """Something with open files."""

    def let_go(self) -> None:
        """Close them in a child, and tell nobody."""


_OPEN: WeakSet[Inherited] = WeakSet()


def keep_from_children(one: Inherited) -> None:
    """Have every forked child let go of ``one``, as long as it is there."""
    _OPEN.add(one)


def _in_child() -> None:
    for one in tuple(_OPEN):
        one.let_go()


os.register_at_fork(after_in_child=_in_child)
