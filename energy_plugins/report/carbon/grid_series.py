"""A carbon intensity that changes with time, and the mean of it that a run drew at."""

from __future__ import annotations

import csv
import math
from bisect import bisect
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from energy_plugins.errors import ConfigError

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report

_COLUMNS = ("time", "g_per_kwh")


@dataclass(frozen=True)
class Series:
    """Intensities, each from its time until the next; the last one for as long as the one before it."""

    name: str
    from_s: tuple[float, ...]
    """Seconds since 1970, UTC, rising."""
    g_per_kwh: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a CSV file with the columns ``time`` (ISO 8601 with its zone) and ``g_per_kwh``.

        Raises:
            ConfigError: it cannot be read, or a line is wrong; the message has the line.
        """
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                if not set(_COLUMNS) <= set(rows.fieldnames or ()):
                    raise ConfigError(f"{path}: its first line must name the columns {' and '.join(_COLUMNS)}")
                found = [_read_row(f"{path} line {rows.line_num}", row["time"], row["g_per_kwh"]) for row in rows]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            raise ConfigError(f"{path} is neither a number nor a CSV file that can be read: {reason}") from error
        if len(found) < 2:
            raise ConfigError(f"{path} has {len(found)} rows: a series needs two at least")
        for before, after in pairwise(found):
            if after[0] <= before[0]:
                raise ConfigError(f"{path}: {_utc(after[0])} comes after {_utc(before[0])}: times must rise")
        return cls(path.name, tuple(at_s for at_s, _ in found), tuple(value for _, value in found))

    @property
    def until_s(self) -> float:
        """When it ends."""
        return 2 * self.from_s[-1] - self.from_s[-2]

    def mean_g_per_kwh(self, report: Report) -> float:
        """Return the mean intensity over a run, weighed by what its GPUs drew when.

        Raises:
            ConfigError: the series does not cover the run, or the report does not say when that was.
        """
        try:
            start_s = datetime.fromisoformat(report.started).timestamp()
        except ValueError as error:
            raise ConfigError(f"the report says that the run began at {report.started!r}, which is no time") from error
        end_s = start_s + report.duration_s
        if start_s < self.from_s[0] or end_s > self.until_s:
            raise ConfigError(
                f"{self.name} covers {_utc(self.from_s[0])} to {_utc(self.until_s)}, and the run lasted from "
                f"{_utc(start_s)} to {_utc(end_s)}"
            )
        edges_s = np.clip(np.array([*self.from_s, self.until_s]) - start_s, 0.0, report.duration_s)
        drawn = np.diff(_drawn_until(report, edges_s))
        if not drawn.sum() > 0:  # it was killed as it began
            return self.g_per_kwh[bisect(self.from_s[1:], start_s)]
        return float(drawn @ np.array(self.g_per_kwh) / drawn.sum())


def _drawn_until(report: Report, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the GPUs had drawn at each time, up to a factor; as if evenly where the power was not kept."""
    drawn = np.zeros(len(at_s))
    for columns in report.power.values():
        known = np.isfinite(columns["power_w"])
        t_s, power_w = columns["t_s"][known], columns["power_w"][known]
        if len(t_s):
            t_s, power_w = np.r_[0.0, t_s, report.duration_s], np.r_[power_w[0], power_w, power_w[-1]]
            joules = np.r_[0.0, np.cumsum(np.diff(t_s) * (power_w[1:] + power_w[:-1]) / 2)]
            drawn += np.interp(at_s, t_s, joules)
    return drawn if drawn[-1] > drawn[0] else at_s


def _read_row(where: str, time: str | None, value: str | None) -> tuple[float, float]:
    try:
        at = datetime.fromisoformat((time or "").strip())
    except ValueError as error:
        raise ConfigError(f"{where}: the time is {time!r}; expected one like 2026-11-22T08:00:00Z") from error
    if at.tzinfo is None:
        raise ConfigError(f"{where}: the time {time!r} has no zone; write it like 2026-11-22T08:00:00Z")
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"{where}: the intensity is {value!r}; expected a number of g/kWh, 0 or more")
    return at.timestamp(), number


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
