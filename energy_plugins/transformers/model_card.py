"""The carbon block of the model card that a Trainer makes, where the place of the training is configured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy_plugins.report.carbon.circumstances import Circumstances
from energy_plugins.report.carbon.footprint import footprint
from energy_plugins.report.carbon.model_card import block, write_into
from energy_plugins.training.guard import guarded, warn

if TYPE_CHECKING:
    from transformers.trainer import Trainer

    from energy_plugins.measure.report import Report
    from energy_plugins.training.monitor import Monitor

_NAME = "create_model_card"


class CardMaker:
    """Stands in the place of a trainer's ``create_model_card``, for as long as the trainer lives.

    Cards are made long after a training, so this is not put back with what is put over a trainer's other functions.
    """

    def __init__(self, original: Callable[..., None], trainer: Trainer) -> None:
        self._original = original
        self._trainer = trainer
        self.monitor: Monitor | None = None
        self.circumstances = Circumstances()

    def __call__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever a Trainer takes
        """Make the card, and add the block to it."""
        self._original(*args, **kwargs)
        self._add()

    def give_up(self, error: Exception) -> None:
        """Leave the card as the trainer made it."""
        warn(f"the model card says nothing of carbon: {error}")

    @guarded
    def _add(self) -> None:
        report = None if self.monitor is None or self.monitor.run is not None else self.monitor.report
        if report is None or self.circumstances.location is None or not self._trainer.is_world_process_zero():
            return
        earlier_j, note = _earlier(report)
        found = footprint(report, self.circumstances, earlier_j=earlier_j)
        write_into(Path(self._trainer.args.output_dir or ".") / "README.md", block(report, found, note=note))


def put_over(trainer: Trainer, monitor: Monitor, circumstances: Circumstances) -> None:
    """Have the cards of a trainer say what ``monitor`` has measured; of several, the last one counts."""
    maker = vars(trainer).get(_NAME)
    if not isinstance(maker, CardMaker):
        if circumstances.location is None:
            return
        maker = CardMaker(trainer.create_model_card, trainer)
        vars(trainer)[_NAME] = maker
    maker.monitor, maker.circumstances = monitor, circumstances


def _earlier(report: Report) -> tuple[float, str]:
    """Return the joules of the training before it was resumed, and what is to be said if they are not known."""
    earlier_j = report.config.get("earlier_j")
    if not isinstance(earlier_j, int | float) or not earlier_j:
        return 0.0, ""
    if report.ranks is not None:  # each rank remembers its own
        return 0.0, "without what was drawn before the training was resumed"
    return float(earlier_j), ""
