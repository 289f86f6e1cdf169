"""Functions put over those of a framework's objects for as long as a training is measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack


class Replaced:
    """Methods that are shadowed until `close`, unless someone shadows ours by then."""

    def __init__(self) -> None:
        self._undo = ExitStack()

    def replace(self, owner: object, name: str, replacement: Callable[..., object]) -> None:
        """Shadow a method of ``owner``."""
        attributes = vars(owner)
        before = attributes.get(name)

        def put_back() -> None:
            if attributes.get(name) is replacement:
                if before is None:
                    del attributes[name]
                else:
                    attributes[name] = before

        attributes[name] = replacement
        self._undo.callback(put_back)

    def undo(self, put_back: Callable[[], object]) -> None:
        """Remember how to put back what was changed in another way."""
        self._undo.callback(put_back)

    def close(self) -> None:
        """Put everything back."""
        self._undo.close()
