"""The ways of knowing a GPU's power, best first, and how far each can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from energy_plugins import _native
from energy_plugins.measure.error_model import ErrorModel
from energy_plugins.measure.response import Response

Source = _native.PowerSource


@dataclass(frozen=True)
class PowerSensor:
    """Where a GPU's power samples come from, and what they mean."""

    name: str
    source: _native.PowerSource
    response: Response
    gap_s: float
    """Samples further apart than this leave unmeasured time between them."""
    settle_s: float
    """How far samples must reach past the end of a block before it is settled."""
    extend_s: float
    """How far the last sample may stand in for what came after it: the longest delivery delay and some."""
    counter_period_s: float = 12.0
    """Between readings of the energy counter, at least; more where reads are slow (`csrc/device.cpp`), since each burns
    3-17 ms of CPU on an H200. Read faster than once a second it is falsified on consumer cards (HotCarbon'26)."""
    model: ErrorModel = field(default_factory=ErrorModel)

    @property
    def gap_ns(self) -> int:
        """``gap_s`` in nanoseconds."""
        return round(self.gap_s * 1e9)

    @property
    def around_ns(self) -> int:
        """How far outside of a block samples may still say something about it (ns)."""
        return max(self.gap_ns, self.extend_ns)

    @property
    def settle_ns(self) -> int:
        """``settle_s`` in nanoseconds."""
        return round(self.settle_s * 1e9)

    @property
    def extend_ns(self) -> int:
        """``extend_s`` in nanoseconds."""
        return round(self.extend_s * 1e9)


SAMPLE_BUFFER = PowerSensor(
    name="power samples",
    source=Source.SAMPLE_BUFFER,
    response=Response(dead_time_s=0.005, lag_s=0.012),
    gap_s=0.12,
    settle_s=0.06,
    extend_s=0.25,
)
"""The driver's buffer, every 20 ms. The response is fitted on an H200 (benchmarks/results, docs/measuring.md)."""

INSTANT = PowerSensor(
    name="instant power",
    source=Source.INSTANT,
    response=Response(dead_time_s=0.02, window_s=0.025),
    gap_s=0.35,
    settle_s=0.25,
    extend_s=0.35,
    model=ErrorModel(spread=4.0, timing_s=0.001, unwatched=0.75, doubt=2e-4, unseen=0.03, coherent_s=0.1),
)
"""Field 186 of the driver: a window of 25 ms, once in 100 ms (arXiv:2312.02741), 20 ms old when it appears (H200,
benchmarks/results/h200_sensors.json: its middle is 30 ms old). What happens in the other 75 ms is not
seen."""

SNAPSHOT = replace(INSTANT, name="power usage, instantaneous", source=Source.USAGE)
"""PowerUsage of GA100: like the instant power of later GPUs (arXiv:2312.02741)."""

QUICK = PowerSensor(
    name="power usage, every 20 ms",
    source=Source.USAGE,
    response=Response(window_s=0.02),
    gap_s=0.12,
    settle_s=0.06,
    extend_s=0.25,
    model=ErrorModel(spread=0.2, cut=0.06, timing_s=0.0005, unanchored=0.02, doubt=2e-4),
)
"""PowerUsage of Volta and older: every 10 to 20 ms, over all of them (arXiv:2312.02741)."""

AVERAGE = PowerSensor(
    name="average power",
    source=Source.AVERAGE,
    response=Response(dead_time_s=0.02, window_s=1.0),
    gap_s=0.35,
    settle_s=0.6,
    extend_s=1.0,
    model=ErrorModel(
        cut=10.0, timing_s=0.0005, unanchored=0.01, doubt=1e-4, blurred_s=0.055, hidden_s=0.15, coherent_s=0.25
    ),
)
"""Field 185: the mean over a second, ten times a second, 20 ms old when it appears (H200,
benchmarks/results/h200_sensors.json). It shows half a second ago, which is taken out."""

AVERAGE_USAGE = replace(AVERAGE, name="power usage, averaged", source=Source.USAGE)
"""PowerUsage of GA10x and later: the same mean over a second (arXiv:2312.02741)."""

COUNTER = PowerSensor(
    name="energy counter",
    source=Source.NONE,
    response=Response(),
    gap_s=60.0,
    settle_s=0.0,
    extend_s=0.0,
    counter_period_s=4.0,
    model=ErrorModel(unseen=0.35, coherent_s=1.0),
)
"""No power at all: the energy counter alone tells the sum between two of its readings."""

_AVERAGED_SINCE = (8, 6)
_SNAPSHOT_SINCE = (8, 0)


def usage_sensor(compute_capability: tuple[int, int] | None) -> PowerSensor:
    """Return what PowerUsage is on a GPU; where that is unknown, the slowest it may be."""
    if compute_capability is None or compute_capability >= _AVERAGED_SINCE:
        return AVERAGE_USAGE
    return SNAPSHOT if compute_capability >= _SNAPSHOT_SINCE else QUICK


def ranking(compute_capability: tuple[int, int] | None) -> tuple[PowerSensor, ...]:
    """Return the power sensors that such a GPU may have, the best first: the one that shows the most of the shape.

    The sum comes from the counter, or without one, where the shape is a poor witness of it, from `sum_sensor`.
    """
    by_shape = (SAMPLE_BUFFER, QUICK, INSTANT, SNAPSHOT, AVERAGE, AVERAGE_USAGE, COUNTER)
    usage = usage_sensor(compute_capability)
    return tuple(sensor for sensor in by_shape if sensor.source is not Source.USAGE or sensor is usage)


def usable_sensors(found: _native.Capabilities, compute_capability: tuple[int, int] | None) -> tuple[PowerSensor, ...]:
    """Return the power sensors that a GPU has, the best first (`ranking`)."""
    there: Mapping[str, bool] = {
        SAMPLE_BUFFER.name: found.power_samples,
        INSTANT.name: found.power_instant,
        AVERAGE.name: found.power_average,
        usage_sensor(compute_capability).name: found.power_usage,
        COUNTER.name: found.energy_counter,
    }
    return tuple(sensor for sensor in ranking(compute_capability) if there[sensor.name])


def sum_sensor(usable: Sequence[PowerSensor], compute_capability: tuple[int, int] | None) -> PowerSensor | None:
    """Return the mean over a second that tells the sum where the best of ``usable`` sensors shows the shape.

    None beside a counter and beside sensors that leave nothing out; and where no reading is known to be a mean, because
    a sum must not rest on a guess.
    """
    if COUNTER in usable or not usable or usable[0] in (SAMPLE_BUFFER, QUICK):
        return None
    means = (AVERAGE,) if compute_capability is None else (AVERAGE, AVERAGE_USAGE)
    return next((sensor for sensor in means if sensor in usable), None)
