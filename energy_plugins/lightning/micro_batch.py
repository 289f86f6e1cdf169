"""`MicroBatchTuner`: has the batches of a fit go through its model in parts, or several at once."""

# ruff: noqa: ARG002 - hooks take what Lightning gives them

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from energy_plugins.config import micro_batch_asked
from energy_plugins.errors import BatchError
from energy_plugins.lightning.effective_batch import EffectiveBatch
from energy_plugins.lightning.installed import Callback, GradientAccumulationScheduler
from energy_plugins.lightning.micro_batches import MicroBatches, lacks
from energy_plugins.lightning.monitor import EnergyMonitor, monitor_of
from energy_plugins.lightning.trainer import sum_over_ranks, who_of
from energy_plugins.measure.spans import Kind
from energy_plugins.training.guard import warn
from energy_plugins.training.micro_batch.batch_tree import sample_shape, samples_in
from energy_plugins.training.micro_batch.batcher import MicroBatcher
from energy_plugins.training.micro_batch.growing import check
from energy_plugins.training.micro_batch.refusals import most_sizes, why_not
from energy_plugins.training.model_shape import shape_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from energy_plugins.config import MicroBatchConfig
    from energy_plugins.measure.micro_batch_part import MicroBatchPart
    from energy_plugins.measure.report import Report
    from energy_plugins.training.working_set.followed import TrainingStep

_OTHERS = ("DeepSpeed", "FSDP", "ModelParallel", "XLA")
"""In the names of strategies that shard gradients or accumulate them in their own way."""


