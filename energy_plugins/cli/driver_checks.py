"""What the NVIDIA driver says: itself, its GPUs, and the sensors of each. Run in the child of a `Probe`."""

from __future__ import annotations

import ctypes
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml

from energy_plugins.cli.check import DRIVER, JOULES, VISIBLE, Check, Status
from energy_plugins.cli.machine_checks import has_capability, in_pid_namespace
from energy_plugins.cli.probe import Say
from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu, installed_gpus, open_nvml, visible_gpus
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.sensors import plan_sensors

Handle = Any
"""nvidia-ml-py's handle of a GPU; it has no type."""

_MODULE = Path("/proc/driver/nvidia/version")
_CAP_SYS_ADMIN = 21
"""What the kernel module asks for before a limit is set (NV_IS_SUSER in its sources; capability.h)."""
_CLOCKS_APART_S = 5.0

_START_REMEDIES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "install the NVIDIA driver; in a container, start it with its GPUs (docker run --gpus all); a library in an "
        "unusual place is named by ENERGY_NVML_LIBRARY"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the library is there but the kernel module is not: load it (modprobe nvidia), or start the container with its "
        "GPUs"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the driver was updated while its kernel module kept running: reboot, or stop all that uses the GPUs and load "
        "the module again (rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; modprobe nvidia)"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: "make /dev/nvidia* readable and writable for this user",
}
_SENSOR_REMEDIES = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: "nothing: this GPU has no such sensor",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "update the driver: this one does not know the call",
    pynvml.NVML_ERROR_NO_PERMISSION: "run as root, or ask the administrator to allow it",
    pynvml.NVML_ERROR_GPU_IS_LOST: "reset the GPU (nvidia-smi -r) or reboot; dmesg | grep Xid says what happened",
}
_ASK_NVIDIA_SMI = "see whether nvidia-smi works; dmesg may say more"


def driver_checks(say: Say) -> Iterator[Check]:
    """Yield what there is to know of the driver and its GPUs."""
    say("loading the CUDA library")
    yield _cuda()
    say("opening the driver (nvmlInit)")
    try:
        open_nvml()
    except pynvml.NVMLError as error:
        yield Check(DRIVER, Status.MISSING, "it does not start", *_start_failure(error))
        return
    except OSError as error:
        remedy = _START_REMEDIES[pynvml.NVML_ERROR_LIBRARY_NOT_FOUND]
        yield Check(DRIVER, Status.MISSING, "no driver library", str(error), remedy)
        return
    versions = (pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetNVMLVersion())
    yield Check(DRIVER, Status.OK, "{}, NVML {}".format(*versions))
    say("listing the GPUs")
    gpus: tuple[Gpu, ...] = ()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            gpus = visible_gpus()
        except DeviceError as error:
            yield Check(VISIBLE, Status.MISSING, "unknown", str(error), _listing_remedy(error))
            return
    yield from (
        Check("numbering", Status.WARNING, "unsure", str(one.message).removeprefix("energy: ")) for one in heard
    )
    yield from _visible(gpus)
    for gpu in gpus:
        yield from _gpu(gpu, say)
    if gpus:
        say("choosing the sensors of each GPU")
        yield from _joules(gpus)


def _listing_remedy(error: DeviceError) -> str:
    if isinstance(error.__cause__, pynvml.NVMLError):
        return _remedy(error.__cause__)
    return "correct CUDA_VISIBLE_DEVICES; nvidia-smi -L lists what there is"


def _start_failure(error: pynvml.NVMLError) -> tuple[str, str]:
    why = str(error)
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH and _MODULE.exists():
        why += f"; kernel module: {_MODULE.read_text().splitlines()[0]}"
    return why, _START_REMEDIES.get(error.value, _ASK_NVIDIA_SMI)


def _cuda() -> Check:
    path, version = current_drivers().cuda, ctypes.c_int()
    try:
        failed = ctypes.CDLL(path).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError) as error:
        why = f"{error}: steps are timed by the host's clock instead of the GPU's"
        return Check(
            "CUDA", Status.WARNING, "no CUDA library", why, _START_REMEDIES[pynvml.NVML_ERROR_LIBRARY_NOT_FOUND]
        )
    found = f"{version.value // 1000}.{version.value % 1000 // 10}" if not failed else f"{path} is there"
    return Check("CUDA", Status.OK, found)


def _visible(gpus: tuple[Gpu, ...]) -> Iterator[Check]:
    installed, answering = pynvml.nvmlDeviceGetCount(), len(installed_gpus())
    if answering < installed:
        yield Check(
            "installed GPUs",
            Status.WARNING,
            f"{answering} of {installed} answer",
            "the rest is lost or still starting",
            _SENSOR_REMEDIES[pynvml.NVML_ERROR_GPU_IS_LOST],
        )
    found = f"{len(gpus)} of {installed}"
    if gpus:
        yield Check(VISIBLE, Status.OK, found)
    else:
        why = "CUDA_VISIBLE_DEVICES hides them all" if installed else "the driver knows no GPU"
        remedy = "unset CUDA_VISIBLE_DEVICES, or name GPUs in it" if installed else _ASK_NVIDIA_SMI
        yield Check(VISIBLE, Status.MISSING, found, why, remedy)


