"""What is set, for whom and until when; and how it is put back.

The order of every change: journal, driver, reading back. So whenever this process ends, the journal knows every value
that the GPU may have from us, and the next start puts back what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from energy_plugins.powerd.journal import BadEntry, Entry, Journal
from energy_plugins.powerd.nvml import DriverError, Nvml
from energy_plugins.powerd.peers import Peer
from energy_plugins.powerd.policy import Bounds, Site, bounds, judge
from energy_plugins.powerd.protocol import Code
from energy_plugins.powerd.rates import Buckets

SAME_MW = 500
"""Limits closer than this are the same: some hardware keeps no milliwatts."""
LOOK_S = 2.0
"""Between looks at a leased GPU: who computes on it, and whether its limit is still ours."""
_RETRY_S = 5.0  # between attempts to put back what the driver did not let be put back
_BURST = 10.0


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """What was asked is not done, and nothing has changed."""

    def __init__(self, code: Code, why: str, **figures: object) -> None:
        super().__init__(why)
        self.code = code
        self.figures = figures


@dataclass
class Lease:
    """A GPU's limit, for one connection."""

    client: int
    peer: Peer
    entry: Entry
    bounds: Bounds
    until_s: float
    look_s: float
    journalled: bool = False
    """Whether the GPU may differ from what was found."""

    @property
    def limit_mw(self) -> int:
        """The limit that was set last, or found."""
        return self.entry.ours_mw[-1]


@dataclass(frozen=True)
class _Owed:
    """When it is tried again to put a GPU back, and its entry if it is remembered."""

    due_s: float
    entry: Entry | None


