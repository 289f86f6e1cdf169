"""`EnergyPruningCallback` for Lightning: ends a trial by its metric, by its energy, or by that of the study."""

# ruff: noqa: ARG002 - hooks take what Lightning gives them

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import optuna

from energy_plugins.lightning.installed import Callback
from energy_plugins.lightning.monitor import EnergyMonitor, monitor_of
from energy_plugins.lightning.trainer import sum_over_ranks
from energy_plugins.optuna.pruning import Pruning

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.utilities.types import STEP_OUTPUT

_LOOK_EVERY_S: Final = 1.0
"""Between looks at the energy within an epoch."""


class EnergyPruningCallback(Callback):
    """Prunes a trial by a metric, and as soon as it has drawn more than its budget or is predicted to.

    It uses the `EnergyMonitor` of the trainer, or adds one. What the trial draws is in its user attributes under
    ``energy/``, and is written every few seconds, so that a trial that is killed is charged too. After each validation
    (each epoch, where there is none) the metric is reported to Optuna, with the epoch as its step, and the study's
    pruner decides. The prediction is the monitor's: it needs ten steps and ten seconds, and a fit with a known end. A
    study's `StudyEnergyBudget` counts as well.

    With several ranks, rank 0 has the trial and the others give None; the fit then ends as after early stopping, and
    `check_pruned`, called after it, raises on rank 0.

    Args:
        trial: of a study; None on ranks other than the first.
        monitor: the metric to prune by, as the model logs it; None prunes by energy alone, which is what a study with
            several objectives allows.
        budget_j: the most that the trial may draw on the GPUs (J); None for no such bound.
        target: a value of the metric: ``energy/to_target_j`` and ``energy/to_target_s`` of the trial are what it took.
        direction: "minimize" or "maximize", if it is to be checked that the study does so.

    Raises:
        ConfigError: a value is not allowed, or the study does not go with it. It is a ValueError.

    Example::

        trainer = Trainer(callbacks=[EnergyPruningCallback(trial, "val_loss", budget_j=5e4)])

    """

    def __init__(
        self,
        trial: optuna.Trial | None,
        monitor: str | None = None,
        budget_j: float | None = None,
        *,
        target: float | None = None,
        direction: str | None = None,
    ) -> None:
        self._pruning = Pruning(trial, monitor, budget_j, target=target, direction=direction)
        self._energy: EnergyMonitor | None = None
        self._looked_s = 0.0
        self._told = -1
        self._why = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the fit measured."""
        if stage == "fit":
            self._energy = monitor_of(trainer, pl_module)
            self._told, self._why = -1, ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to charge the trial, when the measurement has begun."""
        run = None if self._energy is None else self._energy.measuring
        self._pruning.begin(None if run is None else run.meter, ranks=trainer.world_size)
        self._looked_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Look at the energy now and then; several ranks do so together, after validations only."""
        now_s = time.monotonic()
        if trainer.world_size == 1 and now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            self._end(trainer, self._pruning.over(self._left_j()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at metric and energy."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at metric and energy of a fit that validates nothing."""
        if not sum(trainer.num_val_batches):
            self._look(trainer)

    def check_pruned(self) -> None:
        """Raise `optuna.TrialPruned` if the fit of several ranks was ended for that."""
        if self._why and self._pruning.trial is not None:
            raise optuna.TrialPruned(self._why)

    def _look(self, trainer: Trainer) -> None:
        left_j = self._left_j()
        if trainer.world_size > 1:
            (left_j,) = sum_over_ranks(trainer, (math.nan if left_j is None else left_j,))
            left_j = left_j if math.isfinite(left_j) else None
        self._pruning.note(left_j)
        metrics = ((key, float(value)) for key, value in trainer.callback_metrics.items())
        again, self._told = trainer.current_epoch == self._told, trainer.current_epoch
        why = self._pruning.evaluated(metrics, trainer.current_epoch, report=not again)
        self._end(trainer, self._pruning.over(left_j) or why)

    def _left_j(self) -> float | None:
        run = None if self._energy is None else self._energy.measuring
        return None if run is None else run.left_j()

    def _end(self, trainer: Trainer, why: str) -> None:
        if trainer.world_size == 1:
            if why:
                raise optuna.TrialPruned(why)
            return
        self._why = trainer.strategy.broadcast(why, src=0)
        trainer.should_stop = trainer.should_stop or bool(self._why)
