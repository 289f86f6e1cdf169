"""Joules for accelerate: one line over a training loop of one's own, or a tracker, turns what it does into marks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

try:
    import torch
    from accelerate.accelerator import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.tracking import GeneralTracker
    from accelerate.utils import DistributedType
except ModuleNotFoundError as error:
    raise ImportError("accelerate is missing: pip install energy-plugins[accelerate]") from error

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from energy_plugins.config import KEYS, EnergyConfig, effective
from energy_plugins.measure.forecast import Limits, Position
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.spans import Kind
from energy_plugins.training.guard import FAILURES, guarded, warn
from energy_plugins.training.loop import Loop
from energy_plugins.training.model_shape import shape_of
from energy_plugins.training.monitor import Monitor
from energy_plugins.training.own_gpu import own_gpu
from energy_plugins.training.place import rank_of

if TYPE_CHECKING:
    from types import FrameType

    from torch.optim import Optimizer

    from energy_plugins.measure.rank_part import Rank
    from energy_plugins.measure.report import Report
    from energy_plugins.training.measured import Measured

__all__ = ["Attached", "EnergyPlugin", "EnergyTracker", "attach"]

_OUTSIDE = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)
"""They step where no optimizer of torch does, or not when it does."""
_HANDLE = "_energy_plugins"
_BATCHES_AHEAD = "batches are fetched one ahead: the wait in a step is for the batch after its own"


def _option(dotted: str) -> Any:  # noqa: ANN401 - as dataclasses.field
    return field(default=None, metadata={"key": dotted, "help": KEYS[dotted].help})


@dataclass
class EnergyPlugin:
    """How an accelerate training is measured. What is not given is taken from ``ENERGY_*`` or its file.

    After construction every field holds what counts; `config` is the same as a value.

    Raises:
        ConfigError: a value is not allowed, here or in the configuration. It is a ValueError.
    """

    enabled: bool | None = _option("measure.enabled")
    devices: Sequence[int | str] | None = _option("measure.devices")
    phases_every_n_steps: int | None = _option("measure.phases_every_n_steps")
    activity: bool | None = _option("measure.activity")
    power_sensor: str | None = _option("measure.power_sensor")
    folder: str | None = _option("report.folder")
    name: str | None = _option("report.name")
    log: bool | None = _option("report.log")
    table: bool | None = _option("report.table")
    limit_power: bool | None = _option("power_limit.enabled")
    max_slowdown: float | None = _option("power_limit.max_slowdown")
    objective: str | None = _option("power_limit.objective")
    eta: float | None = _option("power_limit.eta")
    fixed_limit_w: float | None = _option("power_limit.fixed")
    knob: str | None = _option("power_limit.knob")
    clocks_unlocked: bool | None = _option("power_limit.clocks_unlocked")
    search_share: float | None = _option("power_limit.search_share")
    host_power_w: float | None = _option("power_limit.host_power_w")

    def __post_init__(self) -> None:
        given = {dotted: getattr(self, name) for name, dotted in _OPTIONS.items()}
        self._config = effective(arguments=given).config
        for name, dotted in _OPTIONS.items():
            section, _, key = dotted.partition(".")
            setattr(self, name, getattr(getattr(self._config, section), key))

    @property
    def config(self) -> EnergyConfig:
        """What counts, with the keys that have no field here."""
        return self._config


_OPTIONS = {name: one.metadata["key"] for name, one in EnergyPlugin.__dataclass_fields__.items()}


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
    if plugin is not None and any(str(_OPTIONS.get(name)).startswith("power_limit.") for name in settings):
        settings = {"limit_power": True, **settings}  # the plugin's is what it was without them
    plugin = EnergyPlugin(**settings) if plugin is None else replace(plugin, **settings)
    before = attached(accelerator)
    if before is not None:
        before.detach()
    handle = Attached(accelerator, plugin.config, optimizer)
    vars(accelerator)[_HANDLE] = handle
    return handle


def attached(accelerator: Accelerator) -> Attached | None:
    """Return what measures the loop that uses ``accelerator``, or did last."""
    handle = vars(accelerator).get(_HANDLE)
    return handle if isinstance(handle, Attached) else None


class Attached:
    """A loop that is being measured; see `attach`. Its methods never raise."""

    def __init__(self, accelerator: Accelerator, config: EnergyConfig, optimizer: Optimizer | None) -> None:
        self._accelerator = accelerator
        self._monitor = Monitor(config)
        self._loop = Loop(self._monitor)
        self._named = None if optimizer is None else _plain(optimizer)
        self._seen: set[int] = set()
        """Models and loaders, which are held until the end."""
        self._is_loading = False
        self._logged = 0
        self._pacemaker: object = self._named
        """The optimizer whose steps the power limit counts."""
        self._unpace = ExitStack()
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
        facts = _facts(accelerator)
        is_seen = accelerator.distributed_type not in _OUTSIDE
        if not is_seen:
            facts["steps"] = f"not marked: {accelerator.distributed_type.value} steps where no optimizer of torch does"
            warn(f"steps are {facts['steps']}; the run is measured as a whole")
        run = self._monitor.start(
            who=_who(accelerator),
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
        if accelerator.distributed_type in _OUTSIDE:
            return
        self._monitor.limit_power(
            _who(accelerator),
            partial(_sum_over_ranks, accelerator),
            lambda: f"{shape_of(accelerator._models)} {accelerator.mixed_precision}",  # noqa: SLF001
        )
        if self._monitor.limiter is not None:
            # A hook of its own: those of a rank that measures no more are gone.
            self._unpace.callback(register_optimizer_step_post_hook(self._pace).remove)

    def _pace(self, optimizer: Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG002 - a hook's signature
        """Count a step of one optimizer, the same on all ranks. Not guarded: it is collective now and then."""
        if self._counts(optimizer):
            self._pacemaker = self._pacemaker or optimizer
            if optimizer is self._pacemaker:
                self._monitor.after_step()

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
                run.replaced.undo(_with_batches(loader, self._batches))

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
        return [_plain(optimizer) for optimizer in self._accelerator._optimizers]  # noqa: SLF001

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
                run.replaced.undo(_with_batches(loader, self._batches))
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
        with _state_file(self._accelerator, folder).open("w", encoding="utf-8") as file:
            json.dump(self.state_dict(), file)

    @guarded
    def _load(self, models: object, folder: str) -> None:  # noqa: ARG002
        with suppress(FileNotFoundError), _state_file(self._accelerator, folder).open(encoding="utf-8") as file:
            self.load_state_dict(json.load(file))


class EnergyTracker(GeneralTracker):  # type: ignore[misc] # accelerate has no types
    """Measures a loop by ``Accelerator(log_with="energy")``: what is logged from ``init_trackers`` on has joules.

    ``init_trackers`` passes ``init_kwargs={"energy": {...}}`` on, fields of `EnergyPlugin` or ``optimizer``, and the
    project's name as the name of the run. The other trackers get the figures, wherever this one stands in the list.
    Before accelerate 1.15, which knows only its own trackers by name, it is ``log_with=[EnergyTracker()]``.
    """

    name = "energy"
    requires_logging_directory = False
    main_process_only = False
    """Every process measures its own GPU."""

    def __init__(self, run_name: str | None = None, **settings: Any) -> None:  # noqa: ANN401 - as `attach`
        super().__init__()
        self._settings = {"name": run_name, **settings}
        self._attached: Attached | None = None

    @property
    def tracker(self) -> Attached | None:
        """What measures, None before ``init_trackers``."""
        return self._attached

    def start(self) -> None:
        """Begin to measure, unless the loop is being measured already."""
        accelerator = _caller()
        if accelerator is None:
            warn("the tracker has to be started by Accelerator.init_trackers: nothing is measured")
            return
        handle = attached(accelerator)
        self._attached = handle if handle is not None and handle.is_live else attach(accelerator, **self._settings)

    def finish(self) -> None:
        """Stop measuring."""
        if self._attached is not None:
            self._attached.finish()


def _caller() -> Accelerator | None:
    """Return the accelerator that starts a tracker: it does not say who it is."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Accelerator):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def _plain(optimizer: object) -> object:
    """Return the optimizer of torch that accelerate wrapped."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


_CLASS = object.__dict__["__class__"]
"""How a class is set where `accelerate` has made ``__class__`` something else."""


def _with_batches(loader: object, batches: Callable[[Iterator[object]], Iterator[object]]) -> Callable[[], None]:
    """Have all batches of a loader go through ``batches``, and return how to put it back."""
    plain: Any = type(loader)

    def iterate(self: object) -> Iterator[object]:
        return batches(iter(plain.__iter__(self)))

    ours = type(plain.__name__, (plain,), {"__iter__": iterate, "__module__": plain.__module__})
    _CLASS.__set__(loader, ours)

    def put_back() -> None:
        if type(loader) is ours:
            _CLASS.__set__(loader, plain)

    return put_back


def _who(accelerator: Accelerator) -> Rank:
    return rank_of(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)


def _sum_over_ranks(accelerator: Accelerator, numbers: tuple[float, ...]) -> tuple[float, ...]:
    if accelerator.num_processes == 1:
        return numbers
    summed = accelerator.reduce(torch.tensor(numbers, dtype=torch.float64, device=accelerator.device), reduction="sum")
    return tuple(summed.tolist())


def _state_file(accelerator: Accelerator, folder: str) -> Path:
    return Path(folder) / f"energy_plugins_{accelerator.process_index}.json"


def _facts(accelerator: Accelerator) -> dict[str, JSON]:
    """Return what a reader of the report needs to know of the training."""
    return {
        "stage": "fit",
        "framework": "accelerate",
        "model": next((type(model).__name__ for model in accelerator._models), ""),  # noqa: SLF001 - as above
        "distributed_type": accelerator.distributed_type.value,
        "precision": str(accelerator.mixed_precision),
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "accumulate_grad_batches": accelerator.gradient_accumulation_steps,
        "data_wait": _BATCHES_AHEAD,
    }


# Accelerate knows trackers by name since 1.15.
with suppress(ImportError):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, register_tracker_class

    if EnergyTracker.name not in LOGGER_TYPE_TO_CLASS:
        register_tracker_class(EnergyTracker)
