"""The script of a course, gone on with whenever it is due."""

from __future__ import annotations

from collections.abc import Iterator


class FollowedScript:
    """Counts no steps itself: whoever does says after how many it is asked."""

    def __init__(self) -> None:
        self._script: Iterator[int] | None = None
        self._next = 0
        """The step after which to go on."""

    def begin(self, script: Iterator[int], steps: int) -> None:
        """Follow another one, which yields for how many steps to go on as things are."""
        self._script = script
        self._next = steps + next(script)

    def go_on(self, steps: int) -> bool:
        """Go on, if that is due, and return whether it was. Raises whatever the script raises."""
        if self._script is None or steps < self._next:
            return False
        self._next = steps + next(self._script)
        return True

    def end(self) -> None:
        """Never go on again."""
        self._script = None
