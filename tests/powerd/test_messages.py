"""What is not a message of the language is answered, logged and without effect; nobody holds up anybody."""

from __future__ import annotations

import json
import random
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from powerd_site import ALICE, BOB, Person, Site, _Self, wait_until

from energy_plugins.powerd import protocol
from energy_plugins.powerd.protocol import MOST_BYTES, Malformed, Op

People = Callable[..., Person]

pytest_plugins = ["powerd_fixtures"]

GPU = "GPU-12345678-1234-1234-1234-123456789012"
MALFORMED = [
    b"",
    b"hello",
    b"[]",
    b"null",
    b"3",
    b'"set"',
    b"{",
    b"{}",
    b'{"op": "reboot"}',
    b'{"op": ["set"]}',
    b'{"op": {"a": 1}}',
    b'{"op": "renew", "gpu": "GPU-1"}',
    b'{"op": "set", "gpu": "GPU-1"}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": "450"}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": true}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": null}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": NaN}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": Infinity}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": 1e999}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": -450}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": 0}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": 1e6}',
    b'{"op": "set", "gpu": "GPU-1", "limit_w": ' + b"9" * 900 + b"}",
    b'{"op": "set", "gpu": "GPU-1", "limit_w": 450, "force": true}',
    b'{"op": "set", "gpu": "GPU-1", "gpu": "GPU-2", "limit_w": 450}',
    b'{"op": "take", "gpu": null}',
    b'{"op": "take", "gpu": 0}',
    b'{"op": "take", "gpu": "0"}',
    b'{"op": "take", "gpu": "MIG-1"}',
    b'{"op": "take", "gpu": "GPU-1\\u0000"}',
    b'{"op": "take", "gpu": "GPU-../../etc/passwd"}',
    b'{"op": "take", "gpu": "GPU-1\\n"}',
    b'{"op": "take", "gpu": "GPU-\\ud800"}',
    b'{"op": "renew", "id": -1}',
    b'{"op": "renew", "id": 1.5}',
    b'{"op": "renew", "id": true}',
    b'{"op": "renew", "id": "x"}',
    b'{"op": "renew"} {"op": "renew"}',
    b'{"op": "renew"',
    b"\xff\xfe{",
    b"\x00" * 10,
    '{"op": "renew"}'.encode("utf-16"),
    b"[" * 1000,
    b'{"a":' * 200,
    b"\xef\xbb\xbf" + b'{"op": "renew"}',
]


@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: repr(line)[:40])
def test_malformed_lines_are_told_so(line: bytes) -> None:
    with pytest.raises(Malformed):
        protocol.read(line)


@given(st.sampled_from(Op), st.floats(1, 1e5), st.none() | st.integers(0, 2**53 - 1))
def test_well_formed_lines_are_read_as_they_were_meant(op: Op, limit_w: float, number: int | None) -> None:
    message: dict[str, object] = {"op": op.value}
    if op is not Op.RENEW:
        message["gpu"] = GPU
    if op is Op.SET:
        message["limit_w"] = limit_w
    if number is not None:
        message["id"] = number
    request = protocol.read(json.dumps(message).encode())
    assert (request.op, request.id) == (op, number)
    assert request.limit_w == (limit_w if op is Op.SET else 0.0)


@given(
    st.binary(max_size=MOST_BYTES)
    | st.text(max_size=200).map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.sampled_from(["set", "take", GPU]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["op", "gpu", "limit_w", "id"]), inner)
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_bytes_make_the_reader_fail(line: bytes) -> None:
    try:
        request = protocol.read(line)
    except Malformed:
        return
    assert 0 <= request.limit_w <= 1e5
    assert protocol.accepted(request).endswith(b"\n")


def test_malformed_messages_are_answered_and_logged_and_change_nothing(site: Site, person: People) -> None:
    site.configure(messages_per_s=1000)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    for line in MALFORMED:
        answer = alice.raw(line + b"\n")
        assert (answer["ok"], answer["error"]) == (False, "malformed"), line
    assert alice.say(op="renew") == {"ok": True, "leases": {site.gpu: 450.0}, "ended": {}}
    assert f"uid {ALICE}, pid {alice.pid}: no JSON" in site.log()
    assert "hello" in site.log()
    assert site.log().replace("\n", "").isascii()
    assert site.log().replace("\n", "").isprintable()  # whatever others sent


