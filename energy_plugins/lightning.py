"""Joules for Lightning: `EnergyMonitor` turns hooks into marks and figures into logs; `PowerLimitTuner` saves some."""

# ruff: noqa: ARG002 - hooks take what Lightning gives them

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError("Lightning is missing: pip install energy-plugins[lightning]") from error

from energy_plugins.config import effective, limit_asked
from energy_plugins.measure.budget import Budget
from energy_plugins.measure.forecast import Limits, Position
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.spans import Kind
from energy_plugins.training.batch import work_of
from energy_plugins.training.guard import guard, warn
from energy_plugins.training.model_shape import shape_of
from energy_plugins.training.monitor import Monitor
from energy_plugins.training.own_gpu import own_gpu
from energy_plugins.training.place import rank_of
from energy_plugins.training.watch import Watch

if TYPE_CHECKING:
    from types import ModuleType

    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import Timer
    from lightning.pytorch.utilities.types import STEP_OUTPUT

    from energy_plugins.config import PowerLimitConfig
    from energy_plugins.measure.rank_part import Rank
    from energy_plugins.measure.report import Report
else:

    def _installed() -> ModuleType:
        """Import the Lightning in use: the one already imported, else the one installed."""
        names = ("lightning.pytorch", "pytorch_lightning")
        for name in sorted(names, key=lambda name: name not in sys.modules):
            with suppress(ModuleNotFoundError):
                return import_module(name)
        raise ImportError("Lightning is missing: pip install energy-plugins[lightning]")

    _lightning = _installed()
    Callback = _lightning.Callback
    Timer = _lightning.callbacks.Timer
    MisconfigurationException = _lightning.utilities.exceptions.MisconfigurationException

__all__ = ["EnergyMonitor", "PowerLimitTuner"]

