"""What is known of every micro-batch that was measured, from the windows so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energy_plugins.tune.limit.measurement import with_host
from energy_plugins.tune.micro_batch.levels import Difference, Levels, levels
from energy_plugins.tune.micro_batch.task import MicroBatchTask, SizeWindow


@dataclass(frozen=True)
class SizeOutlook:
    """All sizes that were measured, against the reference: the user's setting, or the largest that fitted."""

    reference: int
    cost: Levels
    """Energy of an optimizer step, that of the host with it."""
    energy: Levels
    time: Levels
    reference_j: float
    reference_s: float
    seen_once: frozenset[int] = frozenset()
    """Sizes of which there is one window alone: the best of several such looks seems better than it is."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those that were measured, rising."""
        return self.cost.sizes

    @property
    def leader(self) -> int:
        """The size that seems to cost least."""
        return self.sizes[int(np.argmin(self.cost.means))]

    def over_leader(self, size: int) -> Difference:
        """Return by how much a size costs more than the leader."""
        return self.cost.between(size, self.leader)

    def over_reference(self, size: int) -> Difference:
        """Return by how much a size costs more than the reference."""
        return self.cost.between(size, self.reference)

    def step_energy_j(self, size: int) -> float:
        """Return the energy of an optimizer step, without the host's."""
        return self.reference_j * float(np.exp(self.energy.between(size, self.reference).mean))

    def step_time_s(self, size: int) -> float:
        """Return the time of an optimizer step."""
        return self.reference_s * float(np.exp(self.time.between(size, self.reference).mean))


def reference_of(task: MicroBatchTask, sizes: Sequence[int]) -> int:
    """Return with which of the measured sizes others are compared: the user's setting, or the largest that fitted."""
    return task.start if task.start in sizes else max(sizes)


def size_outlook(task: MicroBatchTask, windows: Sequence[SizeWindow]) -> SizeOutlook:
    """Return what ``windows`` tell, at least one."""
    raw = [window.measured for window in windows]
    whole = [with_host(one, task.host_power_w) for one in raw]
    sizes = [window.size for window in windows]
    when_s = np.array([window.middle_s for window in windows])
    seconds = np.array([window.seconds for window in windows])

    def known(values: Sequence[float], errors: Sequence[float]) -> Levels:
        return levels(sizes, when_s, seconds, np.log(values), np.array(errors))

    reference = reference_of(task, sizes)
    at_reference = [one for one, size in zip(raw, sizes, strict=True) if size == reference]
    return SizeOutlook(
        reference=reference,
        cost=known([one.step_energy_j for one in whole], [one.energy_error for one in whole]),
        energy=known([one.step_energy_j for one in raw], [one.energy_error for one in raw]),
        time=known([one.step_time_s for one in raw], [one.time_error for one in raw]),
        reference_j=float(np.exp(np.mean(np.log([one.step_energy_j for one in at_reference])))),
        reference_s=float(np.exp(np.mean(np.log([one.step_time_s for one in at_reference])))),
        seen_once=frozenset(size for size in sizes if sizes.count(size) == 1),
    )