class MicroBatchTuner(Callback):
    """Finds how many samples to send through the model at once, with the gradients that the fit has anyway.

    A batch is cut into parts, or batches that are accumulated run together; the samples of an optimizer step, their
    order, the loader, schedules and counts stay as they are. Before anything changes the batches of three optimizer
    steps are run both ways, and later ones are looked at: if their gradients differ by more than rounding nothing is
    changed, and the report says why (`Report.micro_batch`). docs/micro_batch.md has the rest.

    A search uses the `EnergyMonitor` of the trainer, or adds one. What is not given here is taken from the
    configuration (`energy_plugins.config`): the environment, or its file.

    Args:
        size: The samples to send through the model at once; none is searched for, and nothing need be measured.
        search_share: The most of the planned fit that may pass while sizes are tried, as a share: 0.05 if not given.
        allow_batch_statistics: Whether results may depend on the micro-batch, as those of BatchNorm do.
        effective_batch: "keep", or "grow": more samples in each optimizer step, which is another training.
        max_effective_batch: How many of all ranks at most, where it may grow.
        learning_rate_rule: How the learning rate follows: "linear", "sqrt", "none".

    Raises:
        ConfigError: If a value is not allowed, here or in the configuration. It is a ValueError.

    Example::

        from lightning import Trainer
        from energy_plugins.lightning import MicroBatchTuner

        trainer = Trainer(accumulate_grad_batches=16, callbacks=[MicroBatchTuner()])

    """

    def __init__(  # noqa: PLR0913 - each is a separate wish of the user
        self,
        size: int | None = None,
        search_share: float | None = None,
        allow_batch_statistics: bool | None = None,  # noqa: FBT001 - LightningCLI's convention
        *,
        effective_batch: str | None = None,
        max_effective_batch: int | None = None,
        learning_rate_rule: str | None = None,
    ) -> None:
        self._asked = micro_batch_asked(
            size=size,
            search_share=search_share,
            allow_batch_statistics=allow_batch_statistics,
            effective_batch=effective_batch,
            max_effective_batch=max_effective_batch,
            learning_rate_rule=learning_rate_rule,
        )
        check(self._asked)
        self._growing: EffectiveBatch | None = None
        self._loaded: dict[str, Any] = {}
        """What a checkpoint holds of an effective batch that was grown, where this fit does not grow it."""
        self._monitor: EnergyMonitor | None = None
        self._batches: MicroBatches | None = None
        self._batcher: MicroBatcher | None = None
        self._has_looked = False
        """Whether the batcher has seen the window that runs."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in this process only."""
        return {**self.__dict__, "_batches": None, "_batcher": None, "_growing": None}

    @property
    def report(self) -> Report | None:
        """The report of the last run that ended in this process; None without an `EnergyMonitor`."""
        return None if self._monitor is None else self._monitor.report

    @property
    def found(self) -> MicroBatchPart | None:
        """What became of the micro-batch of the last fit; None before there was one."""
        return None if self._batcher is None else self._batcher.part()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the monitor of the trainer; a search cannot do without one."""
        if stage != "fit":
            return
        everyone: list[Callback] = vars(trainer)["callbacks"]
        measuring = [callback for callback in everyone if isinstance(callback, EnergyMonitor)]
        needed = self._asked.size is None or bool(measuring)
        self._monitor = monitor_of(trainer, pl_module) if needed else None
        self._give_back()
        self._loaded = {}
        if self._asked.effective_batch == "grow":
            self._growing = EffectiveBatch(
                trainer, pl_module, self._asked, partial(_why_not_at_all, trainer, pl_module)
            )

    @property
    def state_key(self) -> str:
        """What checkpoints know it by, whoever made it."""
        return MicroBatchTuner.__name__

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: whether learning rates follow a larger effective batch."""
        return self._loaded if self._growing is None else self._growing.state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See whether the training of a checkpoint had its effective batch grown."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if self._growing is not None:
            self._growing.load(state, checkpoint.get("global_step", 0))
        elif state and state.get("grown"):
            self._loaded = state  # its learning rates stay as they are, so who resumes this fit must know
            warn("the checkpoint is of a training with a larger effective batch, and so are its learning rates")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have learning rates follow an effective batch that has grown."""
        if self._growing is not None:
            self._growing.begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the batches in hand, when everybody has started."""
        self._close()
        if self._growing is not None:
            self._growing.resumed()
        missing = lacks(trainer)
        known = f"this version of Lightning has no {missing}: use one that is known to work, 2.5 to 2.6"
        known = known if missing else _why_not(trainer, pl_module, self._asked)
        if self._monitor is None:
            who, summed = who_of(trainer), partial(sum_over_ranks, trainer)
            self._batcher = MicroBatcher(self._asked, None, who=who, sum_over_ranks=summed, why_not=known)
        else:
            self._batcher = self._monitor.tune_micro_batch(
                self._asked,
                trainer,
                why_not=known,
                most_sizes=most_sizes(pl_module),
                shape=partial(self._shape, trainer, pl_module),
                training_step=self._training_step,
            )
            self._monitor.after_batch = partial(self._after_batch, trainer)
        self._batcher.grown = "" if self._growing is None else self._growing.sentence
        if missing:
            self._batcher.consider(None, 1, lambda *_: None, ())  # on all ranks alike
            _warn_if_declined(self._batcher)
            return
        self._batches = MicroBatches(
            trainer,
            pl_module,
            at_window=partial(self._at_window, trainer),
            at_pass=self._enter_forward,
            allows=self._batcher.allows,
            out_of_memory=self._batcher.out_of_memory,
        )
        self._batches.keeps = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Decide what is due, unless the monitor has this done when it has closed the step."""
        if self._monitor is None and self._batcher is not None:
            if self._batches is not None and self._batches.ended:
                self._batcher.after_step()
            self._after_batch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave everything as it was found."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same: after an exception no other hook is called."""
        self._close()
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do the same for a fit that did not begin, and have the trainer as the user set it."""
        self._close()
        self._give_back()

    def _give_back(self) -> None:
        if self._growing is not None:
            self._growing.close()

    def _close(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None
        if self._monitor is not None:
            self._monitor.after_batch = None
        elif self._batcher is not None:
            self._batcher.close()

    def _at_window(self, trainer: Trainer) -> None:
        """Show the first batch of a window to the batcher before it runs, if all it could do is to cut it.

        A batch may be too large to run as it is. Where the first was not, whole windows tell more than their first.
        """
        batches, batcher, size = self._batches, self._batcher, self._asked.size
        if batches is None or batcher is None or not batcher.undecided:
            return
        self._has_looked = False
        accumulation = trainer.accumulate_grad_batches
        samples = samples_in(batches.window[0].kwargs.get("batch"))
        is_cut = size is not None and size < (samples or 0)
        if accumulation == 1 or (is_cut and not batcher.part().gradient_checks):
            self._consider(trainer, batches, batcher)

    def _after_batch(self, trainer: Trainer) -> None:
        """Show a window that has ended to the batcher while it wants any, and hear what to do with the next."""
        batches, batcher = self._batches, self._batcher
        if batches is None or batcher is None or not batches.ended:
            return
        if batcher.undecided and not self._has_looked:
            self._consider(trainer, batches, batcher)
        else:
            batcher.probe(batches.try_pass)
            batches.keeps = batcher.wants_windows
        batches.plan = batcher.plan or (batcher.setting if batches.smaller else None)
        batches.forget()

    def _consider(self, trainer: Trainer, batches: MicroBatches, batcher: MicroBatcher) -> None:
        # Not guarded: looking is collective, so a rank that measures nothing has to take part.
        self._has_looked = True
        window = [one.kwargs.get("batch") for one in batches.window]
        batch = window[0] if window else None
        batcher.consider(samples_in(batch), trainer.accumulate_grad_batches, batches.compare, window)
        batches.keeps, batches.smaller = batcher.undecided, batcher.smaller
        batches.plan = batcher.plan or (batcher.setting if batches.smaller else None)
        if trainer.is_global_zero:
            _warn_if_declined(batcher)

    def _shape(self, trainer: Trainer, module: LightningModule) -> str:
        """Return what the work is known by, once there is a window."""
        batch = self._batches.window[0].kwargs["batch"] if self._batches is not None else None
        optimizers = " ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        return f"{shape_of([module])} {optimizers} {trainer.precision} {sample_shape(batch)}"

    def _training_step(self) -> TrainingStep:
        if self._batches is None:
            raise BatchError("no batch has come yet")
        return self._batches.training_step()

    def _enter_forward(self) -> None:
        if self._monitor is not None:
            self._monitor.enter(Kind.FORWARD)


def _warn_if_declined(batcher: MicroBatcher) -> None:
    why = "" if batcher.undecided else batcher.part().why
    if why:
        warn(f"the micro-batch is left alone: {why}")


class EnvironmentTuner(MicroBatchTuner):
    """The tuner of a Trainer that was given none, because ``ENERGY_*`` asks for one (`lightning_factory`)."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand back if there is another tuner."""
        everyone: list[Callback] = vars(trainer)["callbacks"]
        others = [callback for callback in everyone if callback is not self]
        if any(isinstance(callback, MicroBatchTuner) for callback in others):
            vars(trainer)["callbacks"] = others  # the old list is being gone through
        else:
            super().setup(trainer, pl_module, stage)