_guarded = guard(MisconfigurationException)


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

    @property
    def report(self) -> Report | None:
        """The report of the last run that ended in this process."""
        return self._monitor.report

    def give_up(self, error: Exception) -> None:
        """End the measurement because of ``error``, with one warning; the training goes on."""
        self._monitor.give_up(error)

    def limit_power(self, limit: PowerLimitConfig) -> None:
        """Have the power limited in fits to come, see `PowerLimitTuner`."""
        self._monitor.config = replace(self._monitor.config, power_limit=limit)

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
            _who(trainer),
            partial(_sum_over_ranks, trainer),
            shape=lambda: f"{shape_of([pl_module])} {trainer.precision}",
        )
        if budget is not None:
            watch = self._monitor.watch_budget(
                budget,
                ranks=trainer.world_size,
                speaks=trainer.is_global_zero,
                sum_over_ranks=partial(_sum_over_ranks, trainer),
            )
            if watch.spent:
                self._end_fit(trainer, watch, "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the budget, when a resumed trainer knows its steps."""
        if self._monitor.watch is not None:
            self._monitor.watch.begin(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a span for validating; the sanity check before training is none."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, Kind.VALIDATE)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the span."""
        if not trainer.sanity_checking:
            self._monitor.end(Kind.VALIDATE)

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
        self._monitor.after_step()
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
        if (asked.log or asked.progress_bar) and not trainer.barebones and _is_logging_step(trainer):
            for key, value in monitor.news().items():
                pl_module.log(
                    key,
                    _metric(value),
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
        trainer.callback_metrics.update({key: _metric(value) for key, value in counted.items()})

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
        watch.undo(partial(_set_minima, trainer, loop.min_epochs, loop.epoch_loop.min_steps))
        _set_minima(trainer, 0, None)
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
        bracket = _fetch_bracket(loop)
        facts = _facts(trainer)
        if bracket is None:
            facts["data_wait"] = "not measured: this version of Lightning does not call out around a fetch"
        run = self._monitor.start(
            who=_who(trainer),
            parent=_parent(trainer),
            devices=own_gpu(trainer.strategy.root_device),
            facts=facts,
            outlook=lambda: (_limits(trainer), _position(trainer)),
            fitting=trainer.state.fn == "fit",
        )
        if run is None:
            return
        run.replaced.replace(trainer, "save_checkpoint", partial(self._saving, trainer.save_checkpoint))
        if bracket is not None:
            run.replaced.replace(loop, _BEFORE_FETCH, partial(self._before_fetch, bracket[0]))
            run.replaced.replace(loop, _AFTER_FETCH, partial(self._after_fetch, bracket[1]))
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
            trainer.callback_metrics["energy/total_j"] = _metric(earlier_j)

    def _before_fetch(self, original: Callable[[], None]) -> None:
        original()
        self._monitor.fetch_begins()

    def _after_fetch(self, original: Callable[[], None]) -> None:
        self._monitor.fetch_ends()
        original()

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
        everyone: list[Callback] = vars(trainer)["callbacks"]
        self._monitor = next((callback for callback in everyone if isinstance(callback, EnergyMonitor)), None)
        if self._monitor is None:
            self._monitor = EnergyMonitor()
            vars(trainer)["callbacks"] = [*everyone, self._monitor]  # the old list is being gone through
            self._monitor.setup(trainer, pl_module, stage)
        self._monitor.limit_power(self._limit)


def _who(trainer: Trainer) -> Rank:
    return rank_of(trainer.global_rank, trainer.world_size, trainer.local_rank, trainer.num_devices)


def _parent(trainer: Trainer) -> Path:
    root = trainer.default_root_dir
    return Path.cwd() / "energy" if "://" in root else Path(root) / "energy"


def _sum_over_ranks(trainer: Trainer, joules: tuple[float, ...]) -> tuple[float, ...]:
    if trainer.world_size == 1:
        return joules
    own = torch.tensor(joules, dtype=torch.float64, device=trainer.strategy.root_device)
    summed = trainer.strategy.reduce(own, reduce_op="sum")
    assert isinstance(summed, torch.Tensor)  # noqa: S101 - as what was given
    return tuple(summed.tolist())


def _set_minima(trainer: Trainer, epochs: int | None, steps: int | None) -> None:
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = epochs, steps


def _limits(trainer: Trainer) -> Limits:
    """Return what may end the fit, in Lightning's words: -1 and infinity are no limit."""
    batches, epochs, steps = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
    timers = (callback.time_remaining() for callback in vars(trainer)["callbacks"] if isinstance(callback, Timer))
    return Limits(
        batches_per_epoch=int(batches) if math.isfinite(batches) else None,
        epochs=None if epochs is None or epochs < 0 else epochs,
        optimizer_steps=None if steps < 0 else steps,
        batches_per_optimizer_step=(
            trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else None
        ),
        seconds_left=min((left for left in timers if left is not None), default=None),
    )


def _position(trainer: Trainer) -> Position:
    return Position(
        epochs=trainer.current_epoch,
        batches=trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        optimizer_steps=trainer.global_step,
    )


_IN_PROGRESS_BAR = ("energy/step_j",)
"""Beside the text that `Measured.in_short` holds."""


_BEFORE_FETCH, _AFTER_FETCH = "_on_before_fetch", "_on_after_fetch"


def _fetch_bracket(loop: object) -> tuple[Callable[[], None], Callable[[], None]] | None:
    """Return what the training loop calls around the fetch of a batch; private, so perhaps not there."""
    try:
        return getattr(loop, _BEFORE_FETCH), getattr(loop, _AFTER_FETCH)
    except AttributeError:
        return None


def _metric(value: float) -> torch.Tensor:
    """Wrap a figure so that Lightning neither copies it to the device nor rounds it to single precision."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _is_logging_step(trainer: Trainer) -> bool:
    """Tell whether the trainer sends metrics to its loggers at the end of this batch."""
    if trainer.fit_loop._should_accumulate():  # noqa: SLF001 - what the trainer's own connector asks
        return False
    return trainer._logger_connector.should_update_logs  # noqa: SLF001


def _facts(trainer: Trainer) -> dict[str, JSON]:
    """Return what a reader of the report needs to know of the trainer."""
    return {
        "stage": "" if trainer.state.fn is None else trainer.state.fn.value,
        "framework": "lightning",
        "model": type(trainer.lightning_module).__name__,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
        "rank": trainer.global_rank,
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }
