"""What the GPUs do at this moment, read on a thread of its own: a driver that hangs must not stop who looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pynvml

from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu, open_nvml, visible_gpus
from energy_plugins.units import mw_to_w

T = TypeVar("T")


@dataclass(frozen=True)
class GpuNow:
    """Readings of one GPU; None where it gives none."""

    limit_w: float | None = None
    """The limit in force, which may be lower than the one asked for."""
    sm_clock_mhz: int | None = None
    temperature_c: int | None = None
    utilisation: float | None = None
    """Share of the last moments in which a kernel ran, 0 to 1."""

    @property
    def answers(self) -> bool:
        """Whether the GPU gave any reading."""
        return self != GpuNow()


class GpuReader:
    """Finds the visible GPUs and reads them every ``interval_s`` seconds."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._found = threading.Event()
        self._gpus: tuple[Gpu, ...] = ()
        self._error: DeviceError | None = None
        self._readings: tuple[float, Mapping[str, GpuNow]] = (time.monotonic(), {})
        threading.Thread(target=self._read_forever, name="energy-gpu-reader", daemon=True).start()

    def gpus(self, within_s: float) -> tuple[Gpu, ...]:
        """Return the visible GPUs.

        Raises:
            DeviceError: there is no driver, it does not answer in time, or CUDA_VISIBLE_DEVICES is wrong.
        """
        if not self._found.wait(within_s):
            raise DeviceError(f"the NVIDIA driver does not answer: no word from it for {within_s:g} s; see dmesg")
        if self._error is not None:
            raise self._error
        return self._gpus

    def latest(self) -> tuple[float, Mapping[str, GpuNow]]:
        """Return how old the last readings are in seconds, and the readings by UUID."""
        read_s, readings = self._readings
        return time.monotonic() - read_s, readings

    def _read_forever(self) -> None:
        try:
            self._gpus = visible_gpus()
            open_nvml()
        except DeviceError as error:
            self._error = error
        except (OSError, pynvml.NVMLError) as error:  # it was there a moment ago
            self._error = DeviceError(f"the NVIDIA driver has gone: {error}")
        while self._error is None:
            self._readings = (time.monotonic(), {gpu.uuid: _read(gpu.uuid) for gpu in self._gpus})
            self._found.set()
            time.sleep(self._interval_s)
        self._found.set()


def _read(uuid: str) -> GpuNow:
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return GpuNow()
    limit_mw = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    busy = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return GpuNow(
        limit_w=None if limit_mw is None else mw_to_w(limit_mw),
        sm_clock_mhz=_ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        utilisation=None if busy is None else busy.gpu / 100,
    )


def _ask(call: Callable[..., T], *arguments: object) -> T | None:
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None
