"""`EnergyCallback`: what a Trainer calls, and how it is found among a Trainer's callbacks.

It is imported wherever trainings may be measured, so what measures is imported when a callback is made.
"""

# ruff: noqa: ARG002 - events come with what transformers gives them

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from transformers.trainer_callback import DefaultFlowCallback, ExportableState, TrainerCallback

from energy_plugins.transformers.trainers import saved_joules, states_of, trainer_above

if TYPE_CHECKING:
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments

    from energy_plugins.config import EnergyArguments, EnergyConfig, MicroBatchConfig, PowerLimitConfig
    from energy_plugins.measure.report import Report
    from energy_plugins.training.measured import Measured


class EnergyCallback(TrainerCallback, ExportableState):
    """Measures the GPU energy of every optimizer step of a Trainer, and of its evaluations and checkpoints.

    One row of the report's ``steps`` is one optimizer step with all its micro-batches, from the start of the fetch of
    its batches to the end of its work on the GPU. Logs of the training (never those of an evaluation) get the figures
    under ``energy/``, late by at most 1.5 s: ``total_j`` (which carries on when training resumes from a checkpoint),
    ``avg_power_w``, per step ``step_j``, ``data_wait_j`` and ``stall_j``, ``samples_per_j`` and ``tokens_per_j`` where
    they are known, ``gpu{i}/total_j`` and ``gpu{i}/power_w``, and what to expect of the whole training,
    ``forecast_kwh`` and, in seconds to its end, ``forecast_s``. The last log, and so ``TrainOutput.metrics``, has
    ``train_energy_j`` and ``train_energy_kwh``. All are in ``trainer_state.json`` too. Nothing here synchronises with
    the device or copies to or from it, except that the ranks of a training with a budget agree on it now and then.

    It works as an instance or as the class in ``callbacks``, by ``report_to="energy"`` once this module is imported, or
    by `attach`; of several in one trainer the last one measures. Every call of ``train`` leaves one report folder, and
    the last one is `report`. A training that cannot be measured warns once and goes on.

    What is not given here is taken from the configuration (`energy_plugins.config`): the environment, or its file. If
    that says where trainings run (``report.country``), model cards that the trainer makes get ``co2_eq_emissions``.

    Args:
        folder: Where reports go, a folder ``<name>-<n>`` for each run; ``<output_dir>/energy`` if not given.
        name: What the runs are called; ``run`` if not given.
        phases_every_n_steps: Mark forward, backward and optimizer in every n-th optimizer step, of 50 if not given; 0
            never does.
        log: Whether to add the figures to the trainer's logs.
        progress_bar: Whether to show the joules in the progress bar.
        devices: Ordinals of the GPUs to measure; if not given, the one this process trains on, and without one all
            that are visible.
        table: Whether to print the report as a table at the end.
        activity: Whether to read once a second how busy the GPU's parts are (Hopper and newer), so that the report can
            call each kind of work compute-, memory- or launch-bound.
        energy_budget_kwh: The most that a training may draw on the GPUs of all ranks, in kilowatt-hours, what it drew
            before it was resumed included. Once that is spent a checkpoint is saved and the training ends.

    Raises:
        ConfigError: If a value is not allowed, here or in the configuration. It is a ValueError.

    Example::

        from transformers import Trainer
        from energy_plugins.transformers import EnergyCallback

        trainer = Trainer(model, args, train_dataset=data, callbacks=[EnergyCallback()])

    """

    restored: Mapping[str, Any] | None = None
    """Set by a Trainer that made this from a checkpoint to replace the one it was given."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is a separate wish of the user
        self,
        folder: str | None = None,
        name: str | None = None,
        phases_every_n_steps: int | None = None,
        log: bool | None = None,  # noqa: FBT001 - as in the other plugins
        progress_bar: bool | None = None,  # noqa: FBT001
        devices: list[int] | None = None,
        table: bool | None = None,  # noqa: FBT001
        activity: bool | None = None,  # noqa: FBT001
        energy_budget_kwh: float | None = None,
    ) -> None:
        report: dict[str, Any] = {
            "folder": folder,
            "name": name,
            "log": log,
            "progress_bar": progress_bar,
            "table": table,
        }
        measure: dict[str, Any] = {
            "phases_every_n_steps": phases_every_n_steps,
            "devices": devices,
            "activity": activity,
            "energy_budget_kwh": energy_budget_kwh,
        }
        self._given = report | measure
        arguments = {f"report.{key}": value for key, value in report.items()}
        arguments |= {f"measure.{key}": value for key, value in measure.items()}
        from energy_plugins.config import effective  # noqa: PLC0415 - see above

        self._measure_as(effective(arguments=arguments).config)

    @classmethod
    def from_arguments(cls, arguments: EnergyArguments) -> Self:
        """Return one that is configured by what HfArgumentParser has made. Raises ConfigError."""
        callback = cls()
        callback._measure_as(arguments.config())
        return callback

    def _measure_as(self, config: EnergyConfig) -> None:
        from energy_plugins.transformers.fits import Fits  # noqa: PLC0415 - see above

        self._fits = Fits(config)

    @property
    def report(self) -> Report | None:
        """The report of the last training that ended in this process."""
        return self._fits.monitor.report

    @property
    def measuring(self) -> Measured | None:
        """The run that is being measured, for callbacks of ours; None if there is none."""
        return self._fits.monitor.run

    def limit_power(self, limit: PowerLimitConfig, trainer: Trainer | None, args: TrainingArguments) -> None:
        """Have the power limited, see `PowerLimitCallback`."""
        self._fits.ask_for_limit(limit, trainer, args)

    def tune_micro_batch(self, asked: MicroBatchConfig, trainer: Trainer | None) -> None:
        """Have the micro-batch tuned, see `MicroBatchCallback`."""
        self._fits.ask_for_micro_batch(asked, trainer)

    def attach(self, trainer: Trainer) -> Self:
        """Add this to a trainer, in the place of any other of its kind."""
        while trainer.pop_callback(EnergyCallback) is not None:
            pass
        trainer.add_callback(self)
        _OF_TRAINERS[trainer] = self
        self._fits.before(trainer)
        return self

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the settings, the joules so far, and the run that counts them."""
        return {"args": dict(self._given), "attributes": {"restored": self._fits.state()}}

    # Events.

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Remember whose this is, in case it is replaced."""
        if (trainer := trainer_above()) is not None:
            _OF_TRAINERS[trainer] = self
            self._fits.before(trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start measuring; end the training after its first batch if its budget is spent already."""
        trainer = trainer_above()
        user = self if trainer is None else _who_measures(trainer, self)
        if user is not None:
            name = type(user).__name__
            saved = saved_joules(state, name) if state.global_step else None  # a checkpoint's: it is a resumed one
            # A checkpoint without our state would fail the trainer's next save.
            states_of(state)[name] = user.state()
            user._fits.begin(trainer, args, state, control, saved)  # noqa: SLF001 - our own

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Open the step that began with the fetch of its batches."""
        self._fits.begin_step(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin the optimizer phase, which the end of the step ends."""
        self._fits.optimize()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Close the step, and end the training when its budget is spent."""
        self._fits.end_step(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Close a step that was left without its optimizer step, when the data or the training ended in it."""
        self._fits.monitor.drop_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Add the figures to a log of the training, for reporters and ``trainer_state.json``; the last log ends it."""
        if logs is not None:
            self._fits.log(state, logs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Stop measuring if the last log has not done so: a trial that is pruned has none."""
        self._fits.end()


