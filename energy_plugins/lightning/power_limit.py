"""`PowerLimitTuner`: asks the `EnergyMonitor` of a Trainer to limit the power of its fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.config import limit_asked
from energy_plugins.lightning.installed import Callback
from energy_plugins.lightning.monitor import EnergyMonitor, monitor_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from energy_plugins.measure.report import Report


class PowerLimitTuner(Callback):
    """Finds the power limit at which a fit draws least energy while its steps take hardly longer, and keeps it.

    It uses the `EnergyMonitor` of the trainer, or adds one. The limit is searched for in windows of training steps,
    is watched afterwards, and is put back to what was found, however the fit ends. Where nobody may set limits the fit
    goes on, and the report (`Report.power_limit`) says what would be needed. docs/power_limits.md has the rest.

    What is not given here is taken from the configuration (`energy_plugins.config`): the environment, or its file.

    Args:
        max_slowdown: By what share a step may take longer than at the limit found, of 0.03 if not given.
        objective: "energy", "energy_delay" or "zeus".
        fixed: A limit to set, in watts for each GPU; none is searched for.
        knob: "limit", "clocks" (locked ones), or "auto".
        clocks_unlocked: You assert that nobody has locked the clocks, which cannot be read; clocks need it.
        search_share: The most of the planned fit that may pass while limits are tried, as a share: 0.05 if not given.
        host_power_w: What each machine draws beside its GPUs: slower steps cost that, too.
        eta: The weight of energy in the cost of Zeus.

    Raises:
        ConfigError: If a value is not allowed, here or in the configuration. It is a ValueError.

    Example::

        from lightning import Trainer
        from energy_plugins.lightning import PowerLimitTuner

        trainer = Trainer(callbacks=[PowerLimitTuner(max_slowdown=0.03)])

    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is a flag of LightningCLI
        self,
        max_slowdown: float | None = None,
        objective: str | None = None,
        fixed: float | None = None,
        knob: str | None = None,
        clocks_unlocked: bool | None = None,  # noqa: FBT001 - LightningCLI's convention
        search_share: float | None = None,
        host_power_w: float | None = None,
        eta: float | None = None,
    ) -> None:
        self._limit = limit_asked(
            max_slowdown=max_slowdown,
            objective=objective,
            fixed=fixed,
            knob=knob,
            clocks_unlocked=clocks_unlocked,
            search_share=search_share,
            host_power_w=host_power_w,
            eta=eta,
        )
        self._monitor: EnergyMonitor | None = None

    @property
    def report(self) -> Report | None:
        """The report of the last run that ended in this process."""
        return None if self._monitor is None else self._monitor.report

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the monitor limit the power of a fit."""
        if stage != "fit":
            return
        self._monitor = monitor_of(trainer, pl_module)
        self._monitor.limit_power(self._limit)
