"""A corpus, and mutations of it, said to a helper on a real socket by a user who has one of its GPUs."""

from __future__ import annotations

import random
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from powerd_site import ALICE, BOB, Person, Site, _Self

from energy_plugins.testing import simulated_gpus


def over_the_socket(corpus: Sequence[bytes], messages: int) -> dict[str, float]:
    """Say ``messages``, and return how many were said, how many answers came, and how many faults there were."""
    with tempfile.TemporaryDirectory(prefix="energy-powerd-") as folder, simulated_gpus(count=3) as simulation:
        site = Site(Path(folder), simulation)
        site.configure("[[range]]\nmin_w = 300\nmax_w = 600\n", messages_per_s=100_000, lease_s=5)
        site.start()
        alice, bob, talker = Person(site, ALICE), Person(site, BOB), Person(site, BOB)
        try:
            alice.limit(site, 450.0, gpu=1)
            bob.compute(gpu=0)
            said = answers = faults = 0
            began_s = time.monotonic()
            seed = 0
            while said < messages:
                seed += 1
                more, heard = talker.call(_babble, list(corpus), 500, seed)
                said, answers = said + more, answers + heard
                faults += site.limit_w(1) != 450.0
                faults += not (300.0 <= site.limit_w(0) <= 600.0 or site.limit_w(0) == 700.0)
                faults += alice.say(op="renew").get("leases") != {simulation.gpus[1].uuid: 450.0}
            seconds = time.monotonic() - began_s
            talker.kill()
            alice.kill()
            time.sleep(2.0)
            faults += [site.limit_w(gpu) for gpu in range(3)] != [700.0] * 3
            faults += bool(site.entries())
            faults += "Traceback" in site.log()
            faults += site.stop() != 0
        finally:
            for person in (alice, bob, talker):
                person.end()
            site.end()
    return {"messages": said, "answers": answers, "seconds": seconds, "faults": faults}


def _babble(corpus: list[bytes], count: int, seed: int) -> tuple[int, int]:
    dice = random.Random(seed)
    uuids = [gpu.uuid.encode() for gpu in _Self.site.simulation.gpus]
    said = answers = 0
    while said < count:
        data = bytearray(dice.choice(corpus))
        for _ in range(dice.choice((0, 0, 1, 2, 5))):
            data[dice.randrange(len(data) + 1) : dice.randrange(len(data) + 1)] = dice.randbytes(dice.randrange(3))
        text = bytes(data) + b"\n"
        for number, uuid in enumerate(uuids):
            text = text.replace(b"{%d}" % number, uuid)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.connect(str(_Self.site.socket))
            one.settimeout(5.0)
            try:
                while text:  # in pieces of any length, also across lines
                    piece = dice.randrange(1, 600)
                    one.sendall(text[:piece])
                    said += text[:piece].count(b"\n")
                    text = text[piece:]
                one.shutdown(socket.SHUT_WR)
                while part := one.recv(1 << 16):
                    answers += part.count(b"\n")
            except OSError:
                continue
    return said, answers
