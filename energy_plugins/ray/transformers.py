"""`EnergyReportCallback` for transformers' Trainer, in ``hyperparameter_search`` or in a trial of one's own."""

# ruff: noqa: ARG002 - events come with what transformers gives them

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray.tune
from transformers.trainer_callback import TrainerCallback

from energy_plugins.ray.charge import Charge
from energy_plugins.ray.trial import own_trial
from energy_plugins.training.replaced import Replaced
from energy_plugins.transformers.callback import measuring_callback
from energy_plugins.transformers.trainers import trainer_above

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from energy_plugins.ray.trial import OwnTrial
    from energy_plugins.transformers.callback import EnergyCallback


class EnergyReportCallback(TrainerCallback):
    """Has what a trial draws reported to Ray Tune beside its metrics, at each evaluation.

    It uses the `EnergyCallback` of the trainer, or adds one, and each report has the figures that Lightning's callback
    of the same name has. In ``trainer.hyperparameter_search(backend="ray")`` the trainer reports, and its objective is
    as it was: what computes it never sees the joules. In a function of one's own this reports each evaluation. A
    training outside of Ray Tune is measured, and reported to nobody.

    Example::

        trainer = Trainer(model_init=make, args=args, callbacks=[EnergyReportCallback()])
        trainer.hyperparameter_search(energy_hp_space(), backend="ray", n_trials=20)

    """

    def __init__(self) -> None:
        self._energy: EnergyCallback | None = None
        self._trial: OwnTrial | None = None
        self._charge: Charge | None = None
        self._replaced = Replaced()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in this process only."""
        return {**self.__dict__, "_energy": None, "_trial": None, "_charge": None, "_replaced": Replaced()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Find the trial, and have the training measured."""
        self._replaced.close()
        trainer, self._trial, self._charge = trainer_above(), own_trial(), None
        if trainer is None:
            return
        self._energy = measuring_callback(trainer)
        if self._trial is not None and trainer.hp_search_backend is not None:
            self._replaced.cover(trainer, "compute_objective", self._computed)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin to charge the trial: the measurement has begun by now, whichever callback came first."""
        run = None if self._energy is None else self._energy.measuring
        if self._charge is None and self._trial is not None and run is not None and run.meter.run and run.meter.run.own:
            self._charge = Charge(self._trial, run.meter).begin()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Report an evaluation, where the trainer does not do so itself."""
        trainer = trainer_above()
        if self._trial is not None and metrics and (trainer is None or trainer.hp_search_backend is None):
            ray.tune.report({**metrics, **self._figures()})

    def _computed(self, compute: Callable[[dict[str, Any]], object], metrics: dict[str, Any]) -> object:
        """Compute the objective, and only then add the energy: the trainer reports the same dictionary."""
        objective = compute(metrics)
        metrics.update(self._figures())
        return objective

    def _figures(self) -> dict[str, float | str]:
        return {} if self._charge is None else self._charge.figures()
