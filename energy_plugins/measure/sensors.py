"""Which sensors each GPU has, and which of them are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from energy_plugins import _native
from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.response import Response

DRAIN_PERIOD_NS = 1_200_000_000
"""Between drains of the sample buffer, which holds 2.36 s on an H200; each costs about 0.5 ms of CPU however much it
brings."""
COUNTER_PERIOD_NS = 15_000_000_000
"""Between readings of the energy counter, each 3-17 ms of CPU on an H200."""
HOPPER = Response(dead_time_s=0.005, lag_s=0.012)
"""Of the sample buffer's values, fitted on an H200 (benchmarks/results, docs/measuring.md)."""

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
    sensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By UUID: what the joules come from."""
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By UUID: sensor -> why it is not used."""
    response: Response = HOPPER
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
    def simulated(self) -> bool:
        """Whether the GPUs are simulated ones."""
        return self.nvml is not None and self.nvml.simulated


def plan_sensors(library: str, gpus: Sequence[Gpu]) -> SensorPlan:
    """Probe each GPU once and choose its sensors.

    Those are the power-sample buffer for the shape and the energy counter for the sum.

    A library that does not open leaves the plan that measures nothing, with the reason.

    Raises:
        DeviceError: the driver does not know one of the GPUs.
    """
    try:
        nvml = _native.Nvml(library)
    except (_native.NvmlError, OSError) as error:
        return SensorPlan.nothing(str(error))
    sensors: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, Mapping[str, str]] = {}
    for gpu in gpus:
        try:
            found = nvml.probe(gpu.uuid)
        except _native.NvmlError as error:
            if error.code == _NOT_FOUND:
                message = f"GPU {gpu.uuid} is not there: {error}"
                raise DeviceError(message) from error
            sensors[gpu.uuid], reasons[gpu.uuid] = (), {"all": str(error)}  # lost just now, and may come back
            continue
        there = {"power samples": found.power_samples, "energy counter": found.energy_counter}
        sensors[gpu.uuid] = tuple(name for name, usable in there.items() if usable)
        reasons[gpu.uuid] = dict(found.reasons)
    whole, slices = ([gpu for gpu in gpus if (gpu.mig is None) == own] for own in (True, False))
    return SensorPlan(nvml, tuple(whole), tuple(slices), sensors, reasons)