def test_a_line_without_an_end_is_refused_and_the_connection_closed(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    assert alice.raw(b"x" * (MOST_BYTES + 1))["error"] == "malformed"
    assert alice.raw(b"") == {"closed": True}
    wait_until(lambda: site.limit_w() == 700.0, 2.0)


def test_a_message_that_is_cut_off_has_no_effect(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    alice.call(send, b'{"op": "set", "gpu": "' + site.gpu.encode() + b'", "limit_w": 300}')
    time.sleep(0.3)
    assert site.limit_w() == 450.0
    alice.kill()
    wait_until(lambda: site.limit_w() == 700.0, 2.0)
    assert "300 W" not in site.log()


def test_messages_in_pieces_and_in_heaps_are_taken_one_by_one(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    line = json.dumps({"op": "renew", "id": 1}).encode() + b"\n"
    for byte in line[:-1]:
        alice.call(send, bytes([byte]))
    assert alice.raw(line[-1:])["id"] == 1
    heap = b"".join(json.dumps({"op": "renew", "id": number}).encode() + b"\n" for number in range(40))
    answers = [alice.raw(heap), *(alice.raw(b"") for _ in range(39))]
    assert [answer["id"] for answer in answers] == list(range(40))


def test_messages_of_two_clients_do_not_mix(site: Site, person: People) -> None:
    site.start()
    alice, bob = person(ALICE), person(BOB)
    alice.compute(0)
    bob.compute(1)
    for one in (alice, bob):
        one.connect()
    takes = [json.dumps({"op": "take", "gpu": gpu.uuid}).encode() + b"\n" for gpu in site.simulation.gpus]
    alice.call(send, takes[0][:20])
    bob.call(send, takes[1][:30])
    alice.call(send, takes[0][20:-1])
    assert bob.raw(takes[1][30:])["ok"]
    assert alice.raw(takes[0][-1:])["ok"]


def test_200_clients_at_once_are_all_served(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    crowd = person(BOB)
    began_s = time.monotonic()
    served = crowd.call(ask_in_a_crowd, 200, site.gpu)
    assert served == 200
    assert time.monotonic() - began_s < 10.0
    assert alice.say(op="renew")["leases"] == {site.gpu: 450.0}


@pytest.mark.alone
def test_whoever_asks_too_much_is_read_later_and_others_are_not_held_up(site: Site, person: People) -> None:
    site.configure(messages_per_s=50)
    site.start()
    alice, flood = person(ALICE), person(BOB)
    alice.limit(site, 450.0)
    flood.connect()
    flood.call(send_for, 1.0, b'{"op": "renew"}\n' * 100)
    began_s = time.monotonic()
    assert alice.say(op="renew")["leases"] == {site.gpu: 450.0}
    assert time.monotonic() - began_s < 0.5


def test_many_connections_do_not_give_a_user_a_larger_share(site: Site, person: People) -> None:
    site.configure(messages_per_s=20)
    site.start()
    crowd = person(BOB)
    crowd.call(ask_in_a_crowd, 20, site.gpu)  # all at once
    began_s = time.monotonic()
    assert crowd.call(ask_in_a_crowd, 40, site.gpu) == 40
    assert time.monotonic() - began_s > 1.5


@pytest.mark.alone
def test_a_client_that_does_not_read_holds_up_nobody_and_loses_its_lease(site: Site, person: People) -> None:
    site.configure(lease_s=2.0, messages_per_s=100_000)
    site.start()
    deaf, alice = person(ALICE), person(ALICE)
    deaf.limit(site, 300.0, gpu=0)
    alice.limit(site, 450.0, gpu=1)
    deaf.call(send_for, 1.0, b'{"op": "nonsense"}\n' * 100)  # until its answers fill all there is between the two
    for _ in range(4):
        began_s = time.monotonic()
        assert alice.say(op="renew")["leases"] == {site.simulation.gpus[1].uuid: 450.0}
        assert time.monotonic() - began_s < 0.5
        time.sleep(0.6)
    assert site.limit_w(0) == 700.0
    assert site.limit_w(1) == 450.0


def test_a_user_has_no_more_connections_than_the_site_allows(site: Site, person: People) -> None:
    site.configure(connections_per_user=8)
    site.start()
    greedy, alice = person(BOB), person(ALICE)
    assert greedy.call(ask_in_a_crowd, 20, site.gpu) == 8
    alice.limit(site, 450.0)


def test_the_helper_outlives_a_lack_of_files(site: Site, person: People) -> None:
    helper = site.start()
    alice, greedy = person(ALICE), person(BOB)
    alice.limit(site, 450.0)
    files = len(list(Path(f"/proc/{helper}/fd").iterdir()))
    resource.prlimit(helper, resource.RLIMIT_NOFILE, (files + 5, files + 500))
    greedy.call(ask_in_a_crowd, 20, site.gpu, 1.0)
    assert alice.say(op="renew")["leases"] == {site.gpu: 450.0}
    greedy.kill()
    greedy.end()
    again = person(BOB)
    again.connect()
    assert again.say(op="renew")["ok"]


def test_random_bytes_on_the_socket_change_nothing(site: Site, person: People) -> None:
    """The short fuzz; `make fuzz` is the long one."""
    site.configure(messages_per_s=100_000)
    site.start()
    alice, bob = person(ALICE), person(BOB)
    alice.limit(site, 450.0)
    seen = bob.call(babble, 3.0, site.gpu)
    assert seen > 100
    assert alice.say(op="renew") == {"ok": True, "leases": {site.gpu: 450.0}, "ended": {}}
    assert site.limit_w(1) == 700.0
    bob.kill()
    alice.kill()
    wait_until(lambda: site.limit_w() == 700.0, 2.0)
    assert "Traceback" not in site.log()
    assert site.stop() == 0


def send(data: bytes) -> None:
    _Self.connection.sendall(data)


def send_for(seconds: float, data: bytes) -> None:
    """Send and send and never read, until ``seconds`` have passed without room."""
    _Self.connection.settimeout(seconds)
    for _ in range(100_000):
        try:
            _Self.connection.sendall(data)
        except TimeoutError:
            return


def ask_in_a_crowd(count: int, gpu: str, patience_s: float = 10.0) -> int:
    """Connect ``count`` times, then ask on all, then read all; return how many were answered as they should be."""
    crowd = []
    for _ in range(count):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.settimeout(patience_s)
        one.connect(str(_Self.site.socket))
        crowd.append(one)
    _Self.connection = crowd[0]
    answered = 0
    for number, one in enumerate(crowd):
        try:
            one.sendall(json.dumps({"op": "ask", "gpu": gpu, "id": number}).encode() + b"\n")
        except OSError:
            continue
    for number, one in enumerate(crowd):
        try:
            answer = json.loads(one.makefile("rb").readline())
        except (OSError, ValueError):
            continue
        answered += answer.get("id") == number and answer.get("allowed") is False
    return answered


def babble(seconds: float, gpu: str) -> int:
    """Say mutated messages on many connections; return how many answers came."""
    dice = random.Random(5)
    words = [
        b'{"op": "set", "gpu": "%s", "limit_w": 300}' % gpu.encode(),
        b'{"op": "take", "gpu": "%s"}' % gpu.encode(),
    ]
    words += [b'{"op": "release", "gpu": "%s"}' % gpu.encode(), b'{"op": "renew"}', *MALFORMED]
    ends_s = time.monotonic() + seconds
    answers = 0
    while time.monotonic() < ends_s:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(0.02)
            one.connect(str(_Self.site.socket))
            for _ in range(dice.randrange(1, 20)):
                word = bytearray(dice.choice(words))
                for _ in range(dice.choice((0, 1, 3))):
                    word[dice.randrange(len(word) + 1) : dice.randrange(len(word) + 1)] = dice.randbytes(1)
                try:
                    one.sendall(bytes(word) + dice.choice((b"\n", b"\n", b"\n\n", b"")))
                    answers += one.recv(1 << 16).count(b"\n")
                except OSError:
                    break
    return answers
