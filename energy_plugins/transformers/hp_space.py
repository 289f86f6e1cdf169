"""`energy_hp_space`: what ``hyperparameter_search`` may turn to save energy, and what a trial was told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from energy_plugins.config import limit_asked
from energy_plugins.control.allowed import STEP_W, allowed_limits_w
from energy_plugins.errors import ConfigError
from energy_plugins.training.divisors import divisors

if TYPE_CHECKING:
    from energy_plugins.config import PowerLimitConfig
    from energy_plugins.measure.devices import Gpu

POWER_LIMIT: Final = "power_limit_w"
"""The hyperparameter of a trial that is a power limit (W)."""
BATCH: Final = "per_device_train_batch_size"
ACCUMULATION: Final = "gradient_accumulation_steps"

HpSpace = Callable[[Any], dict[str, Any]]
"""What ``hyperparameter_search`` takes: called with Optuna's trial, or with None for Ray's search space."""


def energy_hp_space(  # noqa: PLR0913 - each is a separate wish of the user
    space: HpSpace | None = None,
    *,
    gpu: Gpu | int = 0,
    power_limits_w: Sequence[int] | None = None,
    step_w: int = STEP_W,
    effective_batch: int | None = None,
    most: int | None = None,
) -> HpSpace:
    """Return a search space with what decides the energy, for ``Trainer.hyperparameter_search`` with Optuna or Ray.

    Each trial has a power limit, ``power_limit_w``, which the trainer's `EnergyCallback` sets for as long as the trial
    trains; what was found is put back, even if the trial is pruned or killed. With ``effective_batch`` each has a batch
    that divides it and the accumulation that makes up for it, so that the gradients of all trials stay what they are.

    Args:
        space: what else is searched, which has the last word; transformers' own space if not given.
        gpu: whose limits are tried, one of `visible_gpus` or its place among them.
        power_limits_w: the limits to try (W), where this process does not see the GPUs of the trials, or for fewer.
        step_w: between two limits (W).
        effective_batch: samples of one optimizer step on one GPU.
        most: the most samples that may run at once, if that is known.

    Raises:
        ConfigError: there is no limit to try, or ``effective_batch`` is given without ``space``.
        BatchError: the batch is no positive number of samples, or none fits.
        DeviceError: there is no such GPU; give ``power_limits_w``. It is raised when the search begins.

    Example::

        trainer.hyperparameter_search(energy_hp_space(), backend="ray", n_trials=20)

    """
    if power_limits_w is not None and not power_limits_w:
        raise ConfigError(
            "power_limits_w is empty: give the limits to try, in watts, or leave it out for those allowed"
        )
    if effective_batch is not None and space is None:
        raise ConfigError("transformers' own space has a batch of its own: give `space` along with effective_batch")
    sizes = () if effective_batch is None else divisors(effective_batch, most)

    def with_energy(trial: Any) -> dict[str, Any]:  # noqa: ANN401 - Optuna's, or None
        limits_w = allowed_limits_w(gpu, step_w) if power_limits_w is None else power_limits_w
        drawn = _of_ray(limits_w, sizes) if trial is None else _of_optuna(trial, limits_w, sizes)
        if effective_batch is not None:
            drawn[ACCUMULATION] = _accumulation(trial, effective_batch, drawn[BATCH])
        return drawn | (_default(trial) if space is None else space(trial))

    return with_energy


def limit_of_trial(params: Mapping[str, Any] | None) -> PowerLimitConfig | None:
    """Return the power limit that a trial's hyperparameters ask for, None if they do not. Raises ConfigError."""
    watts = None if params is None else params.get(POWER_LIMIT)
    return None if watts is None else limit_asked(fixed=float(watts))


def _of_optuna(trial: Any, limits_w: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:  # noqa: ANN401 - as above
    if isinstance(limits_w, range):
        watts = trial.suggest_int(POWER_LIMIT, limits_w[0], limits_w[-1], step=limits_w.step)
    else:
        watts = trial.suggest_categorical(POWER_LIMIT, list(limits_w))
    return {POWER_LIMIT: watts} | ({BATCH: trial.suggest_categorical(BATCH, list(sizes))} if sizes else {})


def _of_ray(limits_w: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:
    from energy_plugins.ray.domains import choice  # noqa: PLC0415 - Ray need not be there

    return {POWER_LIMIT: choice(limits_w)} | ({BATCH: choice(sizes)} if sizes else {})


def _accumulation(trial: Any, effective_batch: int, batch: Any) -> Any:  # noqa: ANN401 - Ray draws it later
    if trial is not None:
        return effective_batch // batch
    from energy_plugins.ray.domains import quotient  # noqa: PLC0415 - Ray need not be there

    return quotient(effective_batch, BATCH)


def _default(trial: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    """Return transformers' own space."""
    from transformers.trainer_utils import default_hp_space_optuna, default_hp_space_ray  # noqa: PLC0415 - seldom

    return default_hp_space_ray(None) if trial is None else default_hp_space_optuna(trial)
