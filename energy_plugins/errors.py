"""The error tree.

::

    EnergyError                     everything this package raises on purpose
    ├── DeviceError (ValueError)    a GPU that is unknown, or not one that this process may use
    ├── ConfigError (ValueError)    something configured that is unknown or not allowed; says where it stands
    ├── WindowError (ValueError)    a measured window that cannot be one: a value not finite, or not above zero
    ├── BatchError (ValueError)     a batch that cannot be cut or joined, or a micro-batch that does not fit it
    ├── BusyError (RuntimeError)    a GPU that should be idle is at work
    ├── NvmlError (RuntimeError)    a call of NVML failed; has .call and .code
    ├── LibraryError (OSError)      a driver library that cannot be loaded, or is not what it should be
    ├── ReportError                 a report folder that cannot be written, or a report that cannot be read
    ├── LedgerError (RuntimeError)  a ledger that cannot be opened, read or written; what runs wrote is still there
    ├── ExportError (OSError)       figures that cannot be exported: a port in use, a package that is not installed
    ├── ColumnError (OSError)       a column file that cannot be written or read, a full disk for example
    └── ControlError (RuntimeError) a limit or clocks that could not be set, or not be verified
        ├── RefusedError            nothing may be set: no permission, no journal, no watchdog; has .remedy
        ├── OwnedError              another process controls this GPU; has .pid
        └── JournalError            the journal of changed GPUs cannot be trusted or written
"""

from __future__ import annotations


class EnergyError(Exception):
    """Base of every error this package raises on purpose."""


class DeviceError(EnergyError, ValueError):
    """A GPU was named that does not exist, or that this process may not use."""


class ConfigError(EnergyError, ValueError):
    """A key that does not exist, or a value that is not allowed; the message says where it stands and what may."""


class WindowError(EnergyError, ValueError):
    """What was measured in a window cannot be; the message names the value."""


class BatchError(EnergyError, ValueError):
    """A batch that cannot be cut into micro-batches or joined to one; the message says why, and what would do."""


class BusyError(EnergyError, RuntimeError):
    """A GPU that should be idle is at work; the message says how that was seen."""


class NvmlError(EnergyError, RuntimeError):
    """A call of NVML failed: ``nvmlDeviceGetPowerUsage: GPU is lost (15)``.

    Attributes:
        call: The function of the driver that failed.
        code: What it returned, an ``nvmlReturn_t``; 13 also for a function which this driver does not have.
    """

    call: str
    code: int

    def __init__(self, message: str, *, call: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.call = call
        self.code = code


class LibraryError(EnergyError, OSError):
    """A driver library cannot be loaded; the message names its path, the reason and the remedy."""


class ReportError(EnergyError):
    """A report folder cannot be written, or what lies there cannot be read as a report."""


class LedgerError(EnergyError, RuntimeError):
    """A ledger cannot be opened, read or written; the message says why. What runs left in the spool is still there."""


class ExportError(EnergyError, OSError):
    """Figures cannot be exported as asked; the message names the port, file or package, and what to do."""


class ColumnError(EnergyError, OSError):
    """A column file cannot be written or read; what was written before stays readable."""


class ControlError(EnergyError, RuntimeError):
    """A limit or clocks could not be set as asked, or reading back showed something else."""


class RefusedError(ControlError):
    """This process may not change this GPU, or could not be sure of putting back what it finds; nothing was changed.

    Attributes:
        remedy: What would be needed.
        unsafe: Whether nobody else should change it either: what it has now may not be what is to be put back.
    """

    remedy: str
    unsafe: bool

    def __init__(self, message: str, *, remedy: str = "", unsafe: bool = False) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.unsafe = unsafe


class OwnedError(ControlError):
    """Another process, or another part of this one, controls this GPU; nothing was changed.

    Attributes:
        pid: Of the process that does.
    """

    pid: int

    def __init__(self, message: str, *, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class JournalError(ControlError):
    """The journal of changed GPUs belongs to somebody else, holds nonsense or cannot be written."""
