"""An estimate of the CPU's energy where nothing measures it: only if asked for, always labelled, never in a total."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CpuEstimate:
    """What the user believes the machine's CPUs draw: ``idle_w``, and ``per_core_w`` for every busy logical core.

    The figures come from a wall meter or a data sheet; nothing here checks them.
    """

    idle_w: float
    per_core_w: float
    stat: str = "/proc/stat"
    """Where busy time is read."""

    def __post_init__(self) -> None:
        if not (0 <= self.idle_w < float("inf") and 0 <= self.per_core_w < float("inf")):
            raise ValueError(f"idle_w and per_core_w must be watts from 0 on, got {self.idle_w} and {self.per_core_w}")


class BusyCores:
    """Follows how busy the cores are from ``start_ns`` on, for an estimate."""

    def __init__(self, estimate: CpuEstimate, start_ns: int) -> None:
        self._estimate = estimate
        self._start_ns = start_ns
        self.faults: tuple[str, ...] = ()
        self._first_s: float | None = None
        self._mean: float | None = None
        self.look(start_ns)

    def look(self, now_ns: int) -> None:
        """Bring the mean up to ``now_ns``. A failure is remembered, and the estimate is given up."""
        try:
            busy_s = _busy_core_s(Path(self._estimate.stat))
        except (OSError, ValueError) as error:
            self.faults = (f"the CPU's energy could not be estimated: {error}",)
            self._first_s = self._mean = None
            return
        if now_ns == self._start_ns:
            self._first_s = busy_s
        elif self._first_s is not None:
            self._mean = (busy_s - self._first_s) / ((now_ns - self._start_ns) * 1e-9)

    def estimate(self, duration_s: float) -> tuple[float | None, str]:
        """Return the joules of ``duration_s`` from the start and how they were made, or None and why."""
        if self._mean is None:
            return None, self.faults[0] if self.faults else "no time has passed"
        watts = self._estimate.idle_w + self._estimate.per_core_w * self._mean
        label = (
            f"ESTIMATE, not measured: {self._estimate.idle_w:g} W and {self._estimate.per_core_w:g} W for each of "
            f"{self._mean:.1f} busy cores on average; both figures are the user's"
        )
        return watts * duration_s, label


def _busy_core_s(stat: Path) -> float:
    """Return for how long all cores together have worked since boot, in seconds (``/proc/stat``, see proc(5)).

    That is user, nice, system, irq and softirq time; not waiting for disks, nor what a hypervisor took away.
    """
    first = stat.read_text(encoding="ascii").partition("\n")[0].split()
    if len(first) < 8 or first[0] != "cpu":
        raise ValueError(f"{stat} does not begin with the times of all CPUs")
    user, nice, system, _idle, _iowait, irq, softirq = map(int, first[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
