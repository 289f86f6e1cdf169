"""Which GPUs this process uses, by UUID."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pynvml

from energy_plugins import _native
from energy_plugins.errors import DeviceError
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.units import mw_to_w


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG slice of one. ``index`` is the driver's (PCI order), not CUDA's."""

    uuid: str
    index: int
    name: str
    driver: str
    mig: str | None = None
    """UUID of the MIG slice, where the process sees only a slice; ``uuid`` is then the whole GPU's."""
    compute_capability: tuple[int, int] | None = None
    """CUDA's, such as (9, 0); None where the driver does not tell."""
    max_power_w: float | None = None
    """The highest power limit that may be set (W); None where the driver does not tell."""

    @property
    def visible_uuid(self) -> str:
        """UUID of what the process may use: the slice's, where that is but a slice."""
        return self.mig or self.uuid


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES lets this process use, in CUDA's order.

    Raises:
        DeviceError: there is no NVIDIA driver, or CUDA_VISIBLE_DEVICES names what is not there.
    """
    gpus = installed_gpus()
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({gpu.name for gpu in gpus}) > 1:
        return _mixed(gpus)
    return select(os.environ.get("CUDA_VISIBLE_DEVICES"), gpus, _mig_parents(gpus))


def _mixed(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return the visible ones of different GPUs, which CUDA numbers by speed and the driver by slot.

    Once CUDA is initialised it says itself which is which.
    """
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    try:
        ordered = [by_uuid[uuid] for uuid in _native.Cuda(current_drivers().cuda).device_uuids()]
    except (OSError, KeyError):
        ordered = []  # no CUDA, or slices, which have UUIDs of their own
    if ordered:
        return tuple(ordered)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or any(part.strip().isdigit() for part in visible.split(",")):
        warnings.warn(
            "energy: GPUs of different kinds are numbered by slot here, which CUDA may do otherwise; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID",
            RuntimeWarning,
            stacklevel=3,
        )
    return select(visible, gpus, _mig_parents(gpus))


def installed_gpus() -> tuple[Gpu, ...]:
    """Return every GPU the driver shows. Raises DeviceError when there is no driver."""
    try:
        open_nvml()
    except (pynvml.NVMLError, OSError) as error:
        message = f"cannot open the NVIDIA driver library {current_drivers().nvml}: {error}. {_remedy(error)}"
        raise DeviceError(message) from error
    with shut_down_after():
        try:
            driver = pynvml.nvmlSystemGetDriverVersion()
            return _describe_all(pynvml.nvmlDeviceGetCount(), driver)
        except pynvml.NVMLError as error:
            message = f"the NVIDIA driver does not list its GPUs: {error}"
            raise DeviceError(message) from error


def _remedy(error: Exception) -> str:
    if getattr(error, "value", None) == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return (
            "The library is of another version than the driver in the kernel, as after an update: "
            "reboot, or reload the driver's kernel modules"
        )
    return "Is a driver installed, and are /dev/nvidia* visible here?"


def open_nvml() -> None:
    """Load the driver library in force and initialise NVML for nvidia-ml-py; the caller shuts it down.

    Raises:
        OSError: the library is not there.
        pynvml.NVMLError: it does not start.
    """
    library = current_drivers().nvml
    if Path(library).is_absolute():
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)  # nvidia-ml-py then finds it by its SONAME
    pynvml.nvmlInit()


@contextmanager
def shut_down_after() -> Iterator[None]:
    """End the block by taking back one nvmlInit of nvidia-ml-py's, made before it."""
    try:
        yield
    finally:
        # Somebody else in this process may have done it, and a driver that cannot do it has been asked all the same.
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def select(visible: str | None, gpus: Sequence[Gpu], mig_parents: dict[str, str] | None = None) -> tuple[Gpu, ...]:
    """Return what ``visible`` (the text of CUDA_VISIBLE_DEVICES, None when unset) leaves of ``gpus``.

    Entries are indices, UUIDs or unambiguous beginnings of UUIDs, or MIG UUIDs (``mig_parents``: slice to GPU). As in
    CUDA, an entry ``-1`` hides itself and everything after it (CUDA C++ Programming Guide, "CUDA Environment
    Variables").

    Raises:
        DeviceError: an entry matches nothing, or more than one GPU.
    """
    if visible is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry in {"", "-1", "NoDevFiles"}:
            break
        gpu = find(entry, gpus, mig_parents or {}, "CUDA_VISIBLE_DEVICES")
        if gpu not in chosen:
            chosen.append(gpu)
    return tuple(chosen)


def find(entry: int | str, gpus: Sequence[Gpu], mig_parents: dict[str, str], source: str) -> Gpu:
    """Return the GPU that ``entry`` names. Raises DeviceError, naming ``source``, when it names none or several."""
    text = str(entry)
    if text.isdecimal():
        if int(text) < len(gpus):
            return gpus[int(text)]
        message = f"{source} names GPU {text}, but there are {len(gpus)} (numbered from 0)"
        raise DeviceError(message)
    if text.startswith("MIG-"):
        return _find_slice(text, gpus, mig_parents, source)
    matches = [gpu for gpu in gpus if gpu.uuid.lower().startswith(text.lower())] if text else []
    if len(matches) != 1:
        found = ", ".join(gpu.uuid for gpu in gpus) or "none"
        message = f"{source} names GPU '{text}', which matches {len(matches)} GPUs; there are: {found}"
        raise DeviceError(message)
    return matches[0]


def _find_slice(text: str, gpus: Sequence[Gpu], mig_parents: dict[str, str], source: str) -> Gpu:
    # Older drivers spell a slice MIG-GPU-<uuid>/<gpu instance>/<compute instance>.
    parent = mig_parents.get(text) or text.removeprefix("MIG-").split("/")[0]
    for gpu in gpus:
        if gpu.mig == text:
            return gpu
        if gpu.uuid == parent:
            return replace(gpu, mig=text)
    known = ", ".join(mig_parents) or "none"
    message = f"{source} names MIG slice '{text}', which is not there; slices here: {known}"
    raise DeviceError(message)


def _describe_all(count: int, driver: str) -> tuple[Gpu, ...]:
    found: list[Gpu] = []
    failure: pynvml.NVMLError | None = None
    for index in range(count):
        try:
            found.append(_describe(index, driver))
        except pynvml.NVMLError as error:
            failure = error  # a GPU that is lost must not hide the others; CUDA does not number it either
    if failure is not None and not found:
        raise failure
    return tuple(found)


def _describe(index: int, driver: str) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        pynvml.nvmlDeviceGetUUID(handle),
        index,
        pynvml.nvmlDeviceGetName(handle),
        driver,
        compute_capability=_compute_capability(handle),
        max_power_w=_max_power_w(handle),
    )


def _compute_capability(handle: object) -> tuple[int, int] | None:
    try:
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    except pynvml.NVMLError:
        return None
    return int(major), int(minor)


def _max_power_w(handle: object) -> float | None:
    try:
        return mw_to_w(pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)[1])
    except pynvml.NVMLError:
        return None


def _mig_parents(gpus: Sequence[Gpu]) -> dict[str, str]:
    """Return the UUIDs of all MIG slices and of the GPUs they are cut from."""
    parents: dict[str, str] = {}
    if "MIG-" not in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return parents
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceError(f"the NVIDIA driver does not list its MIG slices: {error}") from error
    with shut_down_after():
        for gpu in gpus:
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
                for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                    part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                    parents[pynvml.nvmlDeviceGetUUID(part)] = gpu.uuid
            except pynvml.NVMLError:
                continue  # not in MIG mode, or no further slice
    return parents
