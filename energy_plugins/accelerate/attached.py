"""One line over a training loop of one's own: what it does becomes marks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import ref

import torch
from accelerate.accelerator import Accelerator
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from energy_plugins.accelerate.accelerators import (
    OUTSIDE,
    facts_of,
    plain,
    state_file,
    sum_over_ranks,
    who_of,
    why_no_micro_batch,
)
from energy_plugins.accelerate.loaders import with_batches
from energy_plugins.accelerate.plugin import OPTIONS, EnergyPlugin
from energy_plugins.config import EnergyConfig
from energy_plugins.measure.forecast import Limits, Position
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.spans import Kind
from energy_plugins.training.guard import FAILURES, guarded, warn
from energy_plugins.training.loop import Loop
from energy_plugins.training.micro_batch.refusals import most_sizes, why_not
from energy_plugins.training.model_shape import shape_of
from energy_plugins.training.monitor import Monitor
from energy_plugins.training.own_gpu import own_gpu
from energy_plugins.tune.micro_batch.sizes import MOST_SIZES

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from energy_plugins.config import MicroBatchConfig
    from energy_plugins.measure.report import Report
    from energy_plugins.training.measured import Measured
    from energy_plugins.training.micro_batch.batcher import MicroBatcher
    from energy_plugins.training.working_set.followed import TrainingStep

_HANDLE = "_energy_plugins"


def attach(
    accelerator: Accelerator,
    plugin: EnergyPlugin | None = None,
    *,
    optimizer: Optimizer | None = None,
    **settings: Any,  # noqa: ANN401 - fields of EnergyPlugin, which checks them
) -> Attached:
    """Measure the training loop that uses ``accelerator``, from now until `Attached.finish`.

    One row of the report's ``steps`` is one step of the optimizer, with all batches whose gradients it took, from the
    start of their fetch. The figures join what the loop gives to ``accelerator.log``. `Accelerator.save_state` keeps
    the joules beside the rest, `Accelerator.load_state` goes on from them, and checkpoints without them load as well.
    Nothing here synchronises with the device; a run that cannot be measured warns once and goes on.

    It may be called before or after ``accelerator.prepare``, and ends with ``accelerator.end_training``, with the
    block if used with ``with``, or with the process. In a training of several processes all of them call it.

    Args:
        accelerator: what the loop uses.
        plugin: how to measure.
        optimizer: the one whose steps are the steps of the report, where several take turns. If not given, each is;
            those that step after the same backward pass are one.
        settings: fields of `EnergyPlugin`, over those of ``plugin``.

    Raises:
        ConfigError: a value is not allowed. It is a ValueError.
        TypeError: a setting that there is not.

    Example::

        accelerator = Accelerator()
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        with attach(accelerator) as energy:
            for batch in loader:
                ...
        print(energy.report)

    """
    if plugin is not None and any(str(OPTIONS.get(name)).startswith("power_limit.") for name in settings):
        settings = {"limit_power": True, **settings}  # the plugin's is what it was without them
    plugin = EnergyPlugin(**settings) if plugin is None else replace(plugin, **settings)
    before = attached(accelerator)
    if before is not None:
        before.detach()
    _latest.append(ref(accelerator))
    return _handle(accelerator, plugin.config, optimizer)


def attach_unmeasured(accelerator: Accelerator) -> Attached:
    """Return what tunes the loop that uses ``accelerator`` without measuring it."""
    return _handle(accelerator, EnergyPlugin(enabled=False).config, None)


def _handle(accelerator: Accelerator, config: EnergyConfig, optimizer: Optimizer | None) -> Attached:
    handle = vars(accelerator)[_HANDLE] = Attached(accelerator, config, optimizer)
    return handle


def attached(accelerator: Accelerator) -> Attached | None:
    """Return what measures the loop that uses ``accelerator``, or did last."""
    handle = vars(accelerator).get(_HANDLE)
    return handle if isinstance(handle, Attached) else None


_latest: deque[ref[Accelerator]] = deque(maxlen=1)


def latest() -> Accelerator | None:
    """Return the accelerator that `attach` was called with last, None if its loop is over."""
    found = _latest[-1]() if _latest else None
    handle = None if found is None else attached(found)
    return None if handle is None or handle.is_over else found


class Attached:
    """A loop that is being measured; see `attach`. Its methods never raise."""

    def __init__(self, accelerator: Accelerator, config: EnergyConfig, optimizer: Optimizer | None) -> None:
        self._accelerator = accelerator
        self._monitor = Monitor(config)
        self._loop = Loop(self._monitor)
        self._named = None if optimizer is None else plain(optimizer)
        self._seen: set[int] = set()
        """Models and loaders, which are held until the end."""
        self._is_loading = False
        self._logged = 0
        self._pacemaker: object = self._named
        """The optimizer whose steps the power limit counts."""
        self._unpace = ExitStack()
        self.is_over = False
        """Whether it was finished."""
        self._is_paced = self._has_said = False
        # Checkpoints may be written after the loop is over.
        self._hooks = [
            accelerator.register_save_state_pre_hook(self._save),
            accelerator.register_load_state_pre_hook(self._load),
        ]
        self._start()
        self._limit_power()

    @property
    def report(self) -> Report | None:
        """The report of the loop, once it is finished."""
        return self._monitor.report

    @property
    def is_live(self) -> bool:
        """Whether the loop is being measured now."""
        return self._monitor.run is not None

    @property
    def total_j(self) -> float | None:
        """Joules of this training so far, earlier runs included; None if nothing was measured."""
        if self._monitor.run is None:
            return self._monitor.earlier_j or None  # nobody ever measured a sum of 0 J
        return self._monitor.totals().get("energy/total_j")

    def news(self) -> dict[str, float]:
        """Return the latest figures by the keys under which they are logged; means are over steps since the last call.

        ``accelerator.log`` adds them by itself. This is for those who log elsewhere.
        """
        self._logged = self._loop.steps
        return self._monitor.news()

    def finish(self) -> Report | None:
        """Stop measuring, put everything back, save the report, print and return it; None if nothing is measured.

        Of several processes the main one waits up to 10 s for the others, whose joules are then in its report.
        """
        return self._finish(failed=False)

    def _finish(self, *, failed: bool) -> Report | None:
        self.is_over = True
        self._loop.settle()
        self._unpace.close()
        return self._monitor.finish(failed=failed)

    def detach(self) -> None:
        """Finish, and have nothing more to do with the accelerator. A loop without a step has nothing to report."""
        if self._loop.steps:
            self.finish()
        else:
            self._unpace.close()
            self._monitor.discard()
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._finish(failed=exc_info[0] is not None)

    def state_dict(self) -> dict[str, Any]:
        """Return the joules of this training so far, earlier runs included, and the run that counts them."""
        return self._monitor.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Carry on from the joules of an earlier run; the state of the present run changes nothing."""
        self._monitor.load(state)

    def give_up(self, error: Exception) -> None:
        """End the measurement because of ``error``, with one warning; the training goes on."""
        self._monitor.give_up(error)

    # A run.

    @guarded
    def _start(self) -> None:
        accelerator, config = self._accelerator, self._monitor.config
        if not config.measure.enabled:
            return
        if config.measure.energy_budget_kwh is not None:
            warn("measure.energy_budget_kwh ends no loop of one's own: compare Attached.total_j with it there")
        facts = facts_of(accelerator)
        is_seen = accelerator.distributed_type not in OUTSIDE
        if not is_seen:
            facts["steps"] = f"not marked: {accelerator.distributed_type.value} steps where no optimizer of torch does"
            warn(f"steps are {facts['steps']}; the run is measured as a whole")
        run = self._monitor.start(
            who=who_of(accelerator),
            parent=Path(accelerator.project_dir or Path.cwd()) / "energy",
            devices=own_gpu(accelerator.device),
            facts=facts,
            outlook=lambda: (Limits(), Position(epochs=0, batches=0, optimizer_steps=self._loop.steps)),
        )
        if run is not None:
            self._watch_accelerator(run)
        if run is not None and is_seen:
            self._watch_loop(run)

    def _limit_power(self) -> None:
        """Begin to limit the power, if that is asked for: on all ranks, whether they measure or not."""
        accelerator = self._accelerator
        if accelerator.distributed_type in OUTSIDE:
            return
        self._monitor.limit_power(
            who_of(accelerator),
            partial(sum_over_ranks, accelerator),
            self._shape,
        )
        if self._monitor.limiter is not None or self._monitor.config.micro_batch.enabled:
            self._pace_steps()

    def tune_micro_batch(
        self, asked: MicroBatchConfig, sample: Callable[[], str], training_step: Callable[[], TrainingStep]
    ) -> MicroBatcher:
        """Begin to tune the micro-batch of the loop, whose batches `micro_batched` runs. All ranks do.

        ``sample`` tells what its samples are known by, ``training_step`` what is known of its steps.
        """
        accelerator, models = self._accelerator, self._accelerator._models  # noqa: SLF001
        if asked.effective_batch == "grow":
            warn("the effective batch does not grow: that of a loop of one's own is set where the loop is written")
        known = [why_not(model, allow_batch_statistics=asked.allow_batch_statistics) for model in models]
        batcher = self._monitor.tune_micro_batch(
            asked,
            who_of(accelerator),
            partial(sum_over_ranks, accelerator),
            why_not=why_no_micro_batch(accelerator) or next(filter(None, known), ""),
            most_sizes=min(map(most_sizes, models), default=MOST_SIZES),
            row_is_step=True,
            shape=lambda: f"{self._shape()} {' '.join(type(one).__name__ for one in self._prepared())} {sample()}",
            training_step=training_step,
        )
        self._pace_steps()
        return batcher

    def _shape(self) -> str:
        """Return what the models and their precision are known by."""
        return f"{shape_of(self._accelerator._models)} {self._accelerator.mixed_precision}"  # noqa: SLF001

    def _pace_steps(self) -> None:
        """Count steps from now on. The hook is one of its own: those of a rank that measures no more are gone."""
        if not self._is_paced:
            self._is_paced = True
            self._unpace.callback(register_optimizer_step_post_hook(self._pace).remove)

    def _pace(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002 - a hook's signature
        """Count a step of one optimizer, the same on all ranks. Not guarded: it is collective now and then."""
        if self._counts(optimizer):
            self._pacemaker = self._pacemaker or optimizer
            if optimizer is self._pacemaker:
                self._monitor.after_step()
                self._say_who_does_not_ask()

    @guarded
    def _say_who_does_not_ask(self) -> None:
        """Say once why there is no other micro-batch where it is asked for: a loop cannot be rewritten from outside."""
        asked, run = self._monitor.config.micro_batch, self._monitor.run
        if self._has_said or not asked.enabled or self._monitor.batcher is not None:
            return
        self._has_said = True
        why = (
            "a loop of one's own cannot be rewritten from outside: put its loss function into "
            "energy_plugins.accelerate.micro_batched(...)"
        )
        warn(f"the micro-batch is left alone: {why}")
        if run is not None:
            run.meter.micro_batched(MicroBatchPart(asked="another micro-batch", why=why))

    def _watch_accelerator(self, run: Measured) -> None:
        accelerator, over = self._accelerator, run.replaced.replace
        over(accelerator, "save_state", partial(self._saving, accelerator.save_state))
        over(accelerator, "end_training", partial(self._ending, accelerator.end_training))
        if self._monitor.config.report.log:
            over(accelerator, "log", partial(self._logging, accelerator.log))

    def _watch_loop(self, run: Measured) -> None:
        accelerator, over = self._accelerator, run.replaced.replace
        over(accelerator, "backward", partial(self._backward, accelerator.backward))
        over(accelerator, "load_state", partial(self._loading, accelerator.load_state))
        over(accelerator, "skip_first_batches", partial(self._skipping, accelerator.skip_first_batches))
        for name in ("prepare", "prepare_data_loader", "prepare_model"):
            over(accelerator, name, partial(self._preparing, getattr(accelerator, name)))
        for hook in (
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        ):
            run.replaced.undo(hook.remove)
        self._see()

    @guarded
    def _see(self) -> None:
        """Look for models and loaders that are new."""
        run = self._monitor.run
        if run is None:
            return
        for model in self._accelerator._models:  # noqa: SLF001 - accelerate tells by no other way
            if id(model) not in self._seen:
                self._seen.add(id(model))
                run.replaced.undo(model.register_forward_pre_hook(self._before_forward).remove)
        for loader in self._accelerator._dataloaders:  # noqa: SLF001
            if id(loader) not in self._seen:
                self._seen.add(id(loader))
                run.replaced.undo(with_batches(loader, self._batches))

    # What the loop does.

    def _batches(self, loader: Iterator[object]) -> Iterator[object]:
        """Yield the batches of a loader, and note the waits for them."""
        if self._is_evaluating():
            self._loop.settle()
            self._monitor.begin(Kind.VALIDATE)
            try:
                yield from loader
            finally:
                self._monitor.end(Kind.VALIDATE)
            return
        while True:
            self._loop.fetch_begins()
            try:
                batch = next(loader)
            except StopIteration:
                self._loop.found_none()
                return
            self._fetched(batch)
            yield batch

    @guarded
    def _fetched(self, batch: object) -> None:
        self._loop.fetched(batch)

    def _is_evaluating(self) -> bool:
        models = self._accelerator._models  # noqa: SLF001
        return not torch.is_grad_enabled() or (bool(models) and not any(model.training for model in models))

    def _before_forward(self, model: torch.nn.Module, args: object) -> None:  # noqa: ARG002 - a hook's signature
        if torch.compiler.is_compiling():
            return  # of a model that was compiled after it was prepared: marks have no place in a graph
        if model.training and torch.is_grad_enabled():
            self._loop.enter(Kind.FORWARD)

    def _backward(self, backward: Callable[..., None], /, *args: object, **kwargs: object) -> None:
        self._loop.enter(Kind.BACKWARD)
        backward(*args, **kwargs)
        self._loop.enter(None)

    @guarded
    def _before_optimizer(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002
        if self._counts(optimizer):
            self._loop.enter(Kind.OPTIMIZER)

    @guarded
    def _after_optimizer(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002
        if not self._counts(optimizer):
            return
        if self._named is None:
            self._loop.stepped(id(optimizer), [id(one) for one in self._prepared()])
        elif optimizer is self._named:
            self._loop.stepped(id(optimizer), ())
        else:
            self._loop.enter(None)

    def _counts(self, optimizer: Optimizer) -> bool:
        """Tell whether an optimizer trains here: restoring one's state may call its step, too."""
        prepared = self._prepared()
        return not self._is_loading and (not prepared or any(optimizer is one for one in prepared))

    def _prepared(self) -> list[object]:
        return [plain(optimizer) for optimizer in self._accelerator._optimizers]  # noqa: SLF001

    # The accelerator's methods, with what they mean for the loop.

    def _preparing(self, prepare: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        prepared = prepare(*args, **kwargs)
        self._see()
        return prepared

    def _skipping(self, skip: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        loader = skip(*args, **kwargs)
        run = self._monitor.run
        if run is not None:
            with suppress(*FAILURES):
                run.replaced.undo(with_batches(loader, self._batches))
        return loader

    def _logging(self, log: Callable[..., None], values: Mapping[str, Any], *args: object, **kwargs: object) -> None:
        """Log the figures with what the loop logs, unless no step is new since they were."""
        self._loop.settle()
        is_heard = bool(self._accelerator.trackers) and isinstance(values, Mapping)
        if is_heard and self._loop.steps > self._logged:
            values = {**self.news(), **values}
        log(values, *args, **kwargs)

    def _saving(self, save: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        self._loop.settle()
        self._monitor.begin(Kind.CHECKPOINT)
        try:
            return save(*args, **kwargs)
        finally:
            self._monitor.end(Kind.CHECKPOINT)

    def _loading(self, load: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        self._is_loading = True
        try:
            return load(*args, **kwargs)
        finally:
            self._is_loading = False

    def _ending(self, end_training: Callable[[], None], /) -> None:
        """Log the joules so far while the trackers are open, for loops shorter than their logging interval."""
        totals = self._monitor.totals() if self._monitor.config.report.log else {}
        if totals and self._accelerator.trackers:
            self._logged = self._loop.steps
            self._accelerator.log(totals)
        self.finish()
        end_training()

    # State, in a file of its own: accelerate refuses checkpoints that hold more or fewer registered objects than there
    # are, and a training must load what it saved, measured or not.

    @guarded
    def _save(self, models: object, weights: object, folder: str) -> None:  # noqa: ARG002
        with state_file(self._accelerator, folder).open("w", encoding="utf-8") as file:
            json.dump(self.state_dict(), file)

    @guarded
    def _load(self, models: object, folder: str) -> None:  # noqa: ARG002
        with suppress(FileNotFoundError), state_file(self._accelerator, folder).open(encoding="utf-8") as file:
            self.load_state_dict(json.load(file))
