"""Why a micro-batch costs what it does, in sentences: fixed cost, idle power, saturation, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from energy_plugins.tune.limit.decision import WORTH
from energy_plugins.tune.limit.task import SURE
from energy_plugins.tune.micro_batch.fixed_cost import FixedCost
from energy_plugins.tune.micro_batch.task import MicroBatchTask
from energy_plugins.tune.micro_batch.tried_size import TriedSize

_MUCH = 0.02
"""Share of the energy from which a cost is worth a sentence."""


def explained(task: MicroBatchTask, size: int, tried: Sequence[TriedSize], curve: FixedCost | None) -> tuple[str, ...]:
    """Return the sentences, those on the choice first."""
    return (
        *_choice(task, size, tried),
        *(() if curve is None else _fixed_cost(task, size, curve)),
        *_spill(tried),
        *_failed(tried),
    )


def _choice(task: MicroBatchTask, size: int, tried: Sequence[TriedSize]) -> Iterator[str]:
    ran = {one.size: one for one in tried if one.saving is not None}
    if not ran:
        yield f"no micro-batch could be measured: {task.start} samples at once are kept"
    elif task.start not in ran:
        yield f"{size} samples at once: the {task.start} that were set do not fit"
    elif size == task.start:
        yield f"no other size surely saves {WORTH:.1%}: {task.start} samples at once are kept"
    else:
        bound = 1.96 * (ran[size].saving_sem or 0.0)
        yield f"{size} samples at once save {ran[size].saving:.1%} (+- {bound:.1%}) of the energy against {task.start}"
    equal = [one for one in ran.values() if one.size > size != task.start and _saving(one) > _saving(ran[size]) - WORTH]
    if equal:
        names = ", ".join(str(one.size) for one in equal)
        yield f"{names} cost the same within the noise: the smaller one leaves more memory"


def _fixed_cost(task: MicroBatchTask, size: int, curve: FixedCost) -> Iterator[str]:
    waits = curve.busy_from is None or task.start < curve.busy_from
    if waits and curve.fixed_j >= _MUCH * curve.energy_j(task.start):
        yield (
            f"each micro-batch costs {curve.fixed_j:.3g} J whatever its size: it takes {1e3 * curve.floor_s:.3g} ms at "
            f"least, at {curve.idle_w:.0f} W before any work is done"
        )
        then = f", and {curve.idle_share(size):.0%} with {size}" if size != task.start else ""
        yield f"idle power is {curve.idle_share(task.start):.0%} of the energy with {task.start} samples at once{then}"
    if curve.floor_s and curve.busy_from is None:
        yield "every size took the same time: the GPU waits for the host, and larger sizes would save more"
    elif curve.floor_s:
        about = float(f"{curve.busy_from:.2g}")
        yield f"from about {about:.0f} samples at once the GPU is kept busy, and larger sizes save little"


def _spill(tried: Sequence[TriedSize]) -> Iterator[str]:
    """Tell where more samples at once surely cost more, and whether their activations moved to slower memory."""
    ran = [one for one in tried if one.saving is not None]
    for smaller, larger in pairwise(ran):
        dearer = _saving(smaller) - _saving(larger)
        if dearer < max(WORTH, SURE * _error(smaller, larger)):
            continue
        moved = smaller.level != larger.level
        why = f": a layer's activations left the {smaller.level} for the {larger.level}" if moved else ""
        yield f"{larger.size} samples at once cost more than {smaller.size}{why}"


def _failed(tried: Sequence[TriedSize]) -> Iterator[str]:
    for one in tried:
        if one.why is not None:
            yield f"{one.size} samples at once cannot be used: {one.why}"


def _saving(one: TriedSize) -> float:
    return one.saving or 0.0


def _error(one: TriedSize, other: TriedSize) -> float:
    return math.hypot(one.saving_sem or 0.0, other.saving_sem or 0.0)
