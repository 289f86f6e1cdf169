"""Functions put over those of a framework's objects for as long as a training is measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from typing import Any


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

    def cover(self, owner: object, name: str, function: Callable[..., object]) -> None:
        """Put a function over a method of ``owner``, called with what is below it before the method's arguments.

        Several may lie over one method, and go in any order.
        """
        self._undo.callback(_Cover(owner, name, function).lift)

    def undo(self, put_back: Callable[[], object]) -> None:
        """Remember how to put back what was changed in another way."""
        self._undo.callback(put_back)

    def close(self) -> None:
        """Put everything back."""
        self._undo.close()


class _Cover:
    """One function over a method of an object."""

    def __init__(self, owner: object, name: str, function: Callable[..., object]) -> None:
        self._attributes = vars(owner)
        self._name = name
        self._function = function
        self.was_shadowed = name in self._attributes
        self.below: Callable[..., object] = getattr(owner, name)
        self._attributes[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - the method's own
        return self._function(self.below, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        """Return the copy's own method: nobody lies over that of a copied object."""
        return deepcopy(self.below, memo)

    def lift(self) -> None:
        """Take it away from wherever it lies; what a stranger has put over it is left, and it does nothing there."""
        self._function = _as_ever
        above = self._attributes.get(self._name)
        if above is self:
            if self.was_shadowed:
                self._attributes[self._name] = self.below
            else:
                del self._attributes[self._name]
            return
        while isinstance(above, _Cover) and above.below is not self:
            above = above.below
        if isinstance(above, _Cover):
            above.below, above.was_shadowed = self.below, self.was_shadowed


def _as_ever(below: Callable[..., object], /, *args: object, **kwargs: object) -> object:
    return below(*args, **kwargs)
