"""The back end that asks the helper `powerd`, which runs as root and lets users limit GPUs that they alone use.

Its word is a heartbeat too: a lease that is not looked at for ``lease_s`` of the site's configuration ends. The helper
puts back what it found when this process ends in whatever way, so there is neither a journal nor a watchdog here.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from energy_plugins.control.backend import Request, Standing, Status
from energy_plugins.control.entry import SAME_W, Knob
from energy_plugins.control.nvml import Card, Nvml
from energy_plugins.control.restore import Ending, Restored
from energy_plugins.errors import ControlError, EnergyError, JournalError, NvmlError, OwnedError, RefusedError
from energy_plugins.measure.drivers import current_drivers

SOCKET_VARIABLE = "ENERGY_POWERD_SOCKET"
_DEFAULT_SOCKET = Path("/run/energy-powerd/socket")
_PATIENCE_S = 5.0
_MOST_BYTES = 1 << 16
_REMEDY = "ask the administrator for energy-powerd, and to be of its group: see docs/powerd.md"

Answer = Mapping[str, object]


def powerd_socket() -> Path:
    """Return where the helper of this machine listens."""
    return Path(os.environ.get(SOCKET_VARIABLE) or _DEFAULT_SOCKET)


def ask_powerd(uuid: str) -> str:
    """Return what the helper says about a GPU and this user, now; nothing is changed. Raises ControlError."""
    with closing(_Connection(powerd_socket())) as line:
        answer = _accepted(line.ask(op="ask", gpu=uuid), uuid)
    allowed = "yes" if answer.get("allowed") is True else "not now"
    return f"{allowed}: {answer.get('why')}"


class Powerd:
    """Has the helper change GPUs."""

    name = "powerd"
    changes = True

    def take(self, request: Request) -> PowerdLease:
        """Lease a power limit. As `BackEnd.take`."""
        if request.knob is not Knob.POWER:
            raise RefusedError("powerd sets power limits, not clocks", remedy="use a power limit")
        if request.gpu.mig is not None:
            why = "a MIG slice has no limit of its own: its card's would bind the other slices as well"
            raise RefusedError(why, remedy="limit the whole card from outside the slice")
        with ExitStack() as undo:
            line = undo.enter_context(closing(_Connection(powerd_socket())))
            nvml = undo.enter_context(Nvml(current_drivers().nvml))
            answer = _accepted(line.ask(op="take", gpu=request.gpu.uuid), request.gpu.uuid)
            terms = _Terms(_number(answer, "found_w"), _number(answer, "min_w"), _number(answer, "max_w"))
            return PowerdLease(line, nvml.card(request.gpu.uuid), request.gpu.uuid, terms, undo.pop_all())


@dataclass(frozen=True)
class _Terms:
    """What the helper leases."""

    found_w: float
    min_w: float
    max_w: float


class PowerdLease:
    """See `Lease`."""

    changes = True

    def __init__(self, line: _Connection, card: Card, uuid: str, terms: _Terms, undo: ExitStack) -> None:
        self.found: float | None = terms.found_w
        self._terms = terms
        self._line = line
        self._card = card
        self._uuid = uuid
        self._undo = undo
        self._mutex = threading.Lock()  # guards what follows, and the order of what is said
        self._ended = Status(standing=Standing.HELD)

    def set(self, value: float) -> Status:
        """As `Lease.set`; where the site's range is narrower, the nearest value it has, which the status tells."""
        with self._mutex:
            if self._ended.standing is not Standing.HELD:
                return self._ended
            answer = self._line.ask(op="set", gpu=self._uuid, limit_w=value)
            if answer.get("ended") is True:
                return self._end(answer)
            limit_w = _number(_accepted(answer, self._uuid), "limit_w")
            terms = self._terms
            clamped = f"the site has {terms.min_w:g}-{terms.max_w:g} W, so the limit is {limit_w:g} W, not {value:g} W"
            return self._status(clamped if abs(limit_w - value) > SAME_W else "")

    def look(self) -> Status:
        """As `Lease.look`."""
        with self._mutex:
            if self._ended.standing is not Standing.HELD:
                return self._ended
            try:
                answer = self._line.ask(op="renew")
                ended = answer.get("ended")
                mine = ended.get(self._uuid) if isinstance(ended, dict) else None
                return self._status() if mine is None else self._end(mine)
            except EnergyError as error:
                return Status(standing=Standing.LOST, why=str(error))

    def release(self) -> Restored:
        """As `Lease.release`; the helper goes on trying what cannot be put back now."""
        with self._mutex:
            try:
                restored = self._restored()
            except EnergyError as error:
                restored = self._ending(Ending.KEPT, str(error))
            # The helper ends what is left of a lease when its connection does.
            self._undo.close()
            return restored

    def _restored(self) -> Restored:
        if self._ended.standing is Standing.FOREIGN:
            return self._ending(Ending.FOREIGN, self._ended.why)
        with suppress(ControlError):
            answer = self._line.ask(op="release", gpu=self._uuid)
            if answer.get("error") == "foreign":
                return self._ending(Ending.FOREIGN, f"powerd: {answer.get('why')}")
        # Whoever put it back, and whether or not the helper answers: the GPU says how it stands.
        now_w = self._card.limit_w()
        if abs(now_w - self._terms.found_w) <= SAME_W:
            return self._ending(Ending.RESTORED, f"the limit is {now_w:g} W again, as it was found")
        return self._ending(Ending.KEPT, f"powerd has not put back {self._terms.found_w:g} W yet; it is {now_w:g} W")

    def _ending(self, ending: Ending, why: str) -> Restored:
        return Restored(self._uuid, Knob.POWER, ending, why)

    def _end(self, answer: Answer) -> Status:
        standing = Standing.FOREIGN if answer.get("error") == "foreign" else Standing.LOST
        self._ended = Status(standing=standing, why=f"powerd ended it: {answer.get('why')}")
        return self._ended

    def _status(self, why: str = "") -> Status:
        value_w, enforced_w = self._card.limit_w(), self._card.enforced_w()
        if not why and enforced_w < value_w - SAME_W:
            why = f"another limiter holds the GPU at {enforced_w:g} W, below the {value_w:g} W asked for"
        return Status(standing=Standing.HELD, value=value_w, enforced_w=enforced_w, why=why)


