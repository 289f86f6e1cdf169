"""Asking a driver that may never answer.

A call that hangs inside the kernel can be neither interrupted nor killed, and would take the asking process with it. So
a forked child asks and tells what it finds as it goes; whoever waits for it goes on when the time is up, and knows from
the child's last words what it was doing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from energy_plugins.cli.check import Check

Say = Callable[[str], None]
"""Tells what is about to be done: ``reading the energy counter of GPU 0``."""

_FIRST_WORD_S = 10.0
"""A child that has not said a word still imports what it needs, from a slow disk perhaps: no driver is to blame."""


@dataclass(frozen=True)
class Answer:
    """What was found, and what the child was doing when it stopped answering or died; None if it came to its end."""

    checks: tuple[Check, ...]
    unfinished: str | None = None
    died: bool = False


class Probe:
    """A child that runs ``work`` from now on. To be made before any thread is: it is a bare fork."""

    def __init__(self, work: Callable[[Say], Iterator[Check]]) -> None:
        reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reader)
            _tell(work, writer)
        os.close(writer)
        self._reader = reader

    def answer(self, within_s: float) -> Answer:
        """Return what is found within ``within_s`` seconds of the child's first word. Never waits longer; ends it."""
        received, ended = bytearray(), False
        end_s = time.monotonic() + _FIRST_WORD_S
        while not ended and (left_s := end_s - time.monotonic()) > 0:
            if select.select([self._reader], [], [], left_s)[0]:
                part = os.read(self._reader, 1 << 16)
                end_s = end_s if received else time.monotonic() + within_s
                received += part
                ended = not part
        os.close(self._reader)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, os.WNOHANG)  # what hangs in the kernel does not die; it is left to init, as a zombie is
        return _heard(bytes(received), died=ended)


def _heard(received: bytes, *, died: bool) -> Answer:
    checks, doing = [], "starting"
    for line in received.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # cut off in mid-sentence
        match json.loads(line):
            case {"check": found}:
                checks.append(Check.read(found))
            case {"doing": str(doing)}:
                pass
            case {"done": True}:
                return Answer(tuple(checks))
    return Answer(tuple(checks), unfinished=doing, died=died)


def _tell(work: Callable[[Say], Iterator[Check]], writer: int) -> None:
    """Do the work in the child and end it."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):  # a child that hangs must not keep the reader of our output waiting
            os.dup2(nowhere, standard)
        with os.fdopen(writer, "wb", buffering=0) as out:
            for check in work(lambda doing: _send(out, {"doing": doing})):
                _send(out, {"check": check.plain()})
            _send(out, {"done": True})
    finally:
        os._exit(0)  # nothing of the parent's is to be tidied up here


def _send(out: BinaryIO, line: object) -> None:
    out.write(json.dumps(line).encode() + b"\n")
