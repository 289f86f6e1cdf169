"""Which sensors each GPU has, and which of them are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from energy_plugins import _native
from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.power_sensors import COUNTER, SAMPLE_BUFFER, PowerSensor, sum_sensor, usable_sensors

DRAIN_PERIOD_NS = 2_000_000_000
"""Between drains of the sample buffer, which holds 2.36 s on an H200; each costs 0.5 to 1.5 ms of CPU however much it
brings."""
LIVE_DRAIN_PERIOD_NS = 1_300_000_000
"""The same once somebody has asked for live figures, which are to be no more than 1.5 s late."""

_NAMES = {
    "power_samples": "power samples",
    "power_instant": "instant power",
    "power_average": "average power",
    "power_usage": "power usage",
    "energy_counter": "energy counter",
}
"""What people call the fields of `_native.Capabilities`."""
_NOT_FOUND = 6
"""NVML_ERROR_NOT_FOUND (nvml.h)."""


@dataclass(frozen=True)
class SensorPlan:
    """What is measured, and why the rest is not."""

    nvml: _native.Nvml | None
    gpus: tuple[Gpu, ...]
    """Whole GPUs of this process."""
    slices: tuple[Gpu, ...] = ()
    """MIG slices of this process: their GPUs are measured, but shared with others."""
    power: Mapping[str, PowerSensor] = field(default_factory=dict)
    """By UUID: what tells the shape of the power."""
    mean: Mapping[str, PowerSensor | None] = field(default_factory=dict)
    """By UUID: the mean over a second that tells the sum in place of an energy counter; it may tell the shape, too."""
    sensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By UUID: what the joules come from."""
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By UUID: sensor -> why it is not used."""
    nothing_because: str | None = None

    @classmethod
    def nothing(cls, reason: str) -> SensorPlan:
        """Return the plan that measures no GPU."""
        return cls(None, (), nothing_because=reason)

    @property
    def sampled(self) -> tuple[str, ...]:
        """UUIDs of the GPUs to sample: the process's own, then those it has a slice of."""
        return tuple(dict.fromkeys(gpu.uuid for gpu in (*self.gpus, *self.slices)))

    @property
    def max_power_w(self) -> Mapping[str, float | None]:
        """By UUID: the highest power limit that may be set (W)."""
        return {gpu.uuid: gpu.max_power_w for gpu in (*self.gpus, *self.slices)}

    def second(self, uuid: str) -> _native.PowerSource:
        """Return what is polled beside the power of a GPU."""
        mean = self.mean.get(uuid)
        return _native.PowerSource.NONE if mean is None or mean is self.power[uuid] else mean.source

    @property
    def blind(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that tell neither power nor energy."""
        return tuple(uuid for uuid in self.sampled if not self.sensors[uuid] and "all" not in self.reasons[uuid])

    @property
    def counter_period_ns(self) -> int:
        """Time between two readings of the energy counters (ns)."""
        periods_s = [self.power[uuid].counter_period_s for uuid in self.sampled]
        return round(min(periods_s, default=SAMPLE_BUFFER.counter_period_s) * 1e9)

    @property
    def simulated(self) -> bool:
        """Whether the GPUs are simulated ones."""
        return self.nvml is not None and self.nvml.simulated


def plan_sensors(library: str, gpus: Sequence[Gpu], wanted: str | None = None) -> SensorPlan:
    """Probe each GPU once and choose its sensors: one for the shape of the power, and the energy counter for the sum.

    Without a counter the sum may come from a mean of the power. ``wanted`` names a `PowerSensor` to be used instead of
    the best one, alone but for the counter. A library that does not open leaves the plan that measures nothing, with
    the reason.

    Raises:
        DeviceError: the driver does not know one of the GPUs, or one lacks the sensor that is wanted.
    """
    try:
        nvml = _native.Nvml(library)
    except (_native.NvmlError, OSError) as error:
        return SensorPlan.nothing(str(error))
    power: dict[str, PowerSensor] = {}
    mean: dict[str, PowerSensor | None] = {}
    sensors: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, Mapping[str, str]] = {}
    for gpu in gpus:
        try:
            found = nvml.probe(gpu.uuid)
        except _native.NvmlError as error:
            if error.code == _NOT_FOUND:
                message = f"GPU {gpu.uuid} is not there: {error}"
                raise DeviceError(message) from error
            # Lost just now, and may come back: with what most GPUs have.
            power[gpu.uuid], sensors[gpu.uuid], reasons[gpu.uuid] = SAMPLE_BUFFER, (), {"all": str(error)}
            continue
        usable = usable_sensors(found, gpu.compute_capability)
        if wanted is not None:
            usable = _only(wanted, usable, gpu)
        power[gpu.uuid] = usable[0] if usable else COUNTER
        mean[gpu.uuid] = sum_sensor(usable, gpu.compute_capability) if wanted is None else None
        used = [*usable[:1], COUNTER if found.energy_counter else mean[gpu.uuid]]
        sensors[gpu.uuid] = tuple(dict.fromkeys(sensor.name for sensor in used if sensor is not None))
        reasons[gpu.uuid] = _reasons(found, usable, sensors[gpu.uuid])
    whole, slices = ([gpu for gpu in gpus if (gpu.mig is None) == own] for own in (True, False))
    return SensorPlan(nvml, tuple(whole), tuple(slices), power, mean, sensors, reasons)


def _only(wanted: str, usable: Sequence[PowerSensor], gpu: Gpu) -> tuple[PowerSensor, ...]:
    chosen = tuple(sensor for sensor in usable if sensor.name == wanted)
    if not chosen:
        there = ", ".join(f"'{sensor.name}'" for sensor in usable) or "none"
        message = f"GPU {gpu.uuid} has no power sensor '{wanted}'; it has: {there}"
        raise DeviceError(message)
    return chosen


def _reasons(found: _native.Capabilities, usable: Sequence[PowerSensor], used: Sequence[str]) -> dict[str, str]:
    """Return why sensors are not used: missing, or not needed beside the one that is."""
    reasons = {_NAMES.get(name, name): reason for name, reason in found.reasons.items()}
    for sensor in usable:
        if sensor.name not in used:
            reasons[sensor.name] = f"there, but '{usable[0].name}' tells more"
    return reasons