class _Connection:
    """A connection to the helper: a question, an answer."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises RefusedError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE_S)
        self._number = 0
        self._received = b""
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise RefusedError(f"no helper answers at {path}: {error.strerror or error}", remedy=_REMEDY) from error

    def ask(self, **question: object) -> Answer:
        """Return what the helper answers. Raises ControlError if it does not."""
        self._number += 1
        try:
            with suppress(BrokenPipeError):  # whoever is turned away is told why before it says a word
                self._socket.sendall(json.dumps({**question, "id": self._number}).encode() + b"\n")
            # An answer that came too late is one to an earlier question.
            while (answer := self._answer()).get("id", self._number) != self._number:
                pass
        except (OSError, ValueError) as error:
            raise ControlError(f"powerd does not answer: {error}") from error
        return answer

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _answer(self) -> Answer:
        while b"\n" not in self._received:
            part = self._socket.recv(1 << 12)
            if not part or len(self._received) > _MOST_BYTES:
                raise ControlError("powerd has hung up, and puts back what it found")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        answer = json.loads(line)
        if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
            raise ControlError("powerd speaks another language: is it of another version?")
        return answer


def _accepted(answer: Answer, uuid: str) -> Answer:
    if answer["ok"] is not True:
        raise _error(answer, uuid)
    return answer


def _error(answer: Answer, uuid: str) -> EnergyError:
    code, why = answer.get("error"), f"GPU {uuid}: powerd: {answer.get('why')}"
    pid = answer.get("pid")
    match code:
        case "owned":
            return OwnedError(why, pid=pid if isinstance(pid, int) else 0)
        case "journal":
            return JournalError(why)
        case "driver":
            return NvmlError(why)
        case "refused" | "full" | "too_often":
            return RefusedError(why, remedy="ask the administrator for a grant: see docs/powerd.md")
        case _:
            return ControlError(why)


def _number(answer: Answer, key: str) -> float:
    value = answer.get(key)
    if not isinstance(value, int | float):
        raise ControlError(f"powerd does not tell {key}: is it of another version?")
    return float(value)