@dataclass
class Leases:
    """All leases, one for a GPU at most; times are seconds of a clock that the caller reads."""

    site: Site
    nvml: Nvml
    journal: Journal
    log: Callable[[str], None]
    gpus: frozenset[str] = frozenset()
    """The GPUs of this machine."""
    _leases: dict[str, Lease] = field(default_factory=dict)
    _ended: dict[tuple[int, str], Refusal] = field(default_factory=dict)
    """Why leases ended of which their connection has not heard yet."""
    _owed: dict[str, _Owed] = field(default_factory=dict)
    """GPUs that are to be put back, though it failed."""
    _changes: Buckets = field(init=False)

    def __post_init__(self) -> None:
        self._changes = Buckets(self.site.config.sets_per_minute / 60.0, _BURST)

    def recover(self, now_s: float) -> None:
        """Put back whatever an earlier helper left. Raises OSError if the journal cannot be read."""
        for uuid in self.journal.uuids():
            self._put_back(uuid, now_s)

    def ask(self, peer: Peer, uuid: str) -> Mapping[str, object]:
        """Say what `take` would do. Raises Refusal for a GPU that is not here, DriverError."""
        self._known(uuid)
        limit_mw = self.nvml.limit_mw(uuid)
        lease = self._leases.get(uuid)
        found_mw = limit_mw if lease is None else lease.entry.found_mw
        may = bounds(uuid, self.nvml.bounds(uuid), found_mw, self.site.config)
        verdict = judge(peer, uuid, self.nvml.use(uuid), self.site)
        figures = {"limit_w": limit_mw / 1e3, "min_w": may.min_mw / 1e3, "max_w": may.max_mw / 1e3}
        return {"allowed": verdict.allowed, "why": verdict.why, "taken": lease is not None, **figures}

    def take(self, client: int, peer: Peer, uuid: str, now_s: float) -> Mapping[str, object]:
        """Lease a GPU without changing it. Raises Refusal, DriverError."""
        self._known(uuid)
        self._not_too_often(peer.uid, now_s)
        lease = self._leases.get(uuid)
        if lease is not None:
            same = lease.peer.process.is_same_user(peer.process)
            whose = {"pid": lease.peer.process.pid} if same else {}
            who = "you have" if lease.client == client else "another client has"
            raise Refusal(Code.OWNED, f"{who} this GPU already", **whose)
        if uuid in self._owed:
            raise Refusal(Code.OWNED, "an earlier limit of this GPU could not be put back yet")
        verdict = judge(peer, uuid, self.nvml.use(uuid), self.site)
        if not verdict.allowed:
            raise Refusal(Code.REFUSED, verdict.why)
        found_mw = self.nvml.limit_mw(uuid)
        may = bounds(uuid, self.nvml.bounds(uuid), found_mw, self.site.config)
        if may.min_mw > may.max_mw:
            why = f"nothing may be set: at least {may.min_mw / 1e3:g} W and at most {may.max_mw / 1e3:g} W"
            raise Refusal(Code.REFUSED, why)
        entry = Entry(uuid, self.journal.boot_id, found_mw, (found_mw,), peer.uid, peer.process.pid)
        self._leases[uuid] = Lease(client, peer, entry, may, now_s + self.site.config.lease_s, now_s + LOOK_S)
        self._ended.pop((client, uuid), None)
        figures = {"found_w": found_mw / 1e3, "min_w": may.min_mw / 1e3, "max_w": may.max_mw / 1e3}
        return {**figures, "lease_s": self.site.config.lease_s}

    def set(self, client: int, uuid: str, limit_w: float, now_s: float) -> Mapping[str, object]:
        """Set the limit of a leased GPU, clamped to what may be set. Raises Refusal, DriverError."""
        lease = self._lease(client, uuid)
        self._not_too_often(lease.peer.uid, now_s)
        self._look(lease, now_s)
        lease = self._lease(client, uuid)
        limit_mw = lease.bounds.clamp(round(limit_w * 1e3))
        entry = replace(lease.entry, ours_mw=(lease.limit_mw, limit_mw))
        self._change(lease, entry, now_s)
        lease.until_s = now_s + self.site.config.lease_s
        self.log(f"{uuid}: {limit_mw / 1e3:g} W for uid {entry.uid}, pid {entry.pid}; {entry.found_mw / 1e3:g} W found")
        return {"limit_w": limit_mw / 1e3}

    def renew(self, client: int, now_s: float) -> Mapping[str, object]:
        """Keep the leases of a connection, and tell which of them have ended without its doing (once)."""
        kept = {uuid: lease for uuid, lease in self._leases.items() if lease.client == client}
        for lease in kept.values():
            lease.until_s = now_s + self.site.config.lease_s
        gone = {uuid: self._ended.pop((client, uuid)) for whose, uuid in list(self._ended) if whose == client}
        ended = {uuid: {"error": end.code.value, "why": str(end)} for uuid, end in gone.items()}
        return {"leases": {uuid: lease.limit_mw / 1e3 for uuid, lease in kept.items()}, "ended": ended}

    def release(self, client: int, uuid: str, now_s: float) -> Mapping[str, object]:
        """End a lease and put back what was found. Raises Refusal."""
        self._end(self._lease(client, uuid), Refusal(Code.NO_LEASE, "released"), now_s)
        del self._ended[client, uuid]
        return {"restored": uuid not in self._owed}

    def drop(self, client: int, why: str, now_s: float) -> None:
        """End everything of a connection that is no more."""
        for lease in [lease for lease in self._leases.values() if lease.client == client]:
            self._end(lease, Refusal(Code.NO_LEASE, why), now_s)
        for key in [key for key in self._ended if key[0] == client]:
            del self._ended[key]

    def drop_all(self, why: str, now_s: float) -> None:
        """End everything."""
        for lease in list(self._leases.values()):
            self._end(lease, Refusal(Code.NO_LEASE, why), now_s)

    def tick(self, now_s: float) -> None:
        """Do what is due: leases that ran out, looks at leased GPUs, what is still to be put back."""
        for lease in list(self._leases.values()):
            if lease.until_s <= now_s:
                self._end(lease, Refusal(Code.NO_LEASE, "its client was not heard of in time"), now_s)
            elif lease.look_s <= now_s:
                lease.look_s = now_s + LOOK_S
                try:
                    self._look(lease, now_s)
                except DriverError as fault:
                    self.log(f"{lease.entry.uuid}: cannot be looked at: {fault}")
        for uuid, owed in [(uuid, owed) for uuid, owed in self._owed.items() if owed.due_s <= now_s]:
            self._put_back(uuid, now_s, owed.entry)
        self._changes.tidy(now_s)

    def next_s(self, now_s: float) -> float:
        """Return when `tick` has something to do, a second from now at the latest."""
        due = [min(lease.until_s, lease.look_s) for lease in self._leases.values()]
        return min([now_s + 1.0, *due, *(owed.due_s for owed in self._owed.values())])

    def owed(self) -> list[str]:
        """Return the GPUs that could not be put back yet."""
        return sorted(self._owed)

    def _known(self, uuid: str) -> None:
        if uuid not in self.gpus:
            raise Refusal(Code.REFUSED, "this machine has no such GPU")

    def _not_too_often(self, uid: int, now_s: float) -> None:
        wait_s = self._changes.take(uid, now_s)
        if wait_s > 0:
            raise Refusal(Code.TOO_OFTEN, "too many changes", retry_s=wait_s)

    def _lease(self, client: int, uuid: str) -> Lease:
        lease = self._leases.get(uuid)
        if lease is None or lease.client != client:
            raise self._ended.pop((client, uuid), None) or Refusal(
                Code.NO_LEASE, "there is no lease of yours for this GPU", ended=True
            )
        return lease

    def _change(self, lease: Lease, entry: Entry, now_s: float) -> None:
        """Journal and set. Raises Refusal; nothing has changed, or the lease has ended by it."""
        uuid, limit_mw = entry.uuid, entry.ours_mw[-1]
        try:
            self.journal.write(entry)
        except OSError as error:
            raise Refusal(Code.JOURNAL, f"what was found cannot be written down: {error.strerror}") from error
        lease.entry, lease.journalled = entry, True
        try:
            self._set_verified(uuid, limit_mw)
        except DriverError as error:
            self._end(lease, Refusal(Code.DRIVER, str(error)), now_s)
            raise self._ended.pop((lease.client, uuid)) from error

    def _look(self, lease: Lease, now_s: float) -> None:
        """End a lease whose limit is no longer ours, or whose GPU is no longer its user's. Raises DriverError."""
        uuid = lease.entry.uuid
        present_mw = self.nvml.limit_mw(uuid)
        if not _is_one_of(present_mw, lease.entry.ours_mw):
            self._forget(lease, f"others changed the limit to {present_mw / 1e3:g} W, which stays")
            return
        verdict = judge(lease.peer, uuid, self.nvml.use(uuid), self.site, holds=True)
        if not verdict.allowed:
            self._end(lease, Refusal(Code.REFUSED, verdict.why), now_s)
        elif lease.journalled:
            self._keep_the_entry(lease.entry)

    def _keep_the_entry(self, entry: Entry) -> None:
        """Write an entry again that others have removed or spoiled: the next helper goes by it."""
        try:
            try:
                kept = self.journal.read(entry.uuid) == entry
            except (FileNotFoundError, BadEntry):
                kept = False
            if not kept:
                self.journal.open()
                self.journal.write(entry)
                self.log(f"{entry.uuid}: its entry in the journal was gone or spoiled, and is written again")
        except OSError as error:
            self.log(f"{entry.uuid}: its entry in the journal cannot be kept: {error}")

    def _forget(self, lease: Lease, why: str) -> None:
        """End a lease whose GPU others have taken over: their value stays."""
        self._remove(lease, Refusal(Code.FOREIGN, why))
        self._settled(lease.entry.uuid, why)

    def _end(self, lease: Lease, why: Refusal, now_s: float) -> None:
        self._remove(lease, why)
        self.log(f"{lease.entry.uuid}: the lease of pid {lease.peer.process.pid} has ended: {why}")
        self._put_back(lease.entry.uuid, now_s, lease.entry if lease.journalled else None)

    def _remove(self, lease: Lease, why: Refusal) -> None:
        why.figures = {"ended": True}
        del self._leases[lease.entry.uuid]
        self._ended[lease.client, lease.entry.uuid] = why

    def _put_back(self, uuid: str, now_s: float, remembered: Entry | None = None) -> None:
        """Put back what was found, by the journal only where this process does not know it: others may spoil that."""
        try:
            self._settled(uuid, self._restored(remembered or self.journal.read(uuid)))
        except FileNotFoundError:
            self._owed.pop(uuid, None)
        except (DriverError, BadEntry, OSError) as error:
            if uuid not in self._owed:
                self.log(f"{uuid}: cannot be put back yet: {error}")
            self._owed[uuid] = _Owed(now_s + _RETRY_S, remembered)

    def _restored(self, entry: Entry) -> str:
        """Put back what an entry says, if that is still right, and say what was done. Raises DriverError."""
        if entry.boot_id != self.journal.boot_id:
            return "was set before this machine was last started, which undid it"
        present_mw = self.nvml.limit_mw(entry.uuid)
        found = f"{entry.found_mw / 1e3:g} W, as it was found"
        if abs(present_mw - entry.found_mw) <= SAME_MW:
            return found
        if not _is_one_of(present_mw, entry.ours_mw):
            return f"{present_mw / 1e3:g} W, set by others since, stays"
        self._set_verified(entry.uuid, entry.found_mw)
        return found

    def _set_verified(self, uuid: str, limit_mw: int) -> None:
        """Set a limit and read it back. Raises DriverError."""
        self.nvml.set_limit_mw(uuid, limit_mw)
        now_mw = self.nvml.limit_mw(uuid)
        if abs(now_mw - limit_mw) > SAME_MW:
            raise DriverError(f"the driver took {limit_mw / 1e3:g} W and says {now_mw / 1e3:g} W", 0)

    def _settled(self, uuid: str, what: str) -> None:
        self.log(f"{uuid}: {what}")
        try:
            self.journal.remove(uuid)
        except OSError as error:
            self.log(f"{uuid}: its entry stays in the journal: {error}")
        self._owed.pop(uuid, None)


def _is_one_of(limit_mw: int, ours_mw: tuple[int, ...]) -> bool:
    return any(abs(limit_mw - one_mw) <= SAME_MW for one_mw in ours_mw)
