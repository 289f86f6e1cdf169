"""What a GPU was doing while it drew its power: the state lane's readings in running sums."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from energy_plugins.measure.report_parts import GpuState

REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Why clocks are lower than they could be, by bit (nvml.h, nvmlClocksEventReasons)."""
NO_THROTTLING = frozenset({"gpu_idle", "applications_clocks_setting", "display_clock_setting"})
"""Reasons that are none to complain of: nothing to do, and clocks that somebody set."""
_HARMLESS = sum(bit for bit, name in REASONS.items() if name in NO_THROTTLING)
_BITS = 63
_MEANS = ("sm_clock_mhz", "utilisation", "enforced_limit_w", "requested_limit_w")


class StateSum:
    """Sums up the state readings of one GPU: one a second, each counting the same."""

    def __init__(self) -> None:
        self.readings = 0
        self._total = dict.fromkeys(_MEANS, 0.0)
        self._known = dict.fromkeys(_MEANS, 0)
        self._hottest_c = -np.inf
        self._limits_w = (np.inf, -np.inf)
        self._reasoned = 0
        self._throttled = 0
        self._bits = np.zeros(_BITS, np.int64)
        self.last_limit_w = np.nan
        """The power limit in force, as of the last reading of it."""

    def add(self, rows: NDArray[np.void]) -> None:
        """Add readings (the columns of ``_native.Sampler.state``)."""
        if not len(rows):
            return
        self.readings += len(rows)
        for name in _MEANS:
            self._total[name] += float(np.nansum(rows[name]))
            self._known[name] += int(np.isfinite(rows[name]).sum())
        self._hottest_c = float(np.fmax.reduce(rows["temperature_c"], initial=self._hottest_c))
        limit_w, (low_w, high_w) = rows["enforced_limit_w"], self._limits_w
        self._limits_w = float(np.fmin.reduce(limit_w, initial=low_w)), float(np.fmax.reduce(limit_w, initial=high_w))
        if (known_w := limit_w[np.isfinite(limit_w)]).size:
            self.last_limit_w = float(known_w[-1])
        reasons = rows["clock_reasons"][rows["clock_reasons"] >= 0]
        self._reasoned += len(reasons)
        self._throttled += int(((reasons & ~_HARMLESS) != 0).sum())
        self._bits += ((reasons[:, None] >> np.arange(_BITS)) & 1).sum(axis=0)

    def mean(self, name: str) -> float | None:
        """Return the mean of a column over the readings that had it."""
        return self._total[name] / self._known[name] if self._known[name] else None

    @property
    def limit_w(self) -> float | None:
        """The mean power limit in force, or what was asked for where only that is known."""
        enforced_w = self.mean("enforced_limit_w")
        return self.mean("requested_limit_w") if enforced_w is None else enforced_w

    def summary(self, uuid: str, default_limit_w: float | None) -> GpuState:
        """Return what the report says of the GPU."""
        low_w, high_w = (_finite(limit_w) for limit_w in self._limits_w)
        seen = np.flatnonzero(self._bits).tolist()
        return GpuState(
            uuid=uuid,
            readings=self.readings,
            sm_clock_mhz=self.mean("sm_clock_mhz"),
            max_temperature_c=_finite(self._hottest_c),
            utilisation=self.mean("utilisation"),
            min_limit_w=low_w,
            max_limit_w=high_w,
            requested_limit_w=self.mean("requested_limit_w"),
            default_limit_w=default_limit_w,
            throttled=self._throttled / self._reasoned if self._reasoned else None,
            reasons={_name(bit): int(self._bits[bit]) / self._reasoned for bit in seen},
        )


def _name(bit: int) -> str:
    return REASONS.get(1 << bit, f"bit_{bit}")


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
