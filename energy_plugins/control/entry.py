"""One entry of the journal: what was found on a GPU and what we set, as a value and as JSON read with suspicion."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from energy_plugins.control.owner import Owner
from energy_plugins.errors import JournalError

SAME_W = 0.5
"""Limits closer than this are the same: drivers keep milliwatts, some hardware keeps less."""
_UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,80}")
_MOST = 1e6
"""No limit in watts and no clock in megahertz is as high."""


class Knob(Enum):
    """What may be changed of a GPU."""

    POWER = "power"
    """The power limit, in watts."""
    CLOCKS = "clocks"
    """Locked SM clocks, in megahertz; what is locked cannot be read back."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A change of one knob of one GPU that is to be undone."""

    uuid: str
    knob: Knob
    owner: Owner
    found: float | None
    """The value to put back (W); None for clocks, which are unlocked."""
    ours: tuple[float, ...] = ()
    """The values that the GPU may have from us: the one set, and while it changes the next one; none once it is not
    ours to restore."""
    released: bool = False
    """Whether its owner has done with it, and could not put it back: others may, though the owner lives."""

    def is_ours(self, present: float) -> bool:
        """Whether a value read from the GPU is one that we set."""
        return any(abs(present - value) <= SAME_W for value in self.ours)

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps({"version": 1, **asdict(self), "knob": self.knob.value}, indent=1) + "\n"

    @classmethod
    def read(cls, content: bytes, source: str) -> Entry:
        """Return what `text` was made of. Raises JournalError, which names ``source``."""
        try:
            values = json.loads(content)
            entry = _entry(values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise JournalError(f"{source} holds no entry of the journal: {error!r:.200}") from error
        return entry


def is_gpu(uuid: str) -> bool:
    """Whether this may be the UUID of a GPU: it becomes the name of a file."""
    return _UUID.fullmatch(uuid) is not None


def _entry(values: dict[str, Any]) -> Entry:
    if values["version"] != 1:
        raise ValueError("it is of another version of energy-plugins")
    uuid, owner, knob = values["uuid"], values["owner"], Knob(values["knob"])
    if not isinstance(uuid, str) or not is_gpu(uuid):
        raise ValueError("uuid is that of no GPU")
    found = None if knob is Knob.CLOCKS else _number(values["found"])
    ours = values["ours"]
    if not isinstance(ours, list) or len(ours) > 2:
        raise ValueError("ours must be a list of at most two values")
    released = values.get("released", False)
    if not isinstance(released, bool):
        raise TypeError("released must be true or false")
    whose = Owner(
        _count(owner["pid"]), _count(owner["start_ticks"]), str(owner["boot_id"]), _count(owner["pid_namespace"])
    )
    ours = tuple(map(_number, ours))
    return Entry(uuid=uuid, knob=knob, owner=whose, found=found, ours=ours, released=released)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a value must be a number")
    if not math.isfinite(value) or not 0 < value < _MOST:
        raise ValueError("a value is none that a GPU could have")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError("a number of a process must be a whole number, 0 or more")
    return value