def attach(trainer: Trainer, **settings: Any) -> EnergyCallback:  # noqa: ANN401 - those of EnergyCallback
    """Have a trainer measured, and return its `EnergyCallback`: the one it has already, unless ``settings`` are given.

    Raises ConfigError for settings that are not allowed.
    """
    there = [one for one in trainer.callback_handler.callbacks if isinstance(one, EnergyCallback)]
    return there[-1] if there and not settings else EnergyCallback(**settings).attach(trainer)


def measuring_callback(trainer: Trainer) -> EnergyCallback:
    """Return what measures a trainer, and add it if nothing does, for callbacks that ask it for more."""
    measuring = [one for one in trainer.callback_handler.callbacks if isinstance(one, EnergyCallback)]
    # One that is added to the list which the trainer goes through has its turn for the present event, too.
    return measuring[-1] if measuring else EnergyCallback().attach(trainer)


_OF_TRAINERS: WeakKeyDictionary[Trainer, EnergyCallback] = WeakKeyDictionary()
"""What each trainer was given, which it may have replaced since."""


def _who_measures(trainer: Trainer, asking: EnergyCallback) -> EnergyCallback | None:
    """Return which callback is to begin now, None if it is not the turn of the one ``asking``; no other one stays.

    It goes in front of the reporters, because logs are handed from one to the next. A trainer that restores callbacks
    from a checkpoint has made a new one: then the user's own, which has the user's settings and is asked for the
    report, takes its place again.
    """
    handler = trainer.callback_handler
    ours = [one for one in handler.callbacks if isinstance(one, EnergyCallback)]
    if not any(one is asking for one in ours):
        return None  # another has been chosen
    chosen = ours[-1]
    if chosen.restored is not None:
        chosen = _OF_TRAINERS.get(trainer, chosen)
    _OF_TRAINERS[trainer] = chosen
    rest = [one for one in handler.callbacks if not isinstance(one, EnergyCallback)]
    at = next((place for place, one in enumerate(rest) if not isinstance(one, DefaultFlowCallback)), len(rest))
    # A new list, because the trainer is on its way through the old one.
    handler.callbacks = [*rest[:at], chosen, *rest[at:]]
    # One that is in the old list and not asking has its turn still to come, or the one asking is made for it.
    return chosen if chosen is asking or not any(one is chosen for one in ours) else None
