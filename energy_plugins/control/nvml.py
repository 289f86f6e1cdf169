"""What control asks of NVML, by ctypes: the trainer and its watchdog, a bare interpreter, run the same lines.

nvidia-ml-py is not used here because the watchdog, and later the privileged helper, may import nothing but the
standard library and files that lie beside this one.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint, c_ulonglong, c_void_p
from typing import Self

from energy_plugins.errors import LibraryError, NvmlError
from energy_plugins.units import mw_to_w, w_to_mw

NOT_SUPPORTED = 3
NO_PERMISSION = 4
FUNCTION_NOT_FOUND = 13
_CLOCK_SM = 1

POWER_CAP_REASON = 0x4
"""nvmlClocksEventReasonSwPowerCap: the clocks are lower than they could be because of the power limit."""
IDLE_REASON = 0x1
"""nvmlClocksEventReasonGpuIdle."""


class Nvml:
    """An initialised NVML; `close` takes the initialisation back."""

    def __init__(self, library: str) -> None:
        """Load and initialise the library of this name or path.

        Raises:
            LibraryError: It cannot be loaded.
            NvmlError: It does not start.
        """
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise LibraryError(f"cannot load {library}: {error}") from error
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        self.call("nvmlInit_v2")

    def close(self) -> None:
        """Shut NVML down, as often as it was initialised here: once."""
        self._library.nvmlShutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def card(self, uuid: str) -> Card:
        """Return the GPU of this UUID. Raises NvmlError."""
        handle = c_void_p()
        self.call("nvmlDeviceGetHandleByUUID", uuid.encode(), byref(handle))
        return Card(self, handle)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver. Raises NvmlError unless it succeeds."""
        try:
            code = int(self._library[name](*arguments))
        except AttributeError:
            message = f"{name}: this driver does not have it"
            raise NvmlError(message, call=name, code=FUNCTION_NOT_FOUND) from None
        if code != 0:
            text = self._library.nvmlErrorString(code).decode(errors="replace")
            raise NvmlError(f"{name}: {text} ({code})", call=name, code=code)


class Card:
    """One GPU. Every method asks the driver and raises NvmlError."""

    def __init__(self, nvml: Nvml, handle: c_void_p) -> None:
        self._nvml = nvml
        self._handle = handle

    def limit_w(self) -> float:
        """Return the power limit that was asked for (W), by us or by others."""
        return self._watts("nvmlDeviceGetPowerManagementLimit")

    def enforced_w(self) -> float:
        """Return the limit in force (W): the lowest of all limiters, of which the one asked for is one."""
        return self._watts("nvmlDeviceGetEnforcedPowerLimit")

    def default_w(self) -> float:
        """Return the limit that the GPU starts with (W)."""
        return self._watts("nvmlDeviceGetPowerManagementDefaultLimit")

    def range_w(self) -> tuple[float, float]:
        """Return the lowest and the highest limit that may be set (W)."""
        lowest, highest = c_uint(), c_uint()
        self._ask("nvmlDeviceGetPowerManagementLimitConstraints", byref(lowest), byref(highest))
        return mw_to_w(lowest.value), mw_to_w(highest.value)

    def set_limit_w(self, power_w: float) -> None:
        """Ask for a power limit (W)."""
        self._ask("nvmlDeviceSetPowerManagementLimit", c_uint(w_to_mw(power_w)))

    def drawn_w(self) -> float:
        """Return what the GPU draws (W): a mean over a second on most GPUs."""
        return self._watts("nvmlDeviceGetPowerUsage")

    def reasons(self) -> int:
        """Return why the clocks are what they are: bits of nvmlClocksEventReasons, at this moment."""
        bits = c_ulonglong()
        # The older of its two names, which every driver has.
        self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", byref(bits))
        return bits.value

    def sm_clock_mhz(self) -> int:
        """Return the SM clock at this moment (MHz)."""
        return self._number("nvmlDeviceGetClockInfo", _CLOCK_SM)

    def highest_clock_mhz(self) -> int:
        """Return the highest SM clock that this GPU has (MHz)."""
        return self._number("nvmlDeviceGetMaxClockInfo", _CLOCK_SM)

    def lock_clocks(self, clock_mhz: int) -> None:
        """Lock the SM clock (MHz)."""
        self._ask("nvmlDeviceSetGpuLockedClocks", c_uint(clock_mhz), c_uint(clock_mhz))

    def reset_clocks(self) -> None:
        """Unlock the SM clock."""
        self._ask("nvmlDeviceResetGpuLockedClocks")

    def _watts(self, name: str) -> float:
        return mw_to_w(self._number(name))

    def _number(self, name: str, *arguments: int) -> int:
        value = c_uint()
        self._ask(name, *arguments, byref(value))
        return value.value

    def _ask(self, name: str, *arguments: object) -> None:
        self._nvml.call(name, self._handle, *arguments)
