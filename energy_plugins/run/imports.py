"""Being told when a module has been imported, without importing it: a program may never need it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

Reaction = Callable[[ModuleType], None]


class Imports(MetaPathFinder):
    """Calls a function with a module, once, as soon as the module has been imported."""

    def __init__(self) -> None:
        self._waiting: dict[str, Reaction] = {}

    def react(self, name: str, reaction: Reaction) -> None:
        """Have ``reaction`` called with the module ``name``: now if it is there, else when it is."""
        if name in sys.modules:
            reaction(sys.modules[name])
            return
        self._waiting[name] = reaction
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - importlib's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Find a module that is waited for as everybody else does, and see to it that its import is noticed."""
        reaction = self._waiting.pop(fullname, None)
        if reaction is None:
            return None
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            _after(spec.loader, reaction)
        return spec


def _after(loader: Loader, reaction: Reaction) -> None:
    """Call ``reaction`` after ``loader`` has executed its module, which it does once."""
    execute = loader.exec_module

    def execute_and_tell(module: ModuleType) -> None:
        del vars(loader)["exec_module"]
        execute(module)
        reaction(module)

    vars(loader)["exec_module"] = execute_and_tell
