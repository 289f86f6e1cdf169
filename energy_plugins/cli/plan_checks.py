"""What a GPU will be measured with, and what is remembered of it. Run in the child of a `Probe`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import takewhile

import pynvml

from energy_plugins.cli.check import ASK_NVIDIA_SMI, MEASURED_BY, Check, Status
from energy_plugins.cli.remedies import has_remedy, remedy_for
from energy_plugins.errors import DeviceError
from energy_plugins.measure.baseline_store import recall
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.power_sensors import COUNTER, ranking, sum_sensor
from energy_plugins.measure.quantity import age_at
from energy_plugins.measure.sensors import SensorPlan, plan_sensors

Failures = Mapping[str, pynvml.NVMLError]
"""Sensor -> why it could not be read."""

_MEASURE_IDLE = (
    'while nothing runs on it: python -c "import energy_plugins; energy_plugins.EnergyMeter.baseline()" (10 s)'
)


def measured_by(gpu: Gpu, failures: Failures) -> Check:
    """Say what a meter will take this GPU's joules from, and why not from more."""
    try:
        plan = plan_sensors(current_drivers().nvml, [gpu])
    except DeviceError as error:
        return Check(MEASURED_BY, Status.MISSING, "nothing", str(error), ASK_NVIDIA_SMI, gpu.visible_uuid)
    used, lacking = plan.sensors.get(gpu.uuid, ()), _lacking(gpu, plan)
    why = "; ".join(f"no {name} ({reason})" for name, reason in lacking.items())
    if not used:
        why = plan.nothing_because or plan.reasons[gpu.uuid].get("all") or why
        remedy = _remedy(failures.values()) or "nothing: measure on another GPU"
        return Check(MEASURED_BY, Status.MISSING, "nothing", why, remedy, gpu.visible_uuid)
    remedy = _remedy(failures[name] for name in lacking if name in failures)
    found = ", ".join(map(_spoken, used)) + (" alone" if len(used) == 1 else "")
    if gpu.mig is not None:
        shared = "a MIG slice has no sensor of its own; the whole card is measured and reported as shared"
        apart = "switch MIG off (nvidia-smi -mig 0) for joules of one job alone"
        why, remedy = "; ".join(filter(None, [shared, why])), "; ".join(filter(None, [apart, remedy]))
        found = f"the card's {found}"
    return Check(MEASURED_BY, Status.WARNING if remedy else Status.OK, found, why, remedy, gpu.visible_uuid)


def _remedy(failures: Iterable[pynvml.NVMLError]) -> str:
    """Return what the user can do about them, nothing where a GPU is as it is."""
    return "; ".join(dict.fromkeys(remedy_for(error) for error in failures if has_remedy(error)))


def _spoken(sensor: str) -> str:
    """Return the name of a sensor as it stands in a list: ``power usage (averaged)``."""
    reading, _, kind = sensor.partition(", ")
    return f"{reading} ({kind})" if kind else reading


def _lacking(gpu: Gpu, plan: SensorPlan) -> dict[str, str]:
    """Return the sensors that would tell more of shape or sum than those in use, and why they are not used."""
    used, reasons = plan.sensors.get(gpu.uuid, ()), plan.reasons.get(gpu.uuid, {})
    ranked = ranking(gpu.compute_capability)
    wanted = list(takewhile(lambda sensor: sensor.name not in used, ranked))
    if used and COUNTER.name not in used:
        without = [sensor for sensor in ranked if sensor is not COUNTER]
        mean = sum_sensor([plan.power[gpu.uuid], *without], gpu.compute_capability)
        wanted += [COUNTER] if mean is None or plan.mean[gpu.uuid] is not None else [COUNTER, mean]
    # A reason is that of a reading, power usage, whatever it would have meant on this GPU.
    names = (sensor.name.partition(",")[0] for sensor in wanted)
    return {name: reasons[name] for name in names if name in reasons}


def idle_baseline(gpu: Gpu) -> Check:
    """Say what this GPU is remembered to draw when idle."""
    remembered = recall([gpu.uuid])
    idle = remembered.idle.get(gpu.uuid)
    if idle is None:
        why = remembered.trouble or "reports then do not say how much of their joules is above idle"
        return Check("idle baseline", Status.WARNING, "none", why, _MEASURE_IDLE, gpu.visible_uuid)
    now = datetime.now(UTC).isoformat()
    found = f"{idle.power_w:.1f} W, measured {age_at(idle.measured, now)} ago"
    if doubts := idle.doubts(now, gpu.driver):
        return Check("idle baseline", Status.WARNING, found, "; ".join(doubts), _MEASURE_IDLE, gpu.visible_uuid)
    return Check("idle baseline", Status.OK, found, gpu=gpu.visible_uuid)
