"""What all ways to change a GPU have in common: somebody who may is asked for a lease of one knob of one GPU.

`DirectNvml` asks the driver, a helper with more rights may be asked instead, and `Advise` changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from energy_plugins.control.entry import Knob
from energy_plugins.control.restore import Restored
from energy_plugins.errors import RefusedError
from energy_plugins.measure.devices import Gpu


class Standing(Enum):
    """How a lease stands."""

    HELD = "held"
    """The GPU has what was found, or what we set."""
    ADVISED = "advised"
    """Nothing may be changed here, and nothing is."""
    FOREIGN = "foreign"
    """Others changed it since: it is neither set again nor put back."""
    LOST = "lost"
    """The GPU, or what would put it back, does not answer."""
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a lease stood when it was last looked at, and why if not as it should."""

    standing: Standing
    value: float | None = None
    """What is asked of the GPU (W); None for clocks, which cannot be read back, and where nothing is read."""
    enforced_w: float | None = None
    """The power limit in force; lower than the one asked for where another limiter, such as a BMC, is stricter."""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be leased."""

    gpu: Gpu
    knob: Knob
    assume_unlocked: bool = False
    """The user, or the site's configuration, asserts that nobody else has locked the clocks."""
    allow_above_found: bool = False
    """Whether a power limit may be higher than the one found."""


class Lease(Protocol):
    """The right to turn one knob of one GPU, until `release`."""

    changes: bool
    """Whether `set` changes the GPU."""
    found: float | None
    """What `release` puts back (W); None for clocks."""

    def set(self, value: float) -> Status:
        """Set a value (W, MHz) and read it back; change nothing if others have. Raises ControlError, NvmlError."""

    def look(self) -> Status:
        """Read how the GPU stands, and keep alive what would put it back. Called now and then; does not raise."""

    def release(self) -> Restored:
        """Put back what was found, if the present value is still ours. Does not raise."""


class BackEnd(Protocol):
    """A way to change GPUs."""

    name: str
    changes: bool
    """Whether its leases change the GPU."""

    def take(self, request: Request) -> Lease:
        """Lease a knob.

        Raises:
            RefusedError: Not this way; another may work.
            OwnedError: Another process controls the GPU.
            NvmlError: The driver fails.
        """


@dataclass(frozen=True)
class Taken:
    """A lease, whose it is, and why better back ends refused."""

    lease: Lease
    back_end: str
    refusals: tuple[RefusedError, ...]


def take_first(back_ends: Sequence[BackEnd], request: Request) -> Taken:
    """Lease a knob from the first back end that does not refuse; from one that changes nothing after an unsafe refusal.

    Raises:
        RefusedError: All refuse; what the last one says.
        OwnedError: Another process controls the GPU.
        NvmlError: The driver fails.
    """
    refusals: list[RefusedError] = []
    for back_end in back_ends:
        if back_end.changes and any(refusal.unsafe for refusal in refusals):
            continue
        try:
            return Taken(back_end.take(request), back_end.name, tuple(refusals))
        except RefusedError as error:
            refusals.append(error)
    raise refusals[-1] if refusals else RefusedError("no back end was named")
