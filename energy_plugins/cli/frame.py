"""The GPUs at one moment, as a table, a line or JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from energy_plugins.measure.aligned import aligned
from energy_plugins.measure.quantity import duration, percent, quantity

_HEADING = ("gpu", "name", "power", "limit", "SM clock", "temp", "busy", "energy")
_SIDES = "><>>>>>>"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One GPU as it is now; None where nothing is known."""

    index: int
    uuid: str
    name: str
    power_w: float | None = None
    limit_w: float | None = None
    sm_clock_mhz: int | None = None
    temperature_c: int | None = None
    utilisation: float | None = None
    energy_j: float | None = None
    """Since the watching began."""

    def cells(self) -> tuple[str, ...]:
        """Return it as the cells of a table."""
        return (
            str(self.index),
            self.name,
            _si(self.power_w, "W"),
            _si(self.limit_w, "W"),
            "-" if self.sm_clock_mhz is None else f"{self.sm_clock_mhz} MHz",
            "-" if self.temperature_c is None else f"{self.temperature_c} C",
            "-" if self.utilisation is None else percent(self.utilisation, 0),
            _si(self.energy_j, "J"),
        )


@dataclass(frozen=True)
class Frame:
    """All GPUs at one moment."""

    time: str
    """UTC, ISO 8601."""
    elapsed_s: float
    gpus: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def json(self) -> str:
        """Return it on one line."""
        return json.dumps(asdict(self))

    def line(self) -> str:
        """Return the power and joules of each GPU on one line."""
        gpus = [f"gpu {row.index}: {_si(row.power_w, 'W')}, {_si(row.energy_j, 'J')}" for row in self.gpus]
        return "; ".join([f"{self.time}  {'  '.join(gpus)}", *self.notes])

    def table(self) -> list[str]:
        """Return it as lines."""
        rows = [_HEADING, *(row.cells() for row in self.gpus)]
        measured = [row.energy_j for row in self.gpus if row.energy_j is not None]
        total = quantity(math.fsum(measured), "J") if measured else "-"
        return [f"{self.time}  {total} in {duration(self.elapsed_s)}", *aligned(rows, _SIDES), *self.notes]


def _si(value: float | None, unit: str) -> str:
    return "-" if value is None else quantity(value, unit)
