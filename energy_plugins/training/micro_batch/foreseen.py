"""What is foreseen of memory before sizes are tried: which fit, and at which level their activations live."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from energy_plugins.errors import DeviceError
from energy_plugins.measure.gpu_memory import gpu_memory
from energy_plugins.measure.memory_levels import memory_levels
from energy_plugins.measure.quantity import binary
from energy_plugins.training.all_ranks import AllRanks
from energy_plugins.training.measured import Measured
from energy_plugins.training.micro_batch.plan import MicroBatchPlan
from energy_plugins.training.working_set.followed import TrainingStep, followed
from energy_plugins.tune.memory_hierarchy import MemoryHierarchy
from energy_plugins.tune.micro_batch.sizes import MAY_FIT, MOST_SIZES, SURELY_FITS, Memory, candidates, possible
from energy_plugins.tune.working_set import WorkingSet

_NAMES = ("", "L1", "L2", "L3", "L4", "HBM", "GDDR", "DRAM", "memory")
"""Of levels: ranks tell each other numbers."""


@dataclass(frozen=True)
class Foreseen:
    """The sizes to try, the same on all ranks."""

    sizes: tuple[int, ...]
    fits: int | None = None
    """The largest of them that surely fits on every rank, 0 if none does; None if that is not known."""
    levels: tuple[str, ...] = ()
    """At which level of memory a layer's activations live at each; empty if not known."""
    sentences: tuple[str, ...] = ()
    """What a report says of it."""
    most: int | None = None
    """The most samples at once that surely fit on this rank, whether they can be tried or not."""

    def levels_of(self, sizes: Sequence[int]) -> tuple[str, ...]:
        """Return the levels of some of the sizes."""
        return tuple(self.levels[self.sizes.index(size)] for size in sizes) if self.levels else ()


UNFORESEEN = Foreseen(())


class _Known(NamedTuple):
    memory: Memory
    sets: WorkingSet


def foresee(
    setting: MicroBatchPlan, step: Callable[[], TrainingStep] | None, measured: Measured | None, ranks: AllRanks
) -> Foreseen:
    """Return the sizes worth trying. Collective; rank 0 says which, and what does not fit on any rank is left out.

    Where memory is not known on one of the ranks, all that batches can be cut or joined to is tried. Nothing is raised:
    the reason is among the sentences.

    Args:
        setting: what the user does, the same on all ranks.
        step: returns what a framework knows of a step of the training; None if it knows nothing.
        measured: the run; None if this rank measures nothing.
        ranks: all of them.
    """
    plain = candidates(setting.batch, setting.accumulation)
    known, why = _known(step, measured) if len(plain) > 1 else (None, "")
    own = Foreseen(plain) if known is None else _own(setting, known)
    agreed = together(ranks, own, is_known=known is not None)
    if agreed is None:
        why = why or ("what another rank needs of memory is not known" if known is not None else "")
        return Foreseen(plain, sentences=(f"how much memory other sizes need was not foreseen: {why}",) if why else ())
    return agreed


def together(ranks: AllRanks, own: Foreseen, *, is_known: bool) -> Foreseen | None:
    """Return what all ranks go by, with ``own`` sentences; None if one of them knows nothing. Collective."""
    words = ranks.hear(_told(own, is_known=is_known))
    if not all(word[0] for word in words):
        return None
    first, largest = words[0], min(word[2] for word in words)
    kept = [
        (round(size), _NAMES[round(level)])
        for size, level in zip(first[3 : 3 + MOST_SIZES], first[3 + MOST_SIZES :], strict=True)
        if 0 < size <= largest
    ]
    return Foreseen(
        tuple(size for size, _ in kept),
        round(min(word[1] for word in words)),
        tuple(level for _, level in kept),
        own.sentences,
        own.most,
    )


def _known(step: Callable[[], TrainingStep] | None, measured: Measured | None) -> tuple[_Known | None, str]:
    """Return what is known of the memory, or why nothing is."""
    if step is None or measured is None:
        return None, ""
    try:
        of_training = step()
        hierarchy, usable_bytes = _levels(of_training.device, measured)
        sets = followed(of_training)
        return _Known(Memory(hierarchy, sets, usable_bytes), sets), ""
    except Exception as error:  # noqa: BLE001 - a training goes on without, whatever it is
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__


def _levels(device: torch.device, measured: Measured) -> tuple[MemoryHierarchy, float | None]:
    """Return the levels of the GPU that is measured, and what of its memory is there for this process."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return memory_levels(device), float(free_bytes + torch.cuda.memory_reserved(device))
    run = measured.meter.run
    if run is None or not run.gpus:
        raise DeviceError("no GPU is measured")
    return gpu_memory(run.gpus[0]), None


def _own(setting: MicroBatchPlan, known: _Known) -> Foreseen:
    batch, accumulation, memory = setting.batch, setting.accumulation, known.memory
    sizes = candidates(batch, accumulation, memory.hierarchy, memory.needs, memory_bytes=memory.bytes)
    is_bounded = memory.bytes_there < math.inf
    most = known.sets.largest_within(SURELY_FITS * memory.bytes_there) if is_bounded else None
    return Foreseen(
        sizes,
        memory.fits(sizes),
        tuple(memory.level_of(size) for size in sizes),
        tuple(_sentences(setting, memory, most)),
        most,
    )


def _sentences(setting: MicroBatchPlan, memory: Memory, most: int | None) -> Iterator[str]:
    each = memory.needs.layer_bytes_per_sample
    caches = [level for level in memory.hierarchy.levels if level.name.startswith("L")]
    if each and caches:
        last = caches[-1]
        inside = int(last.size_bytes / each)
        stay = f"those of {inside} samples at once stay in the" if inside else "even one does not stay in the"
        cache = f"{last.name} ({binary(last.size_bytes)})"
        yield f"a layer's activations take up to {binary(each)} a sample: {stay} {cache}"
    if most is not None and memory.bytes_there < math.inf:
        yield f"about {most} samples at once are foreseen to fit into the {binary(memory.bytes_there)} of memory"
    sizes = possible(setting.batch, setting.accumulation)
    too_large = [size for size in sizes if size != setting.batch and memory.need(size) > MAY_FIT]
    if too_large:
        times = memory.need(too_large[0])
        yield f"sizes from {too_large[0]} on were not tried: that would need {times:.1f} times the memory there is"


def _told(own: Foreseen, *, is_known: bool) -> list[float]:
    """Return it as numbers, as many whatever it is: known, what fits, the largest, sizes, their levels."""
    empty = [0.0] * (MOST_SIZES - len(own.sizes))
    levels = [float(_NAMES.index(name) if name in _NAMES else len(_NAMES) - 1) for name in own.levels]
    levels += [0.0] * (MOST_SIZES - len(levels))
    return [float(is_known), float(own.fits or 0), float(own.sizes[-1]), *map(float, own.sizes), *empty, *levels]