def _gpu(gpu: Gpu, say: Say) -> Iterator[Check]:
    say(f"looking for GPU {gpu.index}")
    name = f"GPU {gpu.index}"
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    except pynvml.NVMLError as error:
        yield Check(name, Status.MISSING, gpu.name, str(error), _remedy(error), _id(gpu))
        return
    yield Check(name, Status.OK, gpu.name, gpu=_id(gpu))
    for sensor, read in _SENSORS.items():
        say(f"reading {sensor} of GPU {gpu.index}")
        try:
            yield Check(sensor, Status.OK, read(handle), gpu=_id(gpu))
        except pynvml.NVMLError as error:
            yield Check(sensor, Status.MISSING, "no", str(error), _remedy(error), _id(gpu))
    for what, look in (("its clock", _clock), ("its limits", _limits), ("its processes", _processes)):
        say(f"reading {what} of GPU {gpu.index}")
        try:
            yield look(gpu, handle)
        except pynvml.NVMLError as error:
            yield Check(what.removeprefix("its "), Status.WARNING, "unknown", str(error), _remedy(error), _id(gpu))


def _id(gpu: Gpu) -> str:
    return gpu.mig or gpu.uuid


def _remedy(error: pynvml.NVMLError) -> str:
    return _SENSOR_REMEDIES.get(error.value, _ASK_NVIDIA_SMI)


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
        return Check("clock", Status.WARNING, "unknown", "there are no power samples to compare with", gpu=_id(gpu))
    behind_s = time.time() - samples[-1].timeStamp * 1e-6
    if abs(behind_s) < _CLOCKS_APART_S:
        return Check("clock", Status.OK, f"newest sample {behind_s:.2f} s old", gpu=_id(gpu))
    why = "the driver's stamps and this machine's wall clock disagree: samples are placed in the wrong time"
    remedy = "try again in a minute; if it stays, set the wall clock (timedatectl) and reload the driver"
    return Check("clock", Status.WARNING, f"newest sample {behind_s:.1f} s old", why, remedy, _id(gpu))


def _limits(gpu: Gpu, handle: Handle) -> Check:
    """Say what limit holds and who may change it; it is never tried."""
    lowest_w, highest_w = (mw * 1e-3 for mw in pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
    now_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3
    found = f"{now_w:.0f} W in force, may be {lowest_w:.0f}-{highest_w:.0f} W"
    if has_capability(_CAP_SYS_ADMIN):
        return Check("limits", Status.OK, f"{found}; this process may set it", gpu=_id(gpu))
    why = "setting limits needs CAP_SYS_ADMIN, which this process lacks"
    remedy = "nothing, to measure; to change limits, run as root"
    return Check("limits", Status.WARNING, found, why, remedy, _id(gpu))


def _processes(gpu: Gpu, handle: Handle) -> Check:
    count = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    if count:
        plural = "process computes" if count == 1 else "processes compute"
        why = "what they draw is in the joules of every run on this GPU"
        return Check("others", Status.WARNING, f"{count} {plural} here", why, "measure when they have ended", _id(gpu))
    if in_pid_namespace():
        why = "in this container the driver may hide processes from outside it"
        remedy = "share the host's processes (docker run --pid=host) to know"
        return Check("others", Status.WARNING, "unknown", why, remedy, _id(gpu))
    return Check("others", Status.OK, "no process computes here", gpu=_id(gpu))


def _joules(gpus: tuple[Gpu, ...]) -> Iterator[Check]:
    plan = plan_sensors(current_drivers().nvml, gpus)
    for gpu in gpus:
        sensors = plan.sensors.get(gpu.uuid, ())
        if not sensors:
            reasons = "; ".join(plan.reasons.get(gpu.uuid, {}).values())
            why = plan.nothing_because or reasons or "no sensor answers"
            yield Check(JOULES, Status.MISSING, "not measured", why, "see this GPU's sensors above", _id(gpu))
        elif gpu.mig is not None:
            why = "a MIG slice has no sensor of its own; the whole card is measured and reported as shared"
            remedy = "switch MIG off (nvidia-smi -mig 0) for joules of one job alone"
            yield Check(JOULES, Status.WARNING, f"the card's, from {', '.join(sensors)}", why, remedy, _id(gpu))
        else:
            yield Check(JOULES, Status.OK, f"from {', '.join(sensors)}", gpu=_id(gpu))
    if plan.nvml is not None and plan.nvml.simulated:
        yield Check(
            "SIMULATED", Status.WARNING, "these GPUs exist in memory only", "ENERGY_NVML_LIBRARY names a simulator"
        )
