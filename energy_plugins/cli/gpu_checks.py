"""What one GPU says: each sensor, its clock, its limits, and who else uses it. Run in the child of a `Probe`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from energy_plugins.cli.check import Check, Status
from energy_plugins.cli.machine_checks import has_capability, in_pid_namespace
from energy_plugins.cli.probe import Say
from energy_plugins.measure.devices import Gpu

Handle = Any
"""nvidia-ml-py's handle of a GPU; it has no type."""

ASK_NVIDIA_SMI = "see whether nvidia-smi works; dmesg may say more"
_CAP_SYS_ADMIN = 21
"""What the kernel module asks for before a limit is set (NV_IS_SUSER in its sources; capability.h)."""
_CLOCKS_APART_S = 5.0
_REMEDIES = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: "nothing: this GPU has no such sensor",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "update the driver: this one does not know the call",
    pynvml.NVML_ERROR_NO_PERMISSION: "run as root, or ask the administrator to allow it",
    pynvml.NVML_ERROR_GPU_IS_LOST: "reset the GPU (nvidia-smi -r) or reboot; dmesg | grep Xid says what happened",
}


def gpu_checks(gpu: Gpu, say: Say) -> Iterator[Check]:
    """Yield what there is to know of a GPU."""
    say(f"looking for GPU {gpu.index}")
    name = f"GPU {gpu.index}"
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    except pynvml.NVMLError as error:
        yield Check(name, Status.MISSING, gpu.name, str(error), remedy_for(error), name_of(gpu))
        return
    yield Check(name, Status.OK, gpu.name, gpu=name_of(gpu))
    for sensor, read in _SENSORS.items():
        say(f"reading {sensor} of GPU {gpu.index}")
        try:
            yield Check(sensor, Status.OK, read(handle), gpu=name_of(gpu))
        except pynvml.NVMLError as error:
            yield Check(sensor, Status.MISSING, "no", str(error), remedy_for(error), name_of(gpu))
    for what, look in _FACTS.items():
        say(f"reading {what} of GPU {gpu.index}")
        try:
            yield look(gpu, handle)
        except pynvml.NVMLError as error:
            yield Check(what, Status.WARNING, "unknown", str(error), remedy_for(error), name_of(gpu))


def name_of(gpu: Gpu) -> str:
    """Return the UUID that a check of it carries: the slice's, where it is a MIG slice."""
    return gpu.mig or gpu.uuid


def remedy_for(error: pynvml.NVMLError) -> str:
    """Return what to do about a call that failed."""
    return _REMEDIES.get(error.value, ASK_NVIDIA_SMI)


def _samples(handle: Handle) -> list[Any]:
    try:
        _, samples = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
    except pynvml.NVMLError_NotFound:
        return []  # none yet
    return sorted(samples, key=lambda sample: int(sample.timeStamp))


def _power_samples(handle: Handle) -> str:
    samples = _samples(handle)
    if len(samples) < 2:
        return "there, and empty as yet"
    span_s = (samples[-1].timeStamp - samples[0].timeStamp) * 1e-6
    return f"{len(samples)} over {span_s:.2f} s, one every {span_s / (len(samples) - 1) * 1e3:.0f} ms"


def _instant_power(handle: Handle) -> str:
    (field,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
    if field.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(field.nvmlReturn)
    return f"{field.value.uiVal * 1e-3:.1f} W"


def _average_power(handle: Handle) -> str:
    return f"{pynvml.nvmlDeviceGetPowerUsage(handle) * 1e-3:.1f} W"


def _energy_counter(handle: Handle) -> str:
    return f"{pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3:,.0f} J since the driver was loaded"


def _activity(handle: Handle) -> str:
    if not pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    sample = pynvml.nvmlGpmSampleAlloc()
    try:
        pynvml.nvmlGpmSampleGet(handle, sample)
    finally:
        pynvml.nvmlGpmSampleFree(sample)
    return "GPM: SM, tensor, memory and NVLink activity"


def _state(handle: Handle) -> str:
    clock_mhz = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    temperature_c = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    return f"SM {clock_mhz} MHz, {temperature_c} C, {pynvml.nvmlDeviceGetUtilizationRates(handle).gpu} % busy"


_SENSORS: dict[str, Callable[[Handle], str]] = {
    "power samples": _power_samples,
    "instant power": _instant_power,
    "average power": _average_power,
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
        return Check("clock", Status.WARNING, "unknown", "there are no power samples to compare with", gpu=name_of(gpu))
    behind_s = time.time() - samples[-1].timeStamp * 1e-6
    if abs(behind_s) < _CLOCKS_APART_S:
        return Check("clock", Status.OK, f"newest sample {behind_s:.2f} s old", gpu=name_of(gpu))
    why = "the driver's stamps and this machine's wall clock disagree: samples are placed in the wrong time"
    remedy = "try again in a minute; if it stays, set the wall clock (timedatectl) and reload the driver"
    return Check("clock", Status.WARNING, f"newest sample {behind_s:.1f} s old", why, remedy, name_of(gpu))


def _limits(gpu: Gpu, handle: Handle) -> Check:
    """Say what limit holds and who may change it; it is never tried."""
    lowest_w, highest_w = (mw * 1e-3 for mw in pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
    now_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3
    found = f"{now_w:.0f} W in force, may be {lowest_w:.0f}-{highest_w:.0f} W"
    if has_capability(_CAP_SYS_ADMIN):
        return Check("limits", Status.OK, f"{found}; this process may set it", gpu=name_of(gpu))
    why = "setting limits needs CAP_SYS_ADMIN, which this process lacks"
    remedy = "nothing, to measure; to change limits, run as root"
    return Check("limits", Status.WARNING, found, why, remedy, name_of(gpu))


def _others(gpu: Gpu, handle: Handle) -> Check:
    count = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    if count:
        plural = "process computes" if count == 1 else "processes compute"
        why = "what they draw is in the joules of every run on this GPU"
        return Check(
            "others", Status.WARNING, f"{count} {plural} here", why, "measure when they have ended", name_of(gpu)
        )
    if in_pid_namespace():
        why = "in this container the driver may hide processes from outside it"
        remedy = "share the host's processes (docker run --pid=host) to know"
        return Check("others", Status.WARNING, "unknown", why, remedy, name_of(gpu))
    return Check("others", Status.OK, "no process computes here", gpu=name_of(gpu))


_FACTS: dict[str, Callable[[Gpu, Handle], Check]] = {"clock": _clock, "limits": _limits, "others": _others}
