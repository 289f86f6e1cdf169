"""What is asked of a run, and what the driver answers: which GPUs, and which sensors of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu, find, visible_gpus
from energy_plugins.measure.drivers import Drivers, current_drivers
from energy_plugins.measure.patience import Aside
from energy_plugins.measure.rank_part import Rank
from energy_plugins.measure.sensors import SensorPlan, plan_sensors

if TYPE_CHECKING:
    from energy_plugins.measure.cpu_estimate import CpuEstimate
    from energy_plugins.measure.json_section import JSON


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked of a meter; see `EnergyMeter`."""

    name: str = "run"
    devices: Sequence[int | str | Gpu] | None = None
    folder: Path | None = None
    config: Mapping[str, JSON] = field(default_factory=dict)
    power_sensor: str | None = None
    cpu_estimate: CpuEstimate | None = None
    activity: bool = False
    keep_power: bool = True
    rank: Rank | None = None
    ledger: bool | None = None
    project: str | None = None

    def ask(self) -> Aside[SensorPlan]:
        """Begin to ask the driver which of these GPUs there are, and what sensors they have.

        Raises later, when the answer is awaited:
            DeviceError: the driver lacks a GPU that is named, or a GPU the sensor that is named.
        """
        drivers = current_drivers()
        return Aside(lambda: _plan(drivers, self))


def _plan(drivers: Drivers, options: Options) -> SensorPlan:
    devices = options.devices
    try:
        gpus = _chosen(devices)
    except DeviceError as error:
        if devices:
            raise
        return SensorPlan.nothing(str(error))
    if gpus:
        return plan_sensors(drivers.nvml, gpus, options.power_sensor)
    if devices is not None:
        return SensorPlan.nothing("the list of devices to measure is empty")
    return SensorPlan.nothing("no GPU is visible to this process (CUDA_VISIBLE_DEVICES hides them all)")


def _chosen(devices: Sequence[int | str | Gpu] | None) -> tuple[Gpu, ...]:
    if devices is None:
        return visible_gpus()
    visible = () if all(isinstance(one, Gpu) for one in devices) else visible_gpus()
    return tuple(dict.fromkeys(one if isinstance(one, Gpu) else find(one, visible, {}, "devices") for one in devices))
