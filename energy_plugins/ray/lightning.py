"""`EnergyReportCallback` for Lightning: Ray's own, with what the trial draws beside its metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

from energy_plugins.lightning.monitor import EnergyMonitor, monitor_of
from energy_plugins.ray.charge import Charge
from energy_plugins.ray.trial import own_trial

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class EnergyReportCallback(TuneReportCheckpointCallback):
    """Reports metrics and joules of a fit to Ray Tune, in place of `TuneReportCheckpointCallback`.

    It takes what that takes. It uses the `EnergyMonitor` of the trainer, or adds one, and each report has the figures
    of the trial under ``energy/``: ``total_j`` and ``avg_power_w`` until that moment, ``duration_s``, ``gpus`` (UUIDs),
    and marks where there is cause, ``shared_gpu`` and ``simulated``. A fit outside of Ray Tune is measured, and
    reported to nobody.

    Args:
        metrics: what to report, as Ray's callback takes it: names, or Ray's by Lightning's; all if not given.
        filename: of a checkpoint, in its folder.
        save_checkpoints: whether to save and report checkpoints.
        on: after which hooks to report: "validation_end", or "train_epoch_end" for a fit that validates nothing.

    Example::

        trainer = Trainer(callbacks=[EnergyReportCallback({"loss": "val_loss"}, save_checkpoints=False)])

    """

    def __init__(
        self,
        metrics: str | list[str] | dict[str, str] | None = None,
        filename: str = "checkpoint",
        save_checkpoints: bool = True,  # noqa: FBT001, FBT002 - as Ray has it
        on: str | list[str] = "validation_end",
    ) -> None:
        super().__init__(metrics, filename, save_checkpoints, on)
        self._energy: EnergyMonitor | None = None
        self._charge: Charge | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the fit measured."""
        if stage == "fit":
            self._energy, self._charge = monitor_of(trainer, pl_module), None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to charge the trial, when the measurement has begun."""
        run = None if self._energy is None else self._energy.measuring
        trial = own_trial()
        if trial is not None and run is not None and run.meter.run is not None and run.meter.run.own:
            self._charge = Charge(trial, run.meter).begin()
        super().on_train_start(trainer, pl_module)

    def _get_report_dict(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any] | None:
        """Return what Ray's callback would report, with the energy."""
        found = super()._get_report_dict(trainer, pl_module)
        return found if self._charge is None or found is None else {**found, **self._charge.figures()}

    def _handle(self, trainer: Trainer, pl_module: LightningModule | None) -> None:
        if own_trial() is not None:
            super()._handle(trainer, pl_module)  # type: ignore[arg-type] # Ray's own two do not agree
