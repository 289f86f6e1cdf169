"""`EnergyPruningCallback` for transformers' Trainer, with ``hyperparameter_search`` or with a study of one's own."""

# ruff: noqa: ARG002 - events come with what transformers gives them

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import optuna
from transformers.trainer_callback import TrainerCallback

from energy_plugins.optuna.pruning import Pruning
from energy_plugins.transformers.callback import measuring_callback
from energy_plugins.transformers.trainers import sum_over_ranks, trainer_above

if TYPE_CHECKING:
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from energy_plugins.transformers.callback import EnergyCallback

_LOOK_EVERY_S: Final = 1.0
"""Between looks at the energy between evaluations."""


class EnergyPruningCallback(TrainerCallback):
    """Prunes a trial by a metric, and as soon as it has drawn more than its budget or is predicted to.

    It uses the `EnergyCallback` of the trainer, or adds one, and writes what Lightning's callback of the same name
    does. In ``trainer.hyperparameter_search(backend="optuna")`` it finds each trial itself, and leaves it to the
    trainer to report its objective and to prune by it, so the objective is as it was. On several ranks the training
    ends after an evaluation, and `check_pruned` raises on rank 0.

    Args:
        trial: of a study, on rank 0; None in ``hyperparameter_search``.
        monitor: the metric to prune by, such as ``eval_loss``; None prunes by energy alone.
        budget_j: the most that a trial may draw on the GPUs (J); None for no such bound.
        target: a value of the metric: ``energy/to_target_j`` and ``energy/to_target_s`` of the trial are what it took.
        direction: "minimize" or "maximize", if it is to be checked that the study does so.
        energy_metric: such as ``eval_energy_j``: each evaluation's metrics get what the trial has drawn until then (J)
            under that name, for a ``compute_objective`` that asks for it. The Trainer's default objective sums all
            metrics where there are others than the loss, so nothing is added unless this is given. It is NaN, which
            fails a trial, if it is not known, such as in the first second.

    Raises:
        ConfigError: a value is not allowed, or the study does not go with it. It is a ValueError.
    """

    def __init__(  # noqa: PLR0913 - each is a separate wish of the user
        self,
        trial: optuna.Trial | None = None,
        monitor: str | None = None,
        budget_j: float | None = None,
        *,
        target: float | None = None,
        direction: str | None = None,
        energy_metric: str | None = None,
    ) -> None:
        self._pruning = Pruning(trial, monitor, budget_j, target=target, direction=direction)
        self._energy_metric = energy_metric
        self._given = trial
        self._energy: EnergyCallback | None = None
        self._charged = False
        self._looked_s = 0.0
        self._why = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Find the trial, and have the training measured."""
        trainer = trainer_above()
        if trainer is None:
            return
        self._charged, self._why = False, ""
        self._energy = measuring_callback(trainer)
        trial = _trial_of(trainer) or self._given
        if trial is not None and trial is not self._pruning.trial:
            self._pruning.of(trial)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin to charge the trial: the measurement has begun by now, whichever callback came first."""
        if not self._charged:
            self._charged = True
            run = None if self._energy is None else self._energy.measuring
            self._pruning.begin(None if run is None else run.meter, ranks=args.world_size)
            self._looked_s = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Look at the energy now and then; several ranks do so together, after evaluations only."""
        now_s = time.monotonic()
        if args.world_size == 1 and now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            self._end(args, state, control, self._pruning.over(self._left_j()))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Look at metric and energy; one that is made outside of a training prunes nothing."""
        if self._energy_metric is not None and metrics is not None:
            charge = self._pruning.charge
            known = charge if charge is not None and charge.known and charge.drawn_j > 0 else None
            metrics[self._energy_metric] = math.nan if known is None else known.drawn_j  # as in the first second
        if not self._charged:
            return
        left_j, trainer = self._left_j(), trainer_above()
        self._pruning.note(left_j)
        numbers = ((key, float(value)) for key, value in (metrics or {}).items())
        ours = trainer is None or _trial_of(trainer) is None
        why = self._pruning.evaluated(numbers, state.global_step, report=ours)
        self._end(args, state, control, self._pruning.over(left_j) or why)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Leave evaluations that follow alone."""
        self._charged = False

    def check_pruned(self) -> None:
        """Raise `optuna.TrialPruned` if the training of several ranks was ended for that."""
        if self._why and self._pruning.trial is not None:
            raise optuna.TrialPruned(self._why)

    def _left_j(self) -> float | None:
        run = None if self._energy is None else self._energy.measuring
        return None if run is None else run.left_j()

    def _end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, why: str) -> None:
        if args.world_size == 1:
            if not why:
                return
            trainer = trainer_above()
            if trainer is not None:  # as the trainer itself does before it prunes: else nobody ends the measurement
                trainer.callback_handler.on_train_end(args, state, control)
            raise optuna.TrialPruned(why)
        (pruned,) = sum_over_ranks(args, (1.0 if why else 0.0,))
        if pruned:
            self._why = why
            control.should_training_stop = True


def _trial_of(trainer: Trainer) -> optuna.Trial | None:
    """Return the trial of a ``hyperparameter_search`` with Optuna that has called ``train``."""
    trial = getattr(trainer, "_trial", None)
    return trial if isinstance(trial, optuna.Trial) else None
