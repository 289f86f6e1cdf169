"""Moves the bytes: one thread, nothing that waits, so that no client can hold up another.

A connection may have one answer on its way; until it has been taken nothing more of that connection is read. Whoever
asks more often than allowed is read later. So nobody can make this process keep more than a few kilobytes for them.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from energy_plugins.powerd import protocol
from energy_plugins.powerd.leases import Leases, Refusal
from energy_plugins.powerd.nvml import DriverError
from energy_plugins.powerd.peers import Peer, UnknownPeer, peer_of, ticks_now
from energy_plugins.powerd.protocol import MOST_BYTES, Code, Malformed, Op, Request
from energy_plugins.powerd.rates import Bucket, Buckets

_ACCEPTS = 32  # between two looks at the clock
_IDLE_S = 300.0  # after which a connection without a lease is closed
_LOGGED_PER_S = 5.0  # complaints about messages; a flood of them is counted, not written


@dataclass
class Client:
    """A connection."""

    number: int
    connection: socket.socket
    pidfd: int
    peer: Peer
    heard_s: float
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    read_from_s: float = 0.0
    """Not before this it is read again."""
    closing: bool = False
    """Whether it is to be closed when its answer is out."""
    events: int = selectors.EVENT_READ
    """What is waited for on its connection."""

    @property
    def has_line(self) -> bool:
        """Whether something is there to be answered."""
        return b"\n" in self.incoming or len(self.incoming) >= MOST_BYTES


class _FullError(Exception):
    """There is no room for another connection."""


class Handler:
    """From a line to its answer."""

    def __init__(self, leases: Leases, log: Callable[[str], None]) -> None:
        self._leases = leases
        self._log = log
        self._complaints = Bucket(_LOGGED_PER_S, 20.0, 0.0)
        self._unlogged = 0

    def answer(self, client: int, peer: Peer, line: bytes, now_s: float) -> bytes:
        """Do what a line asks, and return the answer; whatever is wrong with it is answered too."""
        try:
            request = protocol.read(line)
        except Malformed as malformed:
            self.complain(peer, f"{malformed}: {line[:80]!r}", now_s)
            return protocol.declined(Code.MALFORMED, str(malformed))
        try:
            return protocol.accepted(request, **self._do(client, peer, request, now_s))
        except Refusal as refusal:
            self.complain(peer, f"{request.op.value} {request.gpu}: {refusal.code.value}: {refusal}", now_s)
            return protocol.declined(refusal.code, str(refusal), request.id, **refusal.figures)
        except DriverError as fault:
            self.complain(peer, f"{request.op.value} {request.gpu}: {fault}", now_s)
            return protocol.declined(Code.DRIVER, str(fault), request.id)

    def complain(self, peer: Peer | None, what: str, now_s: float) -> None:
        """Log what somebody did that was not done; a flood of it is only counted."""
        if self._complaints.take(now_s) > 0:
            self._unlogged += 1
            return
        who = "somebody" if peer is None else f"uid {peer.uid}, pid {peer.process.pid}"
        more = f" ({self._unlogged} more not written)" if self._unlogged else ""
        self._unlogged = 0
        self._log(f"{who}: {ascii(what)[1:-1]}{more}")

    def _do(self, client: int, peer: Peer, request: Request, now_s: float) -> dict[str, object]:
        match request.op:
            case Op.ASK:
                done = self._leases.ask(peer, request.gpu)
            case Op.TAKE:
                done = self._leases.take(client, peer, request.gpu, now_s)
            case Op.SET:
                done = self._leases.set(client, request.gpu, request.limit_w, now_s)
            case Op.RENEW:
                done = self._leases.renew(client, now_s)
            case Op.RELEASE:
                done = self._leases.release(client, request.gpu, now_s)
        return dict(done)


class Server:
    """The loop."""

    def __init__(self, listener: socket.socket, leases: Leases, log: Callable[[str], None]) -> None:
        self._listener = listener
        self._leases = leases
        self._config = leases.site.config
        self._handler = Handler(leases, log)
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, Client] = {}
        self._per_user: Counter[int] = Counter()
        self._messages = Buckets(self._config.messages_per_s, self._config.messages_per_s)
        self._numbers = 0
        self._quiet_ticks = 0
        self._stopped = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then everything is put back."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        signal.set_wakeup_fd(woken.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._selector.register(wake, selectors.EVENT_READ)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while not self._stopped:
                self._turn()
        finally:
            self._leases.drop_all("the helper stops", time.monotonic())
        signal.set_wakeup_fd(-1)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _turn(self) -> None:
        now_s, before_ticks = time.monotonic(), ticks_now()
        ready = self._selector.select(max(self._due_s(now_s) - now_s, 0.0))
        if all(key.fileobj is not self._listener for key, _ in ready):
            self._quiet_ticks = before_ticks  # nobody waited now, so nobody who came later did then
        for key, events in ready:
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Client):
                self._serve(key.data, key.fd, events)
        now_s = time.monotonic()
        for client in list(self._clients.values()):
            self._attend(client, now_s)
        self._messages.tidy(now_s)
        self._leases.tick(now_s)

    def _due_s(self, now_s: float) -> float:
        waiting = [client.read_from_s for client in self._clients.values() if client.has_line and not client.outgoing]
        return min([self._leases.next_s(now_s), *waiting])

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no more files, or a client that has gone already
                self._handler.complain(None, f"cannot be accepted: {error.strerror}", time.monotonic())
                return
            connection.setblocking(False)
            try:
                self._welcome(connection)
            except (UnknownPeer, _FullError) as refused:
                self._turn_away(connection, refused)

    def _welcome(self, connection: socket.socket) -> None:
        peer, pidfd = peer_of(connection, self._quiet_ticks)
        full = self._full_for(peer)
        if full:
            os.close(pidfd)
            raise _FullError(full)
        now_s = time.monotonic()
        self._numbers += 1
        client = Client(self._numbers, connection, pidfd, peer, now_s)
        self._clients[client.number] = client
        self._per_user[peer.uid] += 1
        self._selector.register(connection, selectors.EVENT_READ, client)
        self._selector.register(pidfd, selectors.EVENT_READ, client)

    def _full_for(self, peer: Peer) -> str:
        if len(self._clients) >= self._config.connections:
            return "too many connections"
        mine = self._per_user[peer.uid] >= self._config.connections_per_user
        return "too many connections of this user" if mine else ""

    def _turn_away(self, connection: socket.socket, refused: Exception) -> None:
        code = Code.FULL if isinstance(refused, _FullError) else Code.REFUSED
        self._handler.complain(None, f"turned away: {refused}", time.monotonic())
        with connection, suppress(OSError):
            connection.send(protocol.declined(code, str(refused)))

    def _serve(self, client: Client, fd: int, events: int) -> None:
        if client.number not in self._clients:
            return  # closed earlier in this turn
        if fd == client.pidfd:
            self._close(client, "its process has ended")
            return
        try:
            part = client.connection.recv(MOST_BYTES) if events & selectors.EVENT_READ else None
        except BlockingIOError:
            return
        except OSError as error:
            self._close(client, f"its connection broke: {error.strerror}")
            return
        if part == b"":
            self._close(client, "its connection was closed")
        elif part:
            client.incoming += part
            client.heard_s = time.monotonic()

    def _attend(self, client: Client, now_s: float) -> None:
        """Answer one line of a client if that may be, and decide what is waited for."""
        if client.number not in self._clients:
            return
        if not client.outgoing and not client.closing and client.read_from_s <= now_s:
            self._answer_one(client, now_s)
        if client.outgoing:
            self._send(client)
        if client.number not in self._clients:
            return
        if client.closing and not client.outgoing:
            self._close(client, "it spoke another language")
        elif now_s - client.heard_s > _IDLE_S:
            self._close(client, "it was silent")
        else:
            self._wait_for(client)

    def _answer_one(self, client: Client, now_s: float) -> None:
        line, end, _ = client.incoming.partition(b"\n")
        if len(line) >= MOST_BYTES:
            self._handler.complain(client.peer, f"a line of more than {MOST_BYTES} bytes: {bytes(line[:40])!r}", now_s)
            client.outgoing += protocol.declined(Code.MALFORMED, f"a line has more than {MOST_BYTES} bytes")
            client.closing = True  # where its next line begins is not known
        elif end:
            client.read_from_s = now_s + self._messages.take(client.peer.uid, now_s)
            if client.read_from_s <= now_s:
                del client.incoming[: len(line) + 1]
                client.outgoing += self._handler.answer(client.number, client.peer, bytes(line), now_s)

    def _send(self, client: Client) -> None:
        try:
            del client.outgoing[: client.connection.send(client.outgoing)]
        except BlockingIOError:
            return
        except OSError as error:
            self._close(client, f"its connection broke: {error.strerror}")

    def _wait_for(self, client: Client) -> None:
        """Wait for room while an answer is on its way, for more to read when no line is waiting, or for neither."""
        events = 0 if client.has_line else selectors.EVENT_READ
        if client.outgoing:
            events = selectors.EVENT_WRITE
        if events == client.events:
            return
        if client.events == 0:
            self._selector.register(client.connection, events, client)
        elif events == 0:
            self._selector.unregister(client.connection)
        else:
            self._selector.modify(client.connection, events, client)
        client.events = events

    def _close(self, client: Client, why: str) -> None:
        del self._clients[client.number]
        self._per_user[client.peer.uid] -= 1
        if not self._per_user[client.peer.uid]:
            del self._per_user[client.peer.uid]
        if client.events:
            self._selector.unregister(client.connection)
        self._selector.unregister(client.pidfd)
        client.connection.close()
        os.close(client.pidfd)
        self._leases.drop(client.number, why, time.monotonic())
