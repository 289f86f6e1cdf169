"""What one GPU says: each sensor, what is measured with them, its clock, its limits, and who else uses it.

Run in the child of a `Probe`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from energy_plugins.cli.check import Check, Status
from energy_plugins.cli.control_checks import control_checks
from energy_plugins.cli.plan_checks import idle_baseline, measured_by
from energy_plugins.cli.probe import Say
from energy_plugins.cli.remedies import remedy_for
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.neighbours import judge, look_at, sees_all_processes
from energy_plugins.measure.power_sensors import usage_sensor
from energy_plugins.measure.report_parts import Company, Others
from energy_plugins.units import mj_to_j, mw_to_w

Handle = Any
"""nvidia-ml-py's handle of a GPU; it has no type."""

_CLOCKS_APART_S = 5.0


def gpu_checks(gpu: Gpu, say: Say) -> Iterator[Check]:
    """Yield what there is to know of a GPU."""
    say(f"looking for GPU {gpu.index}")
    name = f"GPU {gpu.index}"
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    except pynvml.NVMLError as error:
        yield Check(name, Status.MISSING, gpu.name, str(error), remedy_for(error), gpu.visible_uuid)
        return
    yield Check(name, Status.OK, gpu.name, gpu=gpu.visible_uuid)
    failures: dict[str, pynvml.NVMLError] = {}
    for sensor, read in _SENSORS.items():
        say(f"reading {sensor} of GPU {gpu.index}")
        try:
            yield Check(sensor, Status.OK, read(gpu, handle), gpu=gpu.visible_uuid)
        except pynvml.NVMLError as error:
            failures[sensor] = error
            yield Check(sensor, Status.MISSING, "no", str(error), remedy_for(error), gpu.visible_uuid)
    say(f"choosing the sensors of GPU {gpu.index}")
    yield measured_by(gpu, failures)
    for what, look in _FACTS.items():
        say(f"reading {what} of GPU {gpu.index}")
        try:
            yield look(gpu, handle)
        except pynvml.NVMLError as error:
            yield Check(what, Status.WARNING, "unknown", str(error), remedy_for(error), gpu.visible_uuid)
    say(f"looking who may change GPU {gpu.index}")
    yield from control_checks(gpu)
    say(f"asking who computes on GPU {gpu.index}")
    yield others_check(gpu, judge(look_at([gpu.uuid])[gpu.uuid], computing=False, sees_all=sees_all_processes()))
    if gpu.mig is None:  # a slice has no idle power of its own
        say(f"reading the idle baseline of GPU {gpu.index}")
        yield idle_baseline(gpu)


def _samples(handle: Handle) -> list[Any]:
    try:
        _, samples = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
    except pynvml.NVMLError_NotFound:
        return []  # none yet
    return sorted(samples, key=lambda sample: int(sample.timeStamp))


def _power_samples(_: Gpu, handle: Handle) -> str:
    samples = _samples(handle)
    if len(samples) < 2:
        return "there, and empty as yet"
    span_s = (samples[-1].timeStamp - samples[0].timeStamp) * 1e-6
    return f"{len(samples)} over {span_s:.2f} s, one every {span_s / (len(samples) - 1) * 1e3:.0f} ms"


def _instant_power(_: Gpu, handle: Handle) -> str:
    return _power_field(handle, pynvml.NVML_FI_DEV_POWER_INSTANT)


def _average_power(_: Gpu, handle: Handle) -> str:
    return _power_field(handle, pynvml.NVML_FI_DEV_POWER_AVERAGE)


def _power_field(handle: Handle, number: int) -> str:
    (field,) = pynvml.nvmlDeviceGetFieldValues(handle, [number])
    if field.nvmlReturn == pynvml.NVML_ERROR_INVALID_ARGUMENT:  # as a driver says that does not know the field
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    if field.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(field.nvmlReturn)
    return f"{mw_to_w(field.value.uiVal):.1f} W"


def _power_usage(gpu: Gpu, handle: Handle) -> str:
    kind = usage_sensor(gpu.compute_capability).name.partition(", ")[2]
    if gpu.compute_capability is None:
        kind += " for all that is known: the driver does not tell the compute capability"
    return f"{mw_to_w(pynvml.nvmlDeviceGetPowerUsage(handle)):.1f} W, {kind}"


def _energy_counter(_: Gpu, handle: Handle) -> str:
    return f"{mj_to_j(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)):,.0f} J since the driver was loaded"


def _activity(_: Gpu, handle: Handle) -> str:
    if not pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    sample = pynvml.nvmlGpmSampleAlloc()
    try:
        pynvml.nvmlGpmSampleGet(handle, sample)
    finally:
        pynvml.nvmlGpmSampleFree(sample)
    return "GPM: SM, tensor, memory and NVLink activity"


def _state(_: Gpu, handle: Handle) -> str:
    clock_mhz = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    temperature_c = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    return f"SM {clock_mhz} MHz, {temperature_c} C, {pynvml.nvmlDeviceGetUtilizationRates(handle).gpu} % busy"


_SENSORS: dict[str, Callable[[Gpu, Handle], str]] = {
    "power samples": _power_samples,
    "instant power": _instant_power,
    "average power": _average_power,
    "power usage": _power_usage,
    "energy counter": _energy_counter,
    "activity": _activity,
    "state": _state,
}


def _clock(gpu: Gpu, handle: Handle) -> Check:
    """Compare the stamps of the samples, which are of the driver's wall clock, with this process's wall clock."""
    try:
        samples = _samples(handle)
    except pynvml.NVMLError:
        samples = []
    if not samples:
        why = "there are no power samples to compare with"
        return Check("clock", Status.WARNING, "unknown", why, gpu=gpu.visible_uuid)
    behind_s = time.time() - samples[-1].timeStamp * 1e-6
    if abs(behind_s) < _CLOCKS_APART_S:
        return Check("clock", Status.OK, f"newest sample {behind_s:.2f} s old", gpu=gpu.visible_uuid)
    why = "the driver's stamps and this machine's wall clock disagree: samples are placed in the wrong time"
    remedy = "try again in a minute; if it stays, set the wall clock (timedatectl) and reload the driver"
    return Check("clock", Status.WARNING, f"newest sample {behind_s:.1f} s old", why, remedy, gpu.visible_uuid)


def _limits(gpu: Gpu, handle: Handle) -> Check:
    """Say what limit holds; `control_checks` tell who may change it."""
    lowest_w, highest_w = map(mw_to_w, pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
    now_w = mw_to_w(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    found = f"{now_w:.0f} W in force, may be {lowest_w:.0f}-{highest_w:.0f} W"
    return Check("limits", Status.OK, found, gpu=gpu.visible_uuid)


def others_check(gpu: Gpu, others: Others) -> Check:
    """Say who else computes on a GPU, as a report would."""
    match others.company:
        case Company.NONE:
            return Check("others", Status.OK, "no process computes here", gpu=gpu.visible_uuid)
        case Company.SOME:
            found = ", ".join(f"process {one.pid} ({one.name})" for one in others.processes)
            why = "what they draw is in the joules of every run on this GPU"
            return Check("others", Status.WARNING, found, why, "measure when they have ended", gpu.visible_uuid)
        case Company.UNKNOWN:
            remedy = "in a container, share the host's processes (docker run --pid=host) to know"
            return Check("others", Status.WARNING, "unknown", others.reason, remedy, gpu.visible_uuid)


_FACTS: dict[str, Callable[[Gpu, Handle], Check]] = {"clock": _clock, "limits": _limits}
