"""How busy the parts of the GPUs were, by kind of work: the activity lane's readings in running sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.profilers import dcgm_processes
from energy_plugins.measure.report_parts import KindActivity
from energy_plugins.measure.sensors import SensorPlan

_COLUMNS = ("sm", "occupancy", "tensor", "dram", "nvlink_rx_bytes_per_s", "nvlink_tx_bytes_per_s")
_ENOUGH_S = 2.0
"""Time of a kind, below which a label would rest on one or two readings."""
FILLED_SM = 0.5
"""SM activity below which a GPU counts as waiting for work more than working. An H200 shows 0 when idle, 0.94 in a
large matrix product, 0.98 in a copy."""
_BUSY_DRAM = 0.6
"""An H200 shows 0.88 in a plain copy, 0.18 in a large matrix product."""
_BUSY_TENSOR = 0.5
"""An H200 shows 0.90 in a large matrix product, 0 in a copy."""

Means = Mapping[str, float | None]


@dataclass(frozen=True)
class ActivityPlan:
    """Whether the activity lane is on, and why not."""

    on: bool
    why: Mapping[str, str] = field(default_factory=dict)
    """What is not measured, as `Report.missing` names it -> why."""
    warning: str | None = None


def plan_activity(plan: SensorPlan, proc: Path, *, wanted: bool) -> ActivityPlan:
    """Decide about the activity lane; ``proc`` is where processes are listed."""
    if not wanted:
        return ActivityPlan(on=False, why={"activity": "off; EnergyMeter(activity=True) reads it"})
    if not plan.sampled:
        return ActivityPlan(on=False, why={"activity": plan.nothing_because or "no GPU is measured"})
    if others := dcgm_processes(proc):
        why = (
            f"{', '.join(others)} may be profiling these GPUs, and two profilers get in each other's way: "
            "stop it, or do without activity=True"
        )
        return ActivityPlan(on=False, why={"activity": why}, warning=f"activity is not measured: {why}")
    reasons = {uuid: plan.reasons.get(uuid, {}) for uuid in plan.sampled}
    lacking = {uuid: known["activity"] for uuid, known in reasons.items() if "activity" in known}
    if len(lacking) == len(plan.sampled):
        first = next(iter(lacking.values()))
        why = f"{first}; it needs GPM (Hopper and newer, driver 525 and newer)"
        return ActivityPlan(on=False, why={"activity": why}, warning=f"activity is not measured: {why}")
    return ActivityPlan(on=True, why={f"activity {uuid}": text for uuid, text in lacking.items()})


def bound_by(means: Means) -> str | None:
    """Say what limits work with these mean activities: "launch-bound", "memory-bound", "compute-bound" or "mixed".

    Memory-bound: at least 60 % of the memory's bandwidth was used, and no less of it than of the tensor pipes; copy
    engines can do that without the SMs. Launch-bound: else, the SMs had work less than half of the time. Compute-bound:
    at least half of the tensor pipes' time was used. All else is mixed; that includes arithmetic without tensor pipes.
    None where an activity that decides is not known.
    """
    sm, tensor, dram = (means[name] for name in ("sm", "tensor", "dram"))
    if sm is None or dram is None:
        return None
    if dram >= _BUSY_DRAM and (tensor is None or dram >= tensor):
        return None if tensor is None else "memory-bound"
    if sm < FILLED_SM:
        return "launch-bound"
    if tensor is None:
        return None
    return "compute-bound" if tensor >= _BUSY_TENSOR else "mixed"


class ActivitySum:
    """Attributes readings to kinds by the share of the time that each kind took.

    A reading lasts about a second: kinds that take turns within it all get the same, and `KindActivity.own` tells.
    """

    def __init__(self) -> None:
        self._kinds: dict[int, NDArray[np.float64]] = {}

    def add(self, rows: NDArray[np.void], cuts_ns: NDArray[np.int64], kinds: NDArray[np.int64]) -> None:
        """Add readings as far as they lie in a stretch of time, of which ``kinds`` says what ran between its cuts."""
        start_ns, end_ns = (np.clip(rows[name], cuts_ns[0], cuts_ns[-1]) for name in ("start_ns", "end_ns"))
        length_ns = end_ns - start_ns
        rows, start_ns, end_ns, length_ns = (part[length_ns > 0] for part in (rows, start_ns, end_ns, length_ns))
        if not len(rows):
            return
        values = np.stack([rows[name] for name in _COLUMNS])
        for code in np.unique(kinds).tolist():
            spent_ns = np.concatenate([[0], np.cumsum(np.where(kinds == code, np.diff(cuts_ns), 0))])
            overlap_ns = np.interp(end_ns, cuts_ns, spent_ns) - np.interp(start_ns, cuts_ns, spent_ns)
            sums = self._kinds.setdefault(code, np.zeros((2, len(_COLUMNS) + 1)))
            sums[0, :-1] += np.nansum(values * overlap_ns, axis=1)
            sums[1, :-1] += np.where(np.isfinite(values), overlap_ns, 0.0).sum(axis=1)
            sums[0, -1] += float((overlap_ns**2 / length_ns).sum())
            sums[1, -1] += float(overlap_ns.sum())

    def summary(self, names: tuple[str, ...]) -> tuple[KindActivity, ...]:
        """Return the kinds that readings cover for long enough to say something; ``names`` are theirs by code."""
        enough = ((code, sums) for code, sums in sorted(self._kinds.items()) if sums[1, -1] * 1e-9 >= _ENOUGH_S)
        return tuple(_describe(names[code], sums) for code, sums in enough)


def _describe(name: str, sums: NDArray[np.float64]) -> KindActivity:
    totals, weights = sums
    means: dict[str, float | None] = {
        column: float(total / weight) if weight > 0 else None
        for column, total, weight in zip(_COLUMNS, totals, weights, strict=False)
    }
    return KindActivity(
        kind=name,
        duration_s=float(weights[-1]) * 1e-9,
        own=float(totals[-1] / weights[-1]),
        bound=bound_by(means),
        **means,
    )
