"""What the helper asks of NVML, by ctypes: limits, who computes on a GPU, and how it is divided. In milliwatts."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p, create_string_buffer
from pathlib import Path

from energy_plugins.powerd.peers import process_of
from energy_plugins.powerd.policy import Bounds, Use

_NOT_SUPPORTED = 3
_NOT_FOUND = 6
_INSUFFICIENT_SIZE = 7
_FUNCTION_NOT_FOUND = 13
_MOST_PROCESSES = 4096


class DriverError(Exception):
    """A call of NVML failed: ``nvmlDeviceGetPowerManagementLimit: GPU is lost (15)``."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t of the _v2 and _v3 calls."""

    _fields_ = (
        ("pid", c_uint),
        ("used_bytes", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    )


class Nvml:
    """An initialised NVML. Every method asks the driver and raises DriverError."""

    def __init__(self, library: Path) -> None:
        """Load and initialise the library. Raises OSError too, if it cannot be loaded."""
        self._library = ctypes.CDLL(str(library))
        self._library.nvmlErrorString.restype = c_char_p
        self._call("nvmlInit_v2")

    def uuids(self) -> list[str]:
        """Return the GPUs of this machine."""
        count = c_uint()
        self._call("nvmlDeviceGetCount_v2", byref(count))
        found = []
        for index in range(count.value):
            handle, text = c_void_p(), create_string_buffer(96)
            self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
            self._call("nvmlDeviceGetUUID", handle, text, c_uint(len(text)))
            found.append(text.value.decode("ascii"))
        return found

    def limit_mw(self, uuid: str) -> int:
        """Return the power limit that was asked for last, by whomever."""
        limit = c_uint()
        self._call("nvmlDeviceGetPowerManagementLimit", self._card(uuid), byref(limit))
        return limit.value

    def set_limit_mw(self, uuid: str, limit_mw: int) -> None:
        """Ask for a power limit."""
        self._call("nvmlDeviceSetPowerManagementLimit", self._card(uuid), c_uint(limit_mw))

    def bounds(self, uuid: str) -> Bounds:
        """Return the limits that the GPU takes."""
        lowest, highest = c_uint(), c_uint()
        self._call("nvmlDeviceGetPowerManagementLimitConstraints", self._card(uuid), byref(lowest), byref(highest))
        return Bounds(lowest.value, highest.value)

    def use(self, uuid: str) -> Use:
        """Return who computes or draws on a GPU, and how it is divided.

        The driver is asked twice: a process that ended between being listed and being looked at is nobody's.
        """
        card = self._card(uuid)
        listed = self._listed(card)
        processes = tuple(map(process_of, sorted(listed)))
        again = self._listed(card)
        if again != listed:
            processes = tuple(map(process_of, sorted(again)))
        return Use(
            processes, mig=self._is_mig(card), mps=bool(self._pids("nvmlDeviceGetMPSComputeRunningProcesses", card))
        )

    def _listed(self, card: c_void_p) -> frozenset[int]:
        computing = self._pids("nvmlDeviceGetComputeRunningProcesses", card)
        return computing | self._pids("nvmlDeviceGetGraphicsRunningProcesses", card)

    def _is_mig(self, card: c_void_p) -> bool:
        now, pending = c_uint(), c_uint()
        try:
            self._call("nvmlDeviceGetMigMode", card, byref(now), byref(pending))
        except DriverError as fault:
            if fault.code in {_NOT_SUPPORTED, _FUNCTION_NOT_FOUND}:
                return False
            raise
        return bool(now.value or pending.value)

    def _pids(self, name: str, card: c_void_p) -> frozenset[int]:
        for version in ("_v3", "_v2"):  # drivers before 510 have the older one, of the same layout
            try:
                return self._pids_of(name + version, card)
            except DriverError as fault:
                if fault.code != _FUNCTION_NOT_FOUND:
                    raise
        if "MPS" in name:
            return frozenset()  # before 450 there is no such call; the server itself is listed as computing
        raise DriverError(f"{name}: this driver does not have it", _FUNCTION_NOT_FOUND)

    def _pids_of(self, name: str, card: c_void_p) -> frozenset[int]:
        rows = (_ProcessInfo * _MOST_PROCESSES)()
        count = c_uint(_MOST_PROCESSES)
        self._call(name, card, byref(count), rows)
        return frozenset(row.pid for row in rows[: count.value])

    def _card(self, uuid: str) -> c_void_p:
        handle = c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", uuid.encode("ascii"), byref(handle))
        return handle

    def _call(self, name: str, *arguments: object) -> None:
        try:
            code = int(self._library[name](*arguments))
        except AttributeError:
            raise DriverError(f"{name}: this driver does not have it", _FUNCTION_NOT_FOUND) from None
        if code != 0:
            text = self._library.nvmlErrorString(c_int(code)).decode("ascii", "replace")
            raise DriverError(f"{name}: {text} ({code})", code)
