"""A tracker of accelerate that measures the loop."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from accelerate.accelerator import Accelerator
from accelerate.tracking import GeneralTracker

from energy_plugins.accelerate.attached import Attached, attach, attached
from energy_plugins.training.guard import warn

if TYPE_CHECKING:
    from types import FrameType


class EnergyTracker(GeneralTracker):  # type: ignore[misc] # accelerate has no types
    """Measures a loop by ``Accelerator(log_with="energy")``: what is logged from ``init_trackers`` on has joules.

    ``init_trackers`` passes ``init_kwargs={"energy": {...}}`` on, fields of `EnergyPlugin` or ``optimizer``, and the
    project's name as the name of the run. The other trackers get the figures, wherever this one stands in the list.
    Before accelerate 1.15, which knows only its own trackers by name, it is ``log_with=[EnergyTracker()]``.
    """

    name = "energy"
    requires_logging_directory = False
    main_process_only = False
    """Every process measures its own GPU."""

    def __init__(self, run_name: str | None = None, **settings: Any) -> None:  # noqa: ANN401 - as `attach`
        super().__init__()
        self._settings = {"name": run_name, **settings}
        self._attached: Attached | None = None

    @property
    def tracker(self) -> Attached | None:
        """What measures, None before ``init_trackers``."""
        return self._attached

    def start(self) -> None:
        """Begin to measure, unless the loop is being measured already."""
        accelerator = _caller()
        if accelerator is None:
            warn("the tracker has to be started by Accelerator.init_trackers: nothing is measured")
            return
        handle = attached(accelerator)
        self._attached = handle if handle is not None and handle.is_live else attach(accelerator, **self._settings)

    def finish(self) -> None:
        """Stop measuring."""
        if self._attached is not None:
            self._attached.finish()


def _caller() -> Accelerator | None:
    """Return the accelerator that starts a tracker: it does not say who it is."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Accelerator):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


# Accelerate knows trackers by name since 1.15.
with suppress(ImportError):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, register_tracker_class

    if EnergyTracker.name not in LOGGER_TYPE_TO_CLASS:
        register_tracker_class(EnergyTracker)
