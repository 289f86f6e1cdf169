"""Joules for Lightning: `EnergyMonitor` turns a trainer's hooks into marks, and a meter's figures into logs."""

# ruff: noqa: ARG002 - hooks take what Lightning gives them

from __future__ import annotations

import atexit
import math
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from importlib import import_module
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError("Lightning is missing: pip install energy-plugins[lightning]") from error

from energy_plugins.errors import DeviceError, EnergyError
from energy_plugins.measure.budget import Budget
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.forecast import Forecast, Limits, Pace, Position, batches_left, in_short
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.spans import Kind
from energy_plugins.units import j_to_kwh

if TYPE_CHECKING:
    from types import ModuleType

    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import Timer
    from lightning.pytorch.utilities.types import STEP_OUTPUT

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

__all__ = ["EnergyMonitor"]

_FAILURES = (
    EnergyError,
    MisconfigurationException,
    OSError,
    RuntimeError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What may go wrong in measuring. Caught in `_guarded`, and where other ranks would wait for this one."""

_P = ParamSpec("_P")


def _guarded(hook: Callable[Concatenate[EnergyMonitor, _P], None]) -> Callable[Concatenate[EnergyMonitor, _P], None]:
    """Let a failure inside ``hook`` end the measurement with one warning, and never the training."""

    @wraps(hook)
    def guarded(self: EnergyMonitor, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            hook(self, *args, **kwargs)
        except _FAILURES as error:
            self._give_up(error)

    return guarded


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

    Args:
        folder: Where reports go, a folder ``<name>-<n>`` for each run; ``<default_root_dir>/energy`` if not given.
        name: What the runs are called; ``run`` if not given.
        phases_every_n_steps: Mark forward, backward and optimizer in every n-th optimizer step; 0 never does.
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
        ValueError: If ``phases_every_n_steps`` is negative, or ``energy_budget_kwh`` is no positive number.

    Example::

        from lightning import Trainer
        from energy_plugins.lightning import EnergyMonitor

        trainer = Trainer(callbacks=[EnergyMonitor()])

    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is a flag of LightningCLI
        self,
        folder: str | None = None,
        name: str | None = None,
        phases_every_n_steps: int = 50,
        log: bool = True,  # noqa: FBT001, FBT002 - LightningCLI's convention
        progress_bar: bool = True,  # noqa: FBT001, FBT002
        devices: list[int] | None = None,
        table: bool = True,  # noqa: FBT001, FBT002
        activity: bool = False,  # noqa: FBT001, FBT002
        energy_budget_kwh: float | None = None,
    ) -> None:
        if phases_every_n_steps < 0:
            raise ValueError(f"phases_every_n_steps is {phases_every_n_steps}: give 0 for never, or a positive number")
        self._folder = folder
        self._name = name
        self._phases_every_n_steps = phases_every_n_steps
        self._log = log
        self._progress_bar = progress_bar
        self._devices = devices
        self._table = table
        self._activity = activity
        self._budget = None if energy_budget_kwh is None else Budget.of_kwh(energy_budget_kwh)
        self._earlier_j = 0.0
        self._earlier_fit_j: float | None = None
        """Of all ranks, which `_earlier_j` is not; None if nobody counted."""
        self._run: _Run | None = None
        self._watch: _Watch | None = None
        self._report: Report | None = None
        self._warned = False

    @property
    def report(self) -> Report | None:
        """The report of the last run that ended in this process."""
        return self._report

    # Runs: one fit, validate, test or predict.

    @_guarded
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count from zero, unless a checkpoint is loaded after this."""
        if stage == "fit":
            self._earlier_j, self._earlier_fit_j = 0.0, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring, when the model is on its device; end the fit at once if its budget is spent already."""
        self._start_fit(trainer)
        if self._budget is not None:
            earlier_j = self._earlier_fit_j
            # A training that had no budget counted this rank only.
            earlier_j = self._earlier_j * trainer.world_size if earlier_j is None else earlier_j
            self._watch = watch = _Watch(trainer, self._budget, earlier_j)
            if self._budget.spent(earlier_j):
                watch.stop()
                self._say_stopped(watch, "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the budget, when a resumed trainer knows its steps."""
        if self._watch is not None:
            self._watch.begin()

    @_guarded
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a span for validating; the sanity check before training is none."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, Kind.VALIDATE)

    @_guarded
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the span."""
        if not trainer.sanity_checking:
            self._end(Kind.VALIDATE)

    @_guarded
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring and open a span for testing."""
        self._evaluate(trainer, Kind.TEST)

    @_guarded
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the span."""
        self._end(Kind.TEST)

    @_guarded
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring and open a span for predicting."""
        self._evaluate(trainer, Kind.PREDICT)

    @_guarded
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the span."""
        self._end(Kind.PREDICT)

    @_guarded
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop measuring, save the report and print it."""
        self._finish()

    @_guarded
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop measuring and keep the report of what was done: after an exception no other hook is called."""
        self._finish()

    # Steps.

    @_guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Open the step that began with the fetch of this batch."""
        if self._run is not None:
            every = self._phases_every_n_steps
            self._run.steps.open(in_phases=every > 0 and trainer.global_step % every == 0)

    @_guarded
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Go from forward to backward."""
        if self._run is not None:
            self._run.steps.enter(Kind.BACKWARD)

    @_guarded
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the backward phase."""
        if self._run is not None:
            self._run.steps.enter(None)

    @_guarded
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Begin the optimizer phase, which the end of the batch ends."""
        if self._run is not None:
            self._run.steps.enter(Kind.OPTIMIZER)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Close the step, log if this is a logging step, and end the fit when its budget is spent."""
        self._close_step(trainer, pl_module, batch)
        watch = self._watch
        # Not guarded: looking is collective, so a rank that measures nothing has to take part.
        if watch is not None and watch.due():
            self._tell(watch)
            if watch.look():
                watch.stop()
                self._say_stopped(watch, self._save_spent(trainer))

    @_guarded
    def _close_step(self, trainer: Trainer, pl_module: LightningModule, batch: object) -> None:
        if self._run is None:
            return
        self._run.steps.close(*_work(batch))
        self._run.made += 1
        if (self._log or self._progress_bar) and not trainer.barebones and _is_logging_step(trainer):
            figures = self._run.figures(self._earlier_j, peek=False) | self._run.prospects(self._earlier_j)
            for key, value in figures.items():
                pl_module.log(
                    key,
                    _metric(value),
                    prog_bar=self._progress_bar and key in _IN_PROGRESS_BAR,
                    logger=self._log and bool(trainer.loggers),
                    on_step=True,
                    on_epoch=False,
                    batch_size=1,
                )

    @_guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let callbacks that run at the end of an epoch see the joules counted so far."""
        if self._run is not None:
            self._run.steps.close()
            known = self._run.figures(self._earlier_j)
            known.setdefault("energy/total_j", self._earlier_j)
            trainer.callback_metrics.update({key: _metric(known[key]) for key in _TOTALS if key in known})

    @_guarded
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the joules so far while the loggers are open, for fits shorter than the logging interval."""
        if self._run is not None and self._log:
            totals = {key: value for key, value in self._run.figures(self._earlier_j).items() if key in _TOTALS}
            for logger in trainer.loggers if totals else ():
                logger.log_metrics(totals, step=trainer.fit_loop.epoch_loop._batches_that_stepped)  # noqa: SLF001

    # State: plain numbers and strings, which is what checkpoints may hold.

    def state_dict(self) -> dict[str, Any]:
        """Return the joules of this training so far, earlier runs included, and the run that counts them."""
        self._refresh()
        run, watch = self._run, self._watch
        if run is None or not run.fitting:
            fit_j = self._earlier_fit_j if watch is None else watch.total_j(watch.own_j)
            return {"total_j": self._earlier_j, "run": "", **_fit_state(fit_j)}
        fit_j = None if watch is None else watch.total_j(run.drawn_j)
        return {"total_j": self._earlier_j + run.drawn_j, "run": run.key, **_fit_state(fit_j)}

    @_guarded
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Carry on from the joules of an earlier run; the state of the present run changes nothing."""
        if self._run is None or state_dict["run"] != self._run.key:
            total_j, fit_j = float(state_dict["total_j"]), state_dict.get("fit_j")
            fit_j = None if fit_j is None else float(fit_j)
            if not (math.isfinite(total_j) and math.isfinite(fit_j or 0.0)):
                _warn(f"the checkpoint's joules are no numbers ({total_j}, {fit_j}): those are not counted")
            self._earlier_j = total_j if math.isfinite(total_j) else self._earlier_j
            self._earlier_fit_j = fit_j if fit_j is not None and math.isfinite(fit_j) else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in this process only: copies and other processes measure anew."""
        return {**self.__dict__, "_run": None, "_watch": None, "_report": None}

    # The budget of energy.

    @_guarded
    def _tell(self, watch: _Watch) -> None:
        """Say what this rank has drawn and expects to; if it measures no more, what it said last."""
        self._refresh()
        if self._run is not None and self._run.counts:
            watch.own_j = self._run.drawn_j
            forecast = self._run.forecast()
            watch.own_expected_j = math.nan if forecast is None else forecast.energy_j

    def _say_stopped(self, watch: _Watch, checkpoint: str) -> None:
        self._note_stop(f"{watch.budget} spent")
        if watch.trainer.is_global_zero:
            kept = f"; checkpoint: {checkpoint}" if checkpoint else ""
            step = watch.trainer.global_step
            sys.stdout.write(f"\nEnergyMonitor ends the fit after step {step}: {watch.budget} spent{kept}\n")
            sys.stdout.flush()

    @_guarded
    def _note_stop(self, reason: str) -> None:
        if self._run is not None:
            self._run.meter.stopped_because(reason)

    def _save_spent(self, trainer: Trainer) -> str:
        """Save a checkpoint, on all ranks at once, and return its path; on one device a failure is a warning."""
        folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
        path = os.path.join(folder, "energy_budget.ckpt")  # noqa: PTH118 - it may be a URL
        try:
            trainer.save_checkpoint(path)
        except (OSError, RuntimeError) as error:
            if trainer.world_size > 1:
                raise  # the other ranks wait for this one
            _warn(f"the energy budget is spent, and no checkpoint saved: {error}")
            return ""
        return path

    # What the hooks share.

    @_guarded
    def _start_fit(self, trainer: Trainer) -> None:
        self._start(trainer)
        self._begin(Kind.FIT)
        run = self._run
        if run is None:
            return
        bar = trainer.progress_bar_callback
        if self._progress_bar and bar is not None:
            run.replace(bar, "get_metrics", partial(self._in_bar, bar.get_metrics))
        if self._budget is not None and not (run.meter.run and run.meter.run.own):
            _warn(f"no GPU is measured, so no {self._budget} can be kept")

    def _in_bar(self, get_metrics: Callable[..., dict[str, Any]], /, *args: object, **kwargs: object) -> dict[str, Any]:
        shown = get_metrics(*args, **kwargs)
        return {**shown, "energy": self._run.in_short} if self._run is not None and self._run.in_short else shown

    def _start(self, trainer: Trainer) -> None:
        self._finish()
        # First, because it is collective: no rank may fail before all have taken part.
        folder = self._claim_folder(trainer)
        devices = self._devices if self._devices is not None else _own_gpu(trainer)
        loop = trainer.fit_loop.epoch_loop
        bracket = _fetch_bracket(loop)
        config = {**_settings(trainer), "earlier_j": self._earlier_j}
        if bracket is None:
            config["data_wait"] = "not measured: this version of Lightning does not call out around a fetch"
        meter = EnergyMeter(self._name, devices, folder=folder, config=config, activity=self._activity)
        meter.start()
        # GPUs that are not the rank's own may be measured by its neighbours too.
        counts = trainer.local_rank == 0 or (self._devices is None and devices is not None)
        self._run = run = _Run(trainer, meter, folder, counts=counts)
        if self._log or self._progress_bar or self._budget is not None:
            meter.latest(peek=True)  # figures are made from now on, so that no step is missing in them
        atexit.register(self._finish)
        run.replace(trainer, "save_checkpoint", partial(self._saving, trainer.save_checkpoint))
        if bracket is not None:
            run.replace(loop, _BEFORE_FETCH, partial(self._before_fetch, bracket[0]))
            run.replace(loop, _AFTER_FETCH, partial(self._after_fetch, bracket[1]))

    def _evaluate(self, trainer: Trainer, kind: Kind) -> None:
        if self._run is None and trainer.state.fn != "fit":
            self._start(trainer)
        self._begin(kind)

    @_guarded
    def _finish(self) -> None:
        run, self._run = self._run, None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            if run is None:
                self._earlier_fit_j = watch.total_j(watch.own_j)
        if run is None or run.owner != os.getpid():  # a forked child that exits leaves the run to its parent
            return
        atexit.unregister(self._finish)
        run.close()
        self._report = report = run.meter.report()
        if report.total_j is not None:
            total_j = report.total_j + (self._earlier_j if run.fitting else 0.0)
            run.trainer.callback_metrics["energy/total_j"] = _metric(total_j)
            if run.fitting:
                self._earlier_j = total_j
                self._earlier_fit_j = None if watch is None else watch.total_j(report.total_j)
        if self._table and run.trainer.is_global_zero:
            where = f"\nReport: {run.folder}" if run.folder is not None else ""
            sys.stdout.write(f"\n{report}{where}\n")
            sys.stdout.flush()

    def _give_up(self, error: Exception) -> None:
        run, self._run = self._run, None
        if run is not None:
            atexit.unregister(self._finish)
            with suppress(*_FAILURES):
                run.drawn_j = run.meter.drawn_j()
            with suppress(*_FAILURES):
                run.close()
            if run.fitting:
                self._keep_drawn(run)
        if not self._warned:
            self._warned = True
            _warn(f"measuring failed, training goes on: {error}")

    def _keep_drawn(self, run: _Run) -> None:
        """Count what a fit drew that is not measured to its end."""
        self._earlier_j += run.drawn_j
        if (watch := self._watch) is not None:
            watch.own_j = run.drawn_j if run.counts else watch.own_j
            self._earlier_fit_j = watch.total_j(watch.own_j)

    def _claim_folder(self, trainer: Trainer) -> Path | None:
        """Return the folder of this rank's report, agreed on by all ranks, or None if none can be made."""
        claimed = None
        if trainer.is_global_zero:
            try:
                claimed = _new_folder(self._parent(trainer), self._name or "run")
            except _FAILURES as error:
                _warn(f"the report is not kept on disk: {error}")
        folder = trainer.strategy.broadcast(claimed)
        return folder if folder is None or trainer.is_global_zero else folder / f"rank-{trainer.global_rank}"

    def _parent(self, trainer: Trainer) -> Path:
        if self._folder is not None:
            return Path(self._folder)
        root = trainer.default_root_dir
        return Path.cwd() / "energy" if "://" in root else Path(root) / "energy"

    @_guarded
    def _refresh(self) -> None:
        if self._run is not None:
            self._run.drawn_j = self._run.meter.drawn_j()

    @_guarded
    def _begin(self, kind: Kind) -> None:
        if self._run is not None:
            self._run.meter.begin(kind)

    @_guarded
    def _end(self, kind: Kind) -> None:
        if self._run is not None:
            self._run.meter.end(kind)

    @_guarded
    def _fetch_begins(self) -> None:
        if self._run is not None:
            self._run.steps.fetch_begins()

    @_guarded
    def _fetch_ends(self) -> None:
        if self._run is not None:
            self._run.steps.fetch_ends()

    def _before_fetch(self, original: Callable[[], None]) -> None:
        original()
        self._fetch_begins()

    def _after_fetch(self, original: Callable[[], None]) -> None:
        self._fetch_ends()
        original()

    def _saving(self, save: Callable[..., None], /, *args: object, **kwargs: object) -> None:
        self._begin(Kind.CHECKPOINT)
        try:
            save(*args, **kwargs)
        finally:
            self._end(Kind.CHECKPOINT)


class _Run:
    """One fit, validate, test or predict that is being measured: whatever lives only as long as it."""

    def __init__(self, trainer: Trainer, meter: EnergyMeter, folder: Path | None, *, counts: bool) -> None:
        self.key = uuid.uuid4().hex
        self.owner = os.getpid()
        self.trainer = trainer
        self.meter = meter
        self.folder = folder
        self.fitting = trainer.state.fn == "fit"
        self.steps = _Steps(meter, current_drivers().clock.now_ns)
        self.counts = counts
        """Whether its joules are no other rank's too."""
        self.made = 0
        """Steps."""
        self.drawn_j = 0.0
        self.in_short = ""
        """What the progress bar shows."""
        self._pace = Pace()
        self._replaced = ExitStack()

    def replace(self, owner: object, name: str, replacement: Callable[..., object]) -> None:
        """Shadow a method of ``owner`` until the run is closed, unless someone shadows ours by then."""
        attributes = vars(owner)
        before = attributes.get(name)

        def put_back() -> None:
            if attributes.get(name) is replacement:
                if before is None:
                    del attributes[name]
                else:
                    attributes[name] = before

        attributes[name] = replacement
        self._replaced.callback(put_back)

    def figures(self, earlier_j: float, *, peek: bool = True) -> dict[str, float]:
        """Return the latest figures by the key under which they are logged; what is not known is left out.

        Means over steps begin where the last call without ``peek`` ended.
        """
        progress = self.meter.latest(peek=peek)
        if progress is None:
            return {}
        figures: dict[str, float | None] = {
            "energy/total_j": progress.total_j + (earlier_j if self.fitting else 0.0),
            "energy/avg_power_w": progress.avg_power_w,
        }
        for index, uuid_ in enumerate(progress.gpu_j):
            figures[f"energy/gpu{index}/total_j"] = progress.gpu_j[uuid_]
            figures[f"energy/gpu{index}/power_w"] = progress.gpu_power_w.get(uuid_)
        if progress.steps:
            figures |= {
                "energy/step_j": progress.step_j,
                "energy/data_wait_j": progress.data_wait_j,
                "energy/stall_j": progress.stall_j,
                "energy/samples_per_j": progress.samples_per_j,
                "energy/tokens_per_j": progress.tokens_per_j,
            }
        return {key: value for key, value in figures.items() if value is not None and math.isfinite(value)}

    def forecast(self) -> Forecast | None:
        """Return what to expect of this run, None while too little is known or if its end is not."""
        progress = self.meter.latest(peek=True)
        if progress is None:
            return None
        self._pace = self._pace.seen(progress.spent)
        limits = _limits(self.trainer)
        left = batches_left(limits, _position(self.trainer))
        return self._pace.forecast(left, made=self.made, seconds_left=limits.seconds_left)

    def prospects(self, earlier_j: float) -> dict[str, float]:
        """Return the forecast by the keys under which it is logged, and have the progress bar show it."""
        progress, forecast = self.meter.latest(peek=True), self.forecast()
        if progress is not None:
            self.in_short = in_short(progress.total_j + earlier_j, forecast, earlier_j)
        if forecast is None:
            return {}
        return {
            "energy/forecast_kwh": j_to_kwh(forecast.energy_j + earlier_j),
            "energy/forecast_s": forecast.left_s,
        }

    def close(self) -> None:
        """Put everything back and stop the meter."""
        self._replaced.close()
        try:
            self.steps.close()
            if self.fitting:
                self.meter.end(Kind.FIT)
        finally:
            self.meter.stop()


class _Steps:
    """The marks of the training loop: a step for each batch, from the start of its fetch."""

    def __init__(self, meter: EnergyMeter, now_ns: Callable[[], int]) -> None:
        self._meter = meter
        self._now_ns = now_ns
        self._fetching_since_ns = 0
        self._fetch_ns: tuple[int, int] | None = None
        self._is_open = False
        self._in_phases = False
        self._phase: Kind | None = None

    def fetch_begins(self) -> None:
        """Note the time and no more: a fetch that finds the data exhausted begins no step."""
        self._fetching_since_ns = self._now_ns()
        if self._fetch_ns is None:
            self._meter.expect(self._fetching_since_ns)

    def fetch_ends(self) -> None:
        """Keep the wait for the step it leads to, or mark it in the open step if the training step itself fetches."""
        begin_ns = self._fetching_since_ns if self._fetch_ns is None else self._fetch_ns[0]
        self._fetch_ns = (begin_ns, self._now_ns())
        if self._is_open:
            self._mark_wait(*self._fetch_ns)
            self._fetch_ns = None

    def open(self, *, in_phases: bool) -> None:
        """Begin a step at the start of its fetch, which for a loader without a length can be two fetches in a row."""
        if self._fetch_ns is None:
            self._meter.begin(Kind.STEP)
        else:
            self._meter.begin(Kind.STEP, at_ns=self._fetch_ns[0])
            self._mark_wait(*self._fetch_ns)
        self._fetch_ns = None
        self._meter.expect(None)
        self._is_open = True
        self._in_phases = in_phases
        self.enter(Kind.FORWARD)

    def enter(self, phase: Kind | None) -> None:
        """Go from one phase of the step to the next, or to none; nothing in steps that are marked as a whole."""
        if not self._in_phases:
            return
        if self._phase is not None:
            self._meter.end(self._phase)
        if phase is not None:
            self._meter.begin(phase)
        self._phase = phase

    def close(self, samples: int | None = None, tokens: int | None = None) -> None:
        """End the step, if one is open; a fetch that led to none is forgotten."""
        if self._is_open:
            self.enter(None)
            self._meter.end(Kind.STEP, samples=samples, tokens=tokens)
        self._is_open = self._in_phases = False
        self._fetch_ns = None
        self._meter.expect(None)

    def _mark_wait(self, begin_ns: int, end_ns: int) -> None:
        self._meter.begin(Kind.DATA_WAIT, at_ns=begin_ns)
        self._meter.end(Kind.DATA_WAIT, event=False, at_ns=end_ns)


class _Watch:
    """The energy budget of one fit. Every rank has one, they look together, and all decide alike."""

    def __init__(self, trainer: Trainer, budget: Budget, earlier_j: float) -> None:
        self.trainer = trainer
        self.budget = budget
        self.earlier_j = earlier_j
        """Of all ranks, before this fit was resumed."""
        self.own_j = 0.0
        """What this rank drew in this fit; of GPUs that no other rank counts."""
        self.own_expected_j = 0.0
        """What it will have drawn at the end, NaN if that is not known."""
        self._all_j = 0.0
        self._first_step = self._next_step = 0
        self._stopped = self._has_warned = False
        self._minima = trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps

    def begin(self) -> None:
        """Count steps from here."""
        self._first_step = self.trainer.global_step
        self._next_step = self._first_step + 1

    def due(self) -> bool:
        """Tell whether it is time to look: after the same optimizer step on all ranks."""
        return not self._stopped and self.trainer.global_step >= self._next_step

    def look(self) -> bool:
        """Tell whether the budget is spent, and warn of a fit that will spend it before its end. Collective."""
        self._all_j, expected_j = self._sum(self.own_j, self.own_expected_j)
        total_j, step = self.earlier_j + self._all_j, self.trainer.global_step
        self._next_step = step + self.budget.steps_to_next_look(total_j, self._all_j, step - self._first_step)
        if self.earlier_j + expected_j > self.budget.energy_j and not self._has_warned:
            self._has_warned = True
            self._warn(self.earlier_j + expected_j)
        return self.budget.spent(total_j)

    def total_j(self, own_j: float) -> float:
        """Return what all ranks have drawn, about, by what this one has drawn now and all had at the last look."""
        ranks = self.trainer.world_size
        total_j = self.earlier_j + own_j * (self._all_j / self.own_j if self.own_j and ranks > 1 else ranks)
        # The last second's joules are a guess. One that came out lower by now does not give anything back.
        total_j = max(total_j, self.earlier_j + self._all_j)
        return max(total_j, self.budget.energy_j) if self._stopped else total_j

    def stop(self) -> None:
        """Have the trainer end the fit, whatever minimum it was given."""
        self._stopped = True
        loop = self.trainer.fit_loop
        loop.min_epochs, loop.epoch_loop.min_steps = 0, None
        self.trainer.should_stop = True

    def close(self) -> None:
        """Put back what was found."""
        if self._stopped:
            loop = self.trainer.fit_loop
            loop.min_epochs, loop.epoch_loop.min_steps = self._minima

    def _sum(self, *joules: float) -> tuple[float, ...]:
        if self.trainer.world_size == 1:
            return joules
        own = torch.tensor(joules, dtype=torch.float64, device=self.trainer.strategy.root_device)
        summed = self.trainer.strategy.reduce(own, reduce_op="sum")
        assert isinstance(summed, torch.Tensor)  # noqa: S101 - as what was given
        return tuple(summed.tolist())

    def _warn(self, expected_j: float) -> None:
        if self.trainer.is_global_zero:
            about = f"this fit will need about {j_to_kwh(expected_j):.2g} kWh"
            _warn(f"{about} and be ended when its {self.budget} is spent")


def _warn(text: str) -> None:
    with suppress(RuntimeWarning):  # where warnings are errors, this one must still not end the training
        warnings.warn(f"energy: {text}", RuntimeWarning, stacklevel=4)


def _fit_state(fit_j: float | None) -> dict[str, float]:
    return {} if fit_j is None else {"fit_j": fit_j}


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


_TOTALS = ("energy/total_j", "energy/avg_power_w")
_IN_PROGRESS_BAR = ("energy/step_j",)
"""Beside the text that `_Run.in_short` holds."""


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


def _work(batch: object) -> tuple[int | None, int | None]:
    """Return samples and tokens of a batch from the shape of its first tensor, None for what cannot be told."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    tokens = ids.numel() if isinstance(ids, torch.Tensor) else None
    first = next(_tensors(batch), None)
    return (len(first) if first is not None else None), tokens


def _tensors(batch: object) -> Iterator[torch.Tensor]:
    match batch:
        case torch.Tensor():
            if batch.ndim:
                yield batch
        case Mapping():
            yield from chain.from_iterable(map(_tensors, batch.values()))
        case list() | tuple():
            yield from chain.from_iterable(map(_tensors, batch))
        case _ if is_dataclass(batch):
            yield from chain.from_iterable(_tensors(getattr(batch, field.name)) for field in fields(batch))


def _own_gpu(trainer: Trainer) -> Sequence[int | str] | None:
    """Return the GPU this process trains on, None for a trainer that uses none."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    own = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    # A slice of a GPU goes by a UUID of its own; what this process may see is then all there is to go by.
    try:
        return [own] if own in {gpu.uuid for gpu in visible_gpus() if gpu.mig is None} else None
    except DeviceError:
        return None  # the meter meets the same, and says so in the report


def _settings(trainer: Trainer) -> dict[str, JSON]:
    """Return what a reader of the report needs to know of the trainer."""
    return {
        "stage": "" if trainer.state.fn is None else trainer.state.fn.value,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
        "rank": trainer.global_rank,
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def _new_folder(parent: Path, name: str) -> Path:
    """Make the first free ``<parent>/<name>-<n>``; raises OSError or ValueError without a place to write."""
    numbers = count(1)
    while True:
        folder = parent / f"{name}-{next(numbers)}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
