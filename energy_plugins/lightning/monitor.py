"""`EnergyMonitor`: turns Lightning's hooks into marks, and figures into logs."""

# ruff: noqa: ARG002 - hooks take what Lightning gives them

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from energy_plugins.config import effective
from energy_plugins.lightning.installed import Callback, MisconfigurationException
from energy_plugins.lightning.trainer import (
    AFTER_FETCH,
    BEFORE_FETCH,
    facts_of,
    fetch_bracket,
    folder_of,
    is_logging_step,
    limits_of,
    loader_facts_of,
    metric,
    position_of,
    set_minima,
    sum_over_ranks,
    who_of,
)
from energy_plugins.measure.budget import Budget
from energy_plugins.measure.spans import Kind
from energy_plugins.training.batch import work_of
from energy_plugins.training.guard import guard, warn
from energy_plugins.training.micro_batch.batcher import MicroBatcher
from energy_plugins.training.model_shape import shape_of
from energy_plugins.training.monitor import Monitor
from energy_plugins.training.own_gpu import own_gpu
from energy_plugins.training.watch import Watch

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.utilities.types import STEP_OUTPUT

    from energy_plugins.config import MicroBatchConfig, PowerLimitConfig
    from energy_plugins.measure.report import Report
    from energy_plugins.training.measured import Measured
    from energy_plugins.training.working_set.followed import TrainingStep

_guarded = guard(MisconfigurationException)

_IN_PROGRESS_BAR = ("energy/step_j",)
"""Beside the text that `Measured.in_short` holds."""


class EnergyMonitor(Callback):
    """Measures the GPU energy of every training step, and of validating, testing, predicting and checkpointing.

    One row of the report's ``steps`` is one training batch (a micro-batch, when gradients are accumulated), from the
    start of its fetch to the end of its work on the GPU. Metrics are logged under ``energy/`` on logging steps, late by
    at most 1.5 s: ``total_j`` (which carries on when training resumes from a checkpoint), ``avg_power_w``, per step
    ``step_j``, ``data_wait_j`` and ``stall_j``, ``samples_per_j`` and ``tokens_per_j`` where they are known, and
    ``gpu{i}/total_j`` and ``gpu{i}/power_w``; and what to expect of the whole fit, ``forecast_kwh`` and, in seconds to
    its end, ``forecast_s``, where it has a known end. ``energy/total_j`` is in ``trainer.callback_metrics`` too, so
    early stopping and pruning can monitor it. Nothing here synchronises with the device or copies to or from it, except
    that the ranks of a fit with a budget agree on it now and then.

    Every fit, validate, test or predict leaves one report folder, and the last one is `report`. A run that cannot be
    measured warns once and goes on.

    What is not given here is taken from the configuration (`energy_plugins.config`): the environment, or its file.

    Args:
        folder: Where reports go, a folder ``<name>-<n>`` for each run; ``<default_root_dir>/energy`` if not given.
        name: What the runs are called; ``run`` if not given.
        phases_every_n_steps: Mark forward, backward and optimizer in every n-th optimizer step, of 50 if not given; 0
            never does.
        log: Whether to send the figures to the trainer's loggers.
        progress_bar: Whether to show the joules in the progress bar.
        devices: Ordinals of the GPUs to measure; if not given, the one this process trains on, and without one all
            that are visible.
        table: Whether to print the report as a table at the end.
        activity: Whether to read once a second how busy the GPU's parts are (Hopper and newer), so that the report can
            call each kind of work compute-, memory- or launch-bound.
        energy_budget_kwh: The most that a fit may draw on the GPUs of all ranks, in kilowatt-hours, what it drew before
            it was resumed included. Once that is spent a checkpoint ``energy_budget.ckpt`` is written, beside those of
            the trainer's ModelCheckpoint or into ``default_root_dir``, and the fit ends as after early stopping, with a
            last validation. It ends even if ``min_epochs`` or ``min_steps`` ask for more.

    Raises:
        ConfigError: If a value is not allowed, here or in the configuration. It is a ValueError.

    Example::

        from lightning import Trainer
        from energy_plugins.lightning import EnergyMonitor

        trainer = Trainer(callbacks=[EnergyMonitor()])

    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is a flag of LightningCLI
        self,
        folder: str | None = None,
        name: str | None = None,
        phases_every_n_steps: int | None = None,
        log: bool | None = None,  # noqa: FBT001 - LightningCLI's convention
        progress_bar: bool | None = None,  # noqa: FBT001
        devices: list[int] | None = None,
        table: bool | None = None,  # noqa: FBT001
        activity: bool | None = None,  # noqa: FBT001
        energy_budget_kwh: float | None = None,
    ) -> None:
        if energy_budget_kwh is not None:
            Budget.of_kwh(energy_budget_kwh)
        arguments = {
            "report.folder": folder,
            "report.name": name,
            "report.log": log,
            "report.progress_bar": progress_bar,
            "report.table": table,
            "measure.devices": devices,
            "measure.phases_every_n_steps": phases_every_n_steps,
            "measure.activity": activity,
            "measure.energy_budget_kwh": energy_budget_kwh,
        }
        self._monitor = Monitor(effective(arguments=arguments).config)
        self._validating = False
        self.after_batch: Callable[[], None] | None = None
        """Called after a training batch, when its step is closed."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in this process only."""
        return {**self.__dict__, "after_batch": None}

    @property
    def report(self) -> Report | None:
        """The report of the last run that ended in this process."""
        return self._monitor.report

    @property
    def measuring(self) -> Measured | None:
        """The run that is being measured, for callbacks of ours; None if there is none."""
        return self._monitor.run

    def give_up(self, error: Exception) -> None:
        """End the measurement because of ``error``, with one warning; the training goes on."""
        self._monitor.give_up(error)

    def limit_power(self, limit: PowerLimitConfig) -> None:
        """Have the power limited in fits to come, see `PowerLimitTuner`."""
        self._monitor.config = replace(self._monitor.config, power_limit=limit)

    def tune_micro_batch(  # noqa: PLR0913 - what a fit is
        self,
        asked: MicroBatchConfig,
        trainer: Trainer,
        *,
        why_not: str,
        most_sizes: int,
        shape: Callable[[], str],
        training_step: Callable[[], TrainingStep],
    ) -> MicroBatcher:
        """Have the micro-batch of the fit that runs tuned, see `MicroBatchTuner`."""
        who, summed = who_of(trainer), partial(sum_over_ranks, trainer)
        return self._monitor.tune_micro_batch(
            asked,
            who,
            summed,
            why_not=why_not,
            most_sizes=most_sizes,
            optimizer=type(trainer.optimizers[0]).__name__ if trainer.optimizers else None,
            shape=shape,
            training_step=training_step,
        )

    def enter(self, phase: Kind) -> None:
        """Note that the step that runs goes on to another phase."""
        self._monitor.enter(phase)

    # Runs: one fit, validate, test or predict.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count from zero, unless a checkpoint is loaded after this."""
        if stage == "fit":
            self._monitor.forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring, when the model is on its device; end the fit at once if its budget is spent already."""
        self._start(trainer)
        budget = self._monitor.budget
        # Not guarded: looking is collective, so a rank that measures nothing has to take part.
        self._monitor.limit_power(
            who_of(trainer),
            partial(sum_over_ranks, trainer),
            shape=lambda: f"{shape_of([pl_module])} {trainer.precision}",
        )
        if budget is not None:
            watch = self._monitor.watch_budget(
                budget,
                ranks=trainer.world_size,
                speaks=trainer.is_global_zero,
                sum_over_ranks=partial(sum_over_ranks, trainer),
            )
            if watch.spent:
                self._end_fit(trainer, watch, "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the loaders; begin to watch the budget, when a resumed trainer knows its steps."""
        self._note_loaders(trainer)
        if self._monitor.watch is not None:
            self._monitor.watch.begin(trainer.global_step)

    @_guarded
    def _note_loaders(self, trainer: Trainer) -> None:
        self._monitor.carry(loader_facts_of(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a span for validating; the sanity check before training is none."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, Kind.VALIDATE)
            self._validating = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the span."""
        if not trainer.sanity_checking:
            self._monitor.end(Kind.VALIDATE)
            self._validating = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring and open a span for testing."""
        self._evaluate(trainer, Kind.TEST)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the span."""
        self._monitor.end(Kind.TEST)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring and open a span for predicting."""
        self._evaluate(trainer, Kind.PREDICT)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the span."""
        self._monitor.end(Kind.PREDICT)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop measuring, save the report and print it."""
        self._finish(trainer, failed=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop measuring and keep the report of what was done: after an exception no other hook is called."""
        if self._validating:  # such as where a callback that comes before this one prunes a trial
            self.on_validation_end(trainer, pl_module)
        self._finish(trainer, failed=True)

    # Steps.

    @_guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Open the step that began with the fetch of this batch."""
        self._monitor.open_step(trainer.global_step)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Go from forward to backward."""
        self._monitor.enter(Kind.BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the backward phase."""
        self._monitor.enter(None)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Begin the optimizer phase, which the end of the batch ends."""
        self._monitor.enter(Kind.OPTIMIZER)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Close the step, log if this is a logging step, and end the fit when its budget is spent."""
        self._close_step(trainer, pl_module, batch)
        self._monitor.after_step(is_optimizers=not trainer.fit_loop._should_accumulate())  # noqa: SLF001 - as the loop
        if self.after_batch is not None:
            self.after_batch()
        watch, step = self._monitor.watch, trainer.global_step
        # Not guarded: looking is collective, so a rank that measures nothing has to take part.
        if watch is not None and watch.due(step):
            self._monitor.tell(watch)
            if watch.look(step):
                self._end_fit(trainer, watch, self._save_spent(trainer))

    @_guarded
    def _close_step(self, trainer: Trainer, pl_module: LightningModule, batch: object) -> None:
        monitor, asked = self._monitor, self._monitor.config.report
        if monitor.run is None:
            return
        monitor.close_step(*work_of(batch))
        if (asked.log or asked.progress_bar) and not trainer.barebones and is_logging_step(trainer):
            for key, value in monitor.news().items():
                pl_module.log(
                    key,
                    metric(value),
                    prog_bar=asked.progress_bar and key in _IN_PROGRESS_BAR,
                    logger=asked.log and bool(trainer.loggers),
                    on_step=True,
                    on_epoch=False,
                    batch_size=1,
                )

    @_guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let callbacks that run at the end of an epoch see the joules counted so far."""
        self._monitor.drop_step()
        counted = self._monitor.counted()
        trainer.callback_metrics.update({key: metric(value) for key, value in counted.items()})

    @_guarded
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the joules so far while the loggers are open, for fits shorter than the logging interval."""
        totals = self._monitor.totals() if self._monitor.config.report.log else {}
        for logger in trainer.loggers if totals else ():
            logger.log_metrics(totals, step=trainer.fit_loop.epoch_loop._batches_that_stepped)  # noqa: SLF001

    # State: plain numbers and strings, which is what checkpoints may hold.

    def state_dict(self) -> dict[str, Any]:
        """Return the joules of this training so far, earlier runs included, and the run that counts them."""
        return self._monitor.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Carry on from the joules of an earlier run; the state of the present run changes nothing."""
        self._monitor.load(state_dict)

    # The budget of energy.

    def _end_fit(self, trainer: Trainer, watch: Watch, checkpoint: str) -> None:
        """Have the trainer end the fit, whatever minimum it was given, and say so."""
        watch.stopped = True
        loop = trainer.fit_loop
        watch.undo(partial(set_minima, trainer, loop.min_epochs, loop.epoch_loop.min_steps))
        set_minima(trainer, 0, None)
        trainer.should_stop = True
        self._monitor.note_stop(f"{watch.budget} spent")
        if trainer.is_global_zero:
            kept = f"; checkpoint: {checkpoint}" if checkpoint else ""
            why = f"{watch.budget} spent{kept}"
            sys.stdout.write(f"\nEnergyMonitor ends the fit after step {trainer.global_step}: {why}\n")
            sys.stdout.flush()

    def _save_spent(self, trainer: Trainer) -> str:
        """Save a checkpoint, on all ranks at once, and return its path; on one device a failure is a warning."""
        folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
        path = os.path.join(folder, "energy_budget.ckpt")  # noqa: PTH118 - it may be a URL
        try:
            trainer.save_checkpoint(path)
        except (OSError, RuntimeError) as error:
            if trainer.world_size > 1:
                raise  # the other ranks wait for this one
            warn(f"the energy budget is spent, and no checkpoint saved: {error}")
            return ""
        return path

    # What the hooks share.

    @_guarded
    def _start(self, trainer: Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        bracket = fetch_bracket(loop)
        facts = facts_of(trainer)
        if bracket is None:
            facts["data_wait"] = "not measured: this version of Lightning does not call out around a fetch"
        run = self._monitor.start(
            who=who_of(trainer),
            parent=folder_of(trainer),
            devices=own_gpu(trainer.strategy.root_device),
            facts=facts,
            outlook=lambda: (limits_of(trainer), position_of(trainer)),
            fitting=trainer.state.fn == "fit",
        )
        if run is None:
            return
        run.replaced.replace(trainer, "save_checkpoint", partial(self._saving, trainer.save_checkpoint))
        if bracket is not None:
            run.replaced.replace(loop, BEFORE_FETCH, partial(self._before_fetch, trainer, bracket[0]))
            run.replaced.replace(loop, AFTER_FETCH, partial(self._after_fetch, trainer, bracket[1]))
        bar = trainer.progress_bar_callback
        if run.fitting and self._monitor.config.report.progress_bar and bar is not None:
            run.replaced.replace(bar, "get_metrics", partial(self._in_bar, bar.get_metrics))

    def _in_bar(self, get_metrics: Callable[..., dict[str, Any]], /, *args: object, **kwargs: object) -> dict[str, Any]:
        shown, run = get_metrics(*args, **kwargs), self._monitor.run
        return {**shown, "energy": run.in_short} if run is not None and run.in_short else shown

    def _evaluate(self, trainer: Trainer, kind: Kind) -> None:
        if self._monitor.run is None and trainer.state.fn != "fit":
            self._start(trainer)
        self._monitor.begin(kind)

    @_guarded
    def _finish(self, trainer: Trainer, *, failed: bool) -> None:
        report = self._monitor.finish(failed=failed)
        if report is not None and report.total_j is not None:
            earlier_j = self._monitor.earlier_j if trainer.state.fn == "fit" else report.total_j
            trainer.callback_metrics["energy/total_j"] = metric(earlier_j)

    def _before_fetch(self, trainer: Trainer, original: Callable[[], None]) -> None:
        original()
        if self._is_called(trainer):
            self._monitor.fetch_begins()

    def _after_fetch(self, trainer: Trainer, original: Callable[[], None]) -> None:
        if self._is_called(trainer):
            self._monitor.fetch_ends()
        original()

    def _is_called(self, trainer: Trainer) -> bool:
        """Tell whether a step may follow: Lightning's finders try batches with all callbacks taken away."""
        return any(callback is self for callback in vars(trainer)["callbacks"])

    def _saving(self, save: Callable[..., None], /, *args: object, **kwargs: object) -> None:
        self._monitor.begin(Kind.CHECKPOINT)
        try:
            save(*args, **kwargs)
        finally:
            self._monitor.end(Kind.CHECKPOINT)


class EnvironmentMonitor(EnergyMonitor):
    """The monitor of a Trainer that was given none, because ``ENERGY_*`` asks for one (`lightning_factory`).

    It stands back where there is another, and has a key of its own in checkpoints.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand back if there is another monitor."""
        everyone: list[Callback] = vars(trainer)["callbacks"]
        others = [callback for callback in everyone if callback is not self]
        if any(isinstance(callback, EnergyMonitor) for callback in others):
            vars(trainer)["callbacks"] = others  # the old list is being gone through
        else:
            super().setup(trainer, pl_module, stage)


def monitor_of(trainer: Trainer, pl_module: LightningModule) -> EnergyMonitor:
    """Return the monitor of a trainer whose fit is being set up; one is added if there is none."""
    everyone: list[Callback] = vars(trainer)["callbacks"]
    for callback in everyone:
        if isinstance(callback, EnergyMonitor):
            return callback
    monitor = EnergyMonitor()
    vars(trainer)["callbacks"] = [*everyone, monitor]  # the old list is being gone through
    monitor.setup(trainer, pl_module, "fit")
    return monitor
