"""What the NVIDIA driver says of itself and of its GPUs. Run in the child of a `Probe`."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from pathlib import Path

import pynvml

from energy_plugins.cli.check import ASK_NVIDIA_SMI, DRIVER, VISIBLE, Check, Status
from energy_plugins.cli.gpu_checks import gpu_checks
from energy_plugins.cli.probe import Say
from energy_plugins.cli.remedies import remedy_for
from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu, installed_gpus, open_nvml, visible_gpus
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.sensors import plan_sensors

_MODULE = Path("/proc/driver/nvidia/version")
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
        yield from gpu_checks(gpu, say)
    if plan_sensors(current_drivers().nvml, ()).simulated:
        why = "ENERGY_NVML_LIBRARY names a simulator"
        yield Check("SIMULATED", Status.WARNING, "these GPUs exist in memory only", why)


def _listing_remedy(error: DeviceError) -> str:
    if isinstance(error.__cause__, pynvml.NVMLError):
        return remedy_for(error.__cause__)
    return "correct CUDA_VISIBLE_DEVICES; nvidia-smi -L lists what there is"


def _start_failure(error: pynvml.NVMLError) -> tuple[str, str]:
    why = str(error)
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH and _MODULE.exists():
        why += f"; kernel module: {_MODULE.read_text().splitlines()[0]}"
    return why, _START_REMEDIES.get(error.value, ASK_NVIDIA_SMI)


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
            remedy_for(pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)),
        )
    found = f"{len(gpus)} of {installed}"
    if gpus:
        yield Check(VISIBLE, Status.OK, found)
    else:
        why = "CUDA_VISIBLE_DEVICES hides them all" if installed else "the driver knows no GPU"
        remedy = "unset CUDA_VISIBLE_DEVICES, or name GPUs in it" if installed else ASK_NVIDIA_SMI
        yield Check(VISIBLE, Status.MISSING, found, why, remedy)
