"""What every way out for figures has in common."""

from __future__ import annotations

from typing import Protocol

from energy_plugins.report.exporters.figures import RunFigures


class Exporter(Protocol):
    """A way out for the figures of a run; each is called on a thread of its own.

    It may take its time: figures that came meanwhile are skipped. It may raise: that is a warning, once, and it is
    called again with the next figures.
    """

    def publish(self, figures: RunFigures) -> None:
        """Take the newest figures, about once a second; the last ones of a run are `RunFigures.complete`."""

    def close(self) -> None:
        """Let go of everything; nothing is published any more."""
