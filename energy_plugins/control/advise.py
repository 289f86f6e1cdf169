"""The back end that changes nothing: a training goes on, and is told what a limit would do."""

from __future__ import annotations

from energy_plugins.control.backend import Request, Standing, Status
from energy_plugins.control.entry import Knob
from energy_plugins.control.restore import Ending, Restored


class Advise:
    """Leases everything and changes nothing."""

    name = "advice"
    changes = False

    def take(self, request: Request) -> AdvisedLease:
        """Lease a knob, for show. Never refuses."""
        return AdvisedLease(request.gpu.uuid, request.knob)


class AdvisedLease:
    """See `Advise`."""

    changes = False
    found: float | None = None

    def __init__(self, uuid: str, knob: Knob) -> None:
        self._restored = Restored(uuid, knob, Ending.RESTORED, "nothing was changed")
        self._status = Status(standing=Standing.ADVISED)

    def set(self, value: float) -> Status:  # noqa: ARG002 - what is wanted, `HeldLimit` remembers
        """Change nothing."""
        return self._status

    def look(self) -> Status:
        """Nothing to keep alive."""
        return self._status

    def release(self) -> Restored:
        """Nothing to put back."""
        return self._restored
