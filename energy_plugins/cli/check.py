"""What `doctor` finds: one value for each thing looked at, and the verdict over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum, IntEnum
from typing import Self

DRIVER = "driver"
ANSWER = "answer"
"""The check that is there only when the driver stopped answering."""
VISIBLE = "visible GPUs"
MEASURED_BY = "measured by"
"""The check, one for each GPU, that says what its joules will come from."""
CPU = "CPU energy"
ASK_NVIDIA_SMI = "see whether nvidia-smi works; dmesg may say more"
"""The remedy where nothing is known that says more."""

_NEEDED = frozenset({DRIVER, ANSWER, VISIBLE, MEASURED_BY})
"""Without these a GPU is not measured; all else is good to have."""


class Status(Enum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    """It works with less, or something about it should be known."""
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``why`` and ``remedy`` where it is not as it should be, ``gpu`` a UUID."""

    name: str
    status: Status
    found: str
    why: str = ""
    remedy: str = ""
    gpu: str = ""

    def plain(self) -> dict[str, str]:
        """Return it as JSON has it."""
        return {**asdict(self), "status": self.status.value}

    @classmethod
    def read(cls, plain: dict[str, str]) -> Self:
        """Return what `plain` was made of."""
        rest = {name: text for name, text in plain.items() if name != "status"}
        return cls(status=Status(plain["status"]), **rest)


class Verdict(IntEnum):
    """What all checks together say; the value is the exit code."""

    READY = 0
    INCOMPLETE = 1
    NOTHING = 3

    @classmethod
    def of(cls, checks: Sequence[Check]) -> Verdict:
        """Judge: nothing can be measured, something needed is missing, or all that GPU energy needs is there."""
        if not any(check.name in {MEASURED_BY, CPU} and check.status is not Status.MISSING for check in checks):
            return cls.NOTHING
        lacking = any(check.name in _NEEDED and check.status is Status.MISSING for check in checks)
        return cls.INCOMPLETE if lacking else cls.READY

    @classmethod
    def of_restoring(cls, checks: Sequence[Check]) -> Verdict:
        """Judge whether all is as it was found."""
        return cls.INCOMPLETE if any(check.status is Status.MISSING for check in checks) else cls.READY
