"""The trainings of one `EnergyCallback`, one after the other: starting, steps, figures, ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import ProgressCallback

from energy_plugins.config import EnergyConfig
from energy_plugins.measure.forecast import Limits, Position
from energy_plugins.measure.spans import Kind
from energy_plugins.report.carbon.run_place import circumstances_of
from energy_plugins.training.guard import guarded, warn
from energy_plugins.training.model_shape import shape_of
from energy_plugins.training.monitor import Monitor
from energy_plugins.training.own_gpu import own_gpu
from energy_plugins.training.place import rank_of
from energy_plugins.training.watch import Watch
from energy_plugins.transformers.attempts import Attempts
from energy_plugins.transformers.effective_batch import GROWTH, grow_effective_batch, growth_of, tell_of_other_growth
from energy_plugins.transformers.hp_space import limit_of_trial
from energy_plugins.transformers.inside import Inside
from energy_plugins.transformers.micro_batch_fit import MicroBatchFit
from energy_plugins.transformers.model_card import put_over
from energy_plugins.transformers.trainers import (
    DEEPSPEED,
    facts_of,
    precision_of,
    steps_in_backward,
    sum_over_ranks,
    trainer_above,
)
from energy_plugins.units import j_to_kwh

if TYPE_CHECKING:
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from energy_plugins.config import MicroBatchConfig, PowerLimitConfig

_FINAL = {"train_runtime", "train_loss", "total_flos"}
"""The last log of a training holds all of these; others may hold some."""
_NOT_OF_TRAINING = ("eval_", "test_", "predict_")


class Fits:
    """Measures trainings: calls of ``train``, or attempts in one to find a batch size (``auto_find_batch_size``).

    Args:
        config: what is asked for.

    Raises:
        ConfigError: there is no such country as the configuration names.
    """

    def __init__(self, config: EnergyConfig) -> None:
        self._circumstances = circumstances_of(config.report)
        self.monitor = Monitor(config)
        self._inside = Inside(self.monitor)
        self._attempts = Attempts(self.monitor)
        self._has_optimizer_phase = True
        self._micro_batch: MicroBatchFit | None = None
        self._trial_limit: PowerLimitConfig | None = None
        self._in_training = False
        self._growth = 1
        """By how much the effective batch of the training has grown."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in this process only."""
        return {**self.__dict__, "_micro_batch": None}

    def give_up(self, error: Exception) -> None:
        """End the measurement because of ``error``, with one warning; the training goes on."""
        self.monitor.give_up(error)

    def before(self, trainer: Trainer) -> None:
        """Change what can be changed only before a training begins, if that is asked for."""
        grow_effective_batch(trainer, self.monitor.config.micro_batch)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the joules so far, and by how much the effective batch has grown."""
        return {**self.monitor.state(), GROWTH: self._growth}

    def begin(
        self,
        trainer: Trainer | None,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        saved: Mapping[str, Any] | None,
    ) -> None:
        """Start measuring, from the joules that a checkpoint has ``saved``; end the training if its budget is spent."""
        self._in_training = True
        self._growth = growth_of(trainer)
        if saved is not None and state.is_world_process_zero:
            tell_of_other_growth(self._growth, saved)
        self._trial_limit = limit_of_trial(state.trial_params)
        self._take_micro_batch(trainer)
        self._start(trainer, args, state, saved)
        budget = self.monitor.budget
        # Not guarded: looking is collective, so a rank that measures nothing has to take part.
        self._tune_micro_batch()
        self._limit_power(trainer, args)
        if budget is not None:
            watch = self.monitor.watch_budget(
                budget,
                ranks=args.world_size,
                speaks=state.is_world_process_zero,
                sum_over_ranks=partial(sum_over_ranks, args),
            )
            watch.begin(state.global_step)
            if watch.spent:
                self._end_training(watch, state, control)

    def ask_for_limit(self, limit: PowerLimitConfig, trainer: Trainer | None, args: TrainingArguments) -> None:
        """Have the power limited: from now on, if a training has begun, else in the next one."""
        self.monitor.config = replace(self.monitor.config, power_limit=limit)
        if self.monitor.run is not None and self.monitor.limiter is None:
            self._limit_power(trainer, args)

    def ask_for_micro_batch(self, asked: MicroBatchConfig, trainer: Trainer | None) -> None:
        """Have the micro-batch tuned: from now on, if a training has begun, else in the next one."""
        self.monitor.config = replace(self.monitor.config, micro_batch=asked)
        run = self.monitor.run
        if trainer is not None:
            self.before(trainer)
        if trainer is None or not self._in_training or self._micro_batch is not None:
            return
        if run is not None:
            run.replaced.close()
        self._take_micro_batch(trainer)
        if run is not None:
            self._inside.enter(run, trainer)  # over it again, for it is to see the batches as they come
        self._tune_micro_batch()

    def _take_micro_batch(self, trainer: Trainer | None) -> None:
        """Put what cuts and joins batches between the trainer and its model, if that is asked for."""
        self._leave_micro_batch()
        if self.monitor.config.micro_batch.enabled and trainer is not None:
            self._micro_batch = MicroBatchFit(trainer, self.monitor)

    def _tune_micro_batch(self) -> None:
        if self._micro_batch is not None:
            self._micro_batch.begin(self.monitor)

    def _leave_micro_batch(self) -> None:
        micro_batch, self._micro_batch = self._micro_batch, None
        if micro_batch is not None:
            micro_batch.close()

    def _limit_power(self, trainer: Trainer | None, args: TrainingArguments) -> None:
        who = rank_of(args.process_index, args.world_size, args.local_process_index)
        shape = partial(_shape, trainer, args)
        self.monitor.limit_power(who, partial(sum_over_ranks, args), shape, asked=self._trial_limit)

    @guarded
    def _start(
        self,
        trainer: Trainer | None,
        args: TrainingArguments,
        state: TrainerState,
        saved: Mapping[str, Any] | None,
    ) -> None:
        monitor = self.monitor
        monitor.finish(failed=True)  # what an exception left open where it was not seen
        self._attempts.begin(trainer, args, saved)
        if not monitor.config.measure.enabled:
            return
        wasted_j = self._attempts.wasted_j
        run = monitor.start(
            who=rank_of(args.process_index, args.world_size, args.local_process_index),
            parent=Path(args.output_dir or ".") / "energy",
            devices=None if args.n_gpu > 1 else own_gpu(args.device),
            facts=facts_of(trainer, args, state) | ({"wasted_j": wasted_j} if wasted_j else {}),
            outlook=lambda: (
                Limits(optimizer_steps=state.max_steps),
                Position(epochs=int(state.epoch), batches=0, optimizer_steps=state.global_step),
            ),
        )
        if run is None or trainer is None:
            return
        self._inside.enter(run, trainer)
        put_over(trainer, monitor, self._circumstances)
        if self._has_optimizer_phase and steps_in_backward(trainer):
            warn(f"{DEEPSPEED}; steps are measured as ever")
        self._has_optimizer_phase = not steps_in_backward(trainer)

    def end(self) -> None:
        """Stop measuring if the last log has not done so: a trial that is pruned has none."""
        self.monitor.finish()
        self._attempts.end()
        self._leave_micro_batch()
        self._in_training = False

    # Steps.

    def begin_step(self, state: TrainerState) -> None:
        """Open the step that began with the fetch of its batches."""
        self._inside.work.taken()
        self.monitor.open_step(state.global_step)

    def optimize(self) -> None:
        """Begin the optimizer phase, which the end of the step ends."""
        if self._has_optimizer_phase:
            self.monitor.enter(Kind.OPTIMIZER)

    def end_step(self, state: TrainerState, control: TrainerControl) -> None:
        """Close the step, and end the training when its budget is spent."""
        self.monitor.close_step(*self._inside.work.taken())
        self.monitor.after_step()
        watch, step = self.monitor.watch, state.global_step
        # Not guarded: looking is collective, so a rank that measures nothing has to take part.
        if watch is not None and watch.due(step):
            self.monitor.tell(watch)
            if watch.look(step):
                self._end_training(watch, state, control)

    def _end_training(self, watch: Watch, state: TrainerState, control: TrainerControl) -> None:
        """Have the trainer save a checkpoint and stop, and say so. All ranks do, after the same step."""
        watch.stopped = True
        control.should_save = control.should_training_stop = True
        why = f"{watch.budget} spent"
        self.monitor.note_stop(why)
        if watch.speaks:
            sys.stdout.write(f"\nEnergyCallback ends the training after step {state.global_step}: {why}\n")
            sys.stdout.flush()

    # Figures.

    @guarded
    def log(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Add the figures to a log of the training; stop measuring with the last one, which has the totals."""
        asked = self.monitor.config.report
        if self.monitor.run is None or self._inside.evaluating or any(map(_is_not_of_training, logs)):
            return  # in an evaluation's metrics they would become part of an objective
        figures: dict[str, float] = {}
        if logs.keys() >= _FINAL:
            figures = self._final_figures()
        elif "loss" in logs and (asked.log or asked.progress_bar):
            figures = self.monitor.news()
            self._show_in_bar()
        if asked.log:
            logs.update(figures)
            if state.log_history and state.log_history[-1].get("step") == state.global_step:
                state.log_history[-1].update(figures)  # a copy of `logs`, made before

    def _final_figures(self) -> dict[str, float]:
        report = self.monitor.finish()
        if report is None or report.total_j is None:
            return {}
        energy_j = self.monitor.earlier_j  # with that of the report by now
        wasted_j = self._attempts.wasted_j
        wasted = {"train_wasted_j": wasted_j} if wasted_j else {}
        return {"train_energy_j": energy_j, "train_energy_kwh": j_to_kwh(energy_j), **wasted}

    def _show_in_bar(self) -> None:
        run, trainer = self.monitor.run, trainer_above()
        if run is None or trainer is None or not self.monitor.config.report.progress_bar:
            return
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.set_postfix_str(run.in_short, refresh=False)


def _shape(trainer: Trainer | None, args: TrainingArguments) -> str:
    """Return what the model and its precision are known by."""
    models = [] if trainer is None or trainer.model is None else [trainer.model]
    precision = "" if trainer is None else precision_of(trainer)
    return f"{shape_of(models)} {precision} {args.gradient_accumulation_steps}"


def _is_not_of_training(key: str) -> bool:
    return key.startswith(_NOT_OF_TRAINING)
