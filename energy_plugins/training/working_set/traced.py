"""The working sets of a training step, from passes at two sizes: what they take is a line through both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from energy_plugins.errors import ConfigError
from energy_plugins.training.micro_batch.batch_tree import samples_in
from energy_plugins.training.working_set.optimizer import OptimizerBytes, optimizer_bytes
from energy_plugins.training.working_set.passes import Passes, Place, passes_for_real, passes_without_data
from energy_plugins.tune.growth import Growth, highest
from energy_plugins.tune.working_set import WorkingSet

_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16, "fp16": torch.float16}
_NONE = {"", "no", "none", "32", "fp32", "64"}

_Run = Callable[[torch.nn.Module, object, Place, int], Passes]


def traced(model: object, batch: object, optimizer: object, precision: str | None, device: object) -> WorkingSet:
    """Return the working set of a training step; see `WorkingSet.of`."""
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"the model is a {type(model).__name__}, but must be a torch.nn.Module")
    samples = samples_in(batch)
    if not samples:
        raise ConfigError(
            f"how many samples the example batch holds cannot be told (it is a {type(batch).__name__}): pass what the "
            "loader yields, tensors whose first dimension is the sample"
        )
    notes: list[str] = []
    inner = inner_of(model, notes)
    place = Place(_device(inner, device, notes), _autocast(precision))
    return sets_of(inner, _both(inner, batch, place, samples, notes), stepped(optimizer, place.device, notes), notes)


def sets_of(
    model: torch.nn.Module, passes: tuple[Passes, Passes], stepped: OptimizerBytes | None, notes: Sequence[str]
) -> WorkingSet:
    """Return the working set of ``model``, whose passes at two sizes and whose optimizer were followed."""
    one, other = passes
    parameters = {id(tensor): tensor for tensor in model.parameters()}.values()
    state, momentary = (stepped.state_bytes, stepped.momentary_bytes) if stepped else (0, 0)
    resting = _line(one, other, lambda passes: passes.resting_bytes)
    step = resting.above(one.gradient_bytes + state + momentary)
    return WorkingSet(
        layer_bytes_per_sample=max(line.bytes_per_sample for line in _lines(one, other, lambda run: run.touched)),
        kept=_line(one, other, lambda run: run.kept_bytes),
        parameter_bytes=sum(tensor.numel() * tensor.element_size() for tensor in parameters),
        gradient_bytes=one.gradient_bytes,
        optimizer_state_bytes=stepped.state_bytes if stepped else None,
        peaks=highest([step, *(line.above(state) for line in _lines(one, other, lambda run: run.first))]),
        accumulating_peaks=highest([step, *(line.above(state) for line in _lines(one, other, lambda run: run.later))]),
        notes=tuple(notes),
    )


def _both(model: torch.nn.Module, batch: object, place: Place, samples: int, notes: list[str]) -> tuple[Passes, Passes]:
    """Return passes at two sizes, without data if that is possible."""
    try:
        return _at(passes_without_data, model, batch, place, (samples, 2 * samples))
    except Exception as error:  # noqa: BLE001 - whatever a user's model raises
        notes.append(f"traced by running it for real, because without data it cannot be run: {said(error)}")
    smaller = samples // 2 or 2
    own = next((one.device for one in model.parameters()), place.device)
    try:
        return _at(passes_for_real, model, batch, Place(own, place.autocast), (samples, smaller))
    except Exception as error:
        raise ConfigError(f"the model cannot be run on the example batch: {said(error)}") from error


def _at(
    run: _Run, model: torch.nn.Module, batch: object, place: Place, sizes: tuple[int, int]
) -> tuple[Passes, Passes]:
    one, other = (run(model, batch, place, size) for size in sizes)
    return one, other


def said(error: Exception) -> str:
    """Return the first line of what an exception says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _line(one: Passes, other: Passes, value: Callable[[Passes], int]) -> Growth:
    return Growth.through((one.size, value(one)), (other.size, value(other)))


def _lines(one: Passes, other: Passes, values: Callable[[Passes], tuple[int, ...]]) -> list[Growth]:
    """Return what each operation adds up to at every size; of passes that differ in their operations only the most."""
    here, there = values(one), values(other)
    if len(here) != len(there):
        here, there = (max(here),), (max(there),)
    return [Growth.through((one.size, a), (other.size, b)) for a, b in zip(here, there, strict=True)]


def inner_of(model: torch.nn.Module, notes: list[str]) -> torch.nn.Module:
    """Return the model inside of what runs it on several ranks or compiles it."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        notes.append("the buckets of DistributedDataParallel are left out: up to the gradients once more")
        return inner_of(model.module, notes)
    compiled = getattr(model, "_orig_mod", None)
    if isinstance(compiled, torch.nn.Module):
        notes.append("traced as it is before torch.compile, which keeps less between forward and backward")
        return inner_of(compiled, notes)
    return model


def _device(model: torch.nn.Module, asked: object, notes: list[str]) -> torch.device:
    own = next((one.device for one in model.parameters()), torch.device("cpu"))
    wanted = own if asked is None else torch.device(f"cuda:{asked}" if str(asked).isdecimal() else str(asked))
    if wanted.type == "meta":
        wanted = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        notes.append("traced as on a CPU, because torch sees no GPU here: a GPU's kernels may keep other tensors")
        return torch.device("cpu")
    return wanted


def _autocast(precision: str | None) -> torch.dtype | None:
    name = (precision or "").removesuffix("-mixed")
    if name in _AUTOCAST:
        return _AUTOCAST[name]
    if name in _NONE or name.endswith("-true"):
        return None
    raise ConfigError(f"the precision is {precision!r}, but must be bf16, fp16, 32, or what a framework calls them")


def stepped(optimizer: object, device: torch.device, notes: list[str]) -> OptimizerBytes | None:
    """Return what an optimizer takes, None where it cannot be followed."""
    if optimizer is None:
        return OptimizerBytes(0, 0)
    inner = getattr(optimizer, "optimizer", optimizer)  # as accelerate and Lightning wrap it
    if not isinstance(inner, torch.optim.Optimizer):
        raise ConfigError(
            f"the optimizer is a {type(optimizer).__name__}, but must be a torch.optim.Optimizer, or None"
        )
    try:
        return optimizer_bytes(inner, device)
    except Exception as error:  # noqa: BLE001 - whatever a user's optimizer raises
        notes.append(f"the optimizer's state is left out, because its step cannot be traced: {said(error)}")
        return None