def _why_not(trainer: Trainer, module: LightningModule, asked: MicroBatchConfig) -> str:
    """Return a sentence that says why a fit must be left as it is; empty if nothing speaks against it."""
    if trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward:  # noqa: SLF001 - nothing public tells
        return "this epoch has no backward pass"
    if trainer.accumulate_grad_batches > 1 and any(isinstance(one, torch.optim.LBFGS) for one in trainer.optimizers):
        return "LBFGS runs the last of the accumulated batches several times in a step, and nothing stands for that one"
    at_all = _why_not_at_all(trainer, module)
    return at_all or why_not(module, allow_batch_statistics=asked.allow_batch_statistics)


def _why_not_at_all(trainer: Trainer, module: LightningModule) -> str:
    """Return why neither the micro-batch nor the effective batch of a fit can be another; empty if nothing is known."""
    strategy = type(trainer.strategy).__name__
    if not module.automatic_optimization:
        return "the module optimises by hand (automatic_optimization=False): cut its batches in its training_step"
    if any(name in strategy for name in _OTHERS) or trainer.strategy.handles_gradient_accumulation:
        return f"{strategy} accumulates or shards gradients in its own way: set the micro-batch there"
    if any(isinstance(one, GradientAccumulationScheduler) for one in vars(trainer)["callbacks"]):
        return "a GradientAccumulationScheduler changes the samples of an optimizer step as it goes"
    return ""
