"""Hyperparameters that a GPU has to allow: its power limit, and how many samples it takes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.control.allowed import STEP_W, allowed_limits_w
from energy_plugins.errors import BatchError
from energy_plugins.training.divisors import divisors

if TYPE_CHECKING:
    import optuna

    from energy_plugins.measure.devices import Gpu
    from energy_plugins.tune.micro_batch.sizes import Memory


def suggest_power_limit(
    trial: optuna.Trial, gpu: Gpu | int = 0, *, name: str = "power_limit_w", step_w: int = STEP_W
) -> int:
    """Suggest a power limit (W) from the lowest that the GPU takes to the one that it has now.

    It is only suggested: ``with energy_plugins.control.PowerLimit(gpu).at(watts=...):`` sets it for a block, and puts
    back what it found even if the trial is pruned or killed. A limit above the one found is never suggested, for
    somebody may have set that on purpose.

    Raises:
        DeviceError: there is no such GPU.
        NvmlError, LibraryError: the driver fails, or has no power limit for this GPU.
    """
    limits_w = allowed_limits_w(gpu, step_w)
    return trial.suggest_int(name, limits_w[0], limits_w[-1], step=step_w)


def suggest_micro_batch(
    trial: optuna.Trial,
    effective_batch: int,
    *,
    most: int | None = None,
    memory: Memory | None = None,
    name: str | None = None,
) -> int:
    """Suggest a micro-batch that divides the effective batch, so that gradients stay what they are.

    Args:
        trial: of a study.
        effective_batch: samples of one optimizer step on one GPU.
        most: the most samples that may run at once, if that is known.
        memory: what the model needs and the device has (`energy_plugins.tune.Memory`): what surely does not fit
            is not suggested.
        name: of the parameter; ``micro_batch_of_<effective_batch>``, and its bound, if not given: Optuna knows no
            parameter whose choices change.

    Raises:
        BatchError: the batch is no positive number of samples, or no micro-batch fits.
    """
    sizes = divisors(effective_batch)
    fitting = [
        size for size in sizes if (most is None or size <= most) and (memory is None or memory.need(size) <= 1.0)
    ]
    if not fitting:
        raise BatchError(f"no micro-batch of {effective_batch} samples fits: not even {sizes[0]} (most={most})")
    bound = "" if len(fitting) == len(sizes) else f"_up_to_{fitting[-1]}"
    return int(trial.suggest_categorical(name or f"micro_batch_of_{effective_batch}{bound}", fitting))
