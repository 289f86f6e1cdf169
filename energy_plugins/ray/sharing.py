"""Whether a trial has its GPUs to itself: else its joules cannot be told from those of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from energy_plugins.measure.report_parts import Company as Known
from energy_plugins.training.company import Company
from energy_plugins.training.guard import warn

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report
    from energy_plugins.ray.trial import OwnTrial

_MARKED: Final = (
    "their joules cannot be told apart, so it is marked (energy/shared_gpu); "
    'give each trial whole GPUs: tune.with_resources(train, {"gpu": 1})'
)


class Sharing:
    """Looks for others on the GPUs that a trial measures, and warns when there may be some. Nothing here raises.

    Args:
        trial: the one that this process runs.
        gpus: UUIDs of those that are measured.
    """

    def __init__(self, trial: OwnTrial, gpus: tuple[str, ...]) -> None:
        self._trial = trial
        self.others = 0
        """How many others were seen on these GPUs, or may have been."""
        strange = sorted(set(gpus) - set(trial.gpus))
        if not trial.has_whole_gpus:
            asked = f"{trial.gpu_share:g} of a GPU" if trial.gpu_share else "no GPU"
            self._mark(f"asked Ray for {asked}, so others may use what it measures", 1)
        elif strange:
            self._mark(f"measures {', '.join(strange)}, which Ray did not give it", 1)
        try:
            self._company: Company | None = Company(gpus)
        except (OSError, RuntimeError) as error:
            self._lose(error)

    def look(self) -> None:
        """Look who is there."""
        if self._company is None:
            return
        try:
            self._mark("shares a GPU with another trial", self._company.look())
        except OSError as error:
            self._lose(error)

    def close(self, report: Report | None) -> None:
        """Look once more, also at what the driver told of other processes, and be there no longer."""
        self.look()
        if report is not None and any(gpu.others.company is Known.SOME for gpu in report.devices):
            self._mark("shares a GPU with another process", 1)
        if self._company is not None:
            self._company.close()

    def _mark(self, why: str, others: int) -> None:
        if others and not self.others:
            warn(f"trial {self._trial.id} {why}: {_MARKED}")
        self.others = max(self.others, others)

    def _lose(self, error: Exception) -> None:
        self._company = None
        warn(f"it cannot be seen whether other trials use the same GPU: {error}")
