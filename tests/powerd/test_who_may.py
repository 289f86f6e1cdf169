"""Who may set what: real peers of other uids on a real socket."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from powerd_site import ALICE, BOB, Person, Site, in_a_group, wait_until

from energy_plugins.powerd import peers
from energy_plugins.testing import HiddenProcesses, MigMode, MissingSymbol, ThroughMps
from energy_plugins.testing.faults import Fault

People = Callable[..., Person]

pytest_plugins = ["powerd_fixtures"]

CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000  # linux/sched.h
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def in_new_namespace(flag: int) -> Callable[[], None]:
    """As a container's runtime does: for CLONE_NEWPID, whoever is forked afterwards is in it."""

    def unshare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(flag) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        if flag == CLONE_NEWUSER:
            Path("/proc/self/uid_map").write_text("0 0 1")

    return unshare


def may_unshare(flag: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            in_new_namespace(flag)()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def refused(answer: dict[str, object], why: str) -> bool:
    return answer["ok"] is False and answer["error"] == "refused" and why in str(answer["why"])


def test_a_user_sets_the_limit_of_a_gpu_on_which_it_alone_computes(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    assert alice.say(op="renew") == {"ok": True, "leases": {site.gpu: 450.0}, "ended": {}}
    assert alice.say(op="release", gpu=site.gpu) == {"ok": True, "restored": True}
    assert site.limit_w() == 700.0
    assert site.entries() == []


def test_another_process_of_the_same_user_makes_no_difference(site: Site, person: People) -> None:
    site.start()
    person(ALICE).compute()
    person(ALICE).limit(site, 450.0)


def test_another_users_gpu_is_refused(site: Site, person: People) -> None:
    site.start()
    alice, bob = person(ALICE), person(BOB)
    alice.compute(gpu=0)
    bob.compute(gpu=1)
    bob.connect()
    assert refused(bob.take(site, gpu=0), "others compute")
    assert refused(bob.take(site, gpu=0), "others compute")  # asking again is of no use
    assert bob.set(site, 300.0, gpu=0)["error"] == "no_lease"
    assert bob.say(op="release", gpu=site.gpu)["error"] == "no_lease"
    assert site.limit_w(0) == 700.0


def test_a_gpu_shared_with_another_user_is_refused(site: Site, person: People) -> None:
    site.start()
    alice, bob = person(ALICE), person(BOB)
    alice.compute()
    bob.compute()
    alice.connect()
    assert refused(alice.take(site), "others compute")
    assert refused(alice.take(site), "others compute")
    assert site.limit_w() == 700.0


def test_a_gpu_of_nobody_is_refused(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.connect()
    assert refused(alice.take(site), "no process of yours")


def test_a_gpu_that_is_not_here_is_refused(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.connect()
    assert refused(alice.say(op="take", gpu="GPU-0"), "no such GPU")


def test_a_lease_ends_when_others_come_to_the_gpu(site: Site, person: People) -> None:
    site.start()
    alice, bob = person(ALICE), person(BOB)
    alice.limit(site, 450.0)
    bob.compute()
    wait_until(lambda: site.limit_w() == 700.0)
    ended = alice.say(op="renew")["ended"]
    assert ended == {site.gpu: {"error": "refused", "why": "others compute on the GPU"}}
    assert alice.set(site, 400.0)["error"] == "no_lease"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (MigMode(), "MIG"),
        (ThroughMps(), "MPS"),
        (HiddenProcesses(), "no process of yours"),
        (HiddenProcesses(foreign_pids=True), "cannot be told"),
    ],
    ids=["MIG", "MPS", "hidden", "other pids"],
)
def test_a_gpu_that_is_not_surely_ones_own_is_refused(site: Site, person: People, fault: Fault, why: str) -> None:
    site.simulation.gpus[0].inject(fault)
    site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    assert refused(alice.take(site), why)
    assert site.limit_w() == 700.0


def test_a_driver_that_does_not_say_who_computes_allows_nothing(site: Site, person: People) -> None:
    for version in ("_v3", "_v2"):
        site.simulation.gpus[0].inject(MissingSymbol(f"nvmlDeviceGetComputeRunningProcesses{version}"))
    site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    assert alice.take(site)["error"] == "driver"


def test_a_grant_of_the_site_allows_what_is_refused_else(site: Site, person: People) -> None:
    site.configure(f'[[grant]]\nusers = [{BOB}]\ngpus = ["{site.gpu}"]\n')
    site.start()
    alice, bob = person(ALICE), person(BOB)
    alice.compute(gpu=0)
    alice.compute(gpu=1)
    bob.connect()
    assert bob.take(site, gpu=0)["ok"]
    assert bob.set(site, 500.0, gpu=0)["ok"]
    assert refused(bob.take(site, gpu=1), "others compute")
    assert site.limit_w(0) == 500.0


def test_a_grant_to_a_group_counts_for_its_members(site: Site, person: People) -> None:
    site.configure('[[grant]]\ngroups = [20001]\ngpus = ["*"]\n')
    site.start()
    member = person(0, in_a_group)
    stranger = person(BOB)
    for one in (member, stranger):
        one.connect()
    assert member.take(site)["ok"]
    assert refused(stranger.take(site, gpu=1), "no process of yours")


def test_one_client_owns_a_gpu(site: Site, person: People) -> None:
    site.configure(f'[[grant]]\nusers = [{BOB}]\ngpus = ["*"]\n')
    site.start()
    alice, again, bob = person(ALICE), person(ALICE), person(BOB)
    alice.limit(site, 450.0)
    for one in (again, bob):
        one.connect()
    assert again.take(site) == {
        "ok": False,
        "error": "owned",
        "why": "another client has this GPU already",
        "pid": alice.pid,
    }
    assert "pid" not in bob.take(site)  # whose process it is, is no business of another user's
    assert again.set(site, 300.0)["error"] == "no_lease"
    assert again.say(op="release", gpu=site.gpu)["error"] == "no_lease"
    assert site.limit_w() == 450.0


def test_a_pid_in_a_message_is_no_proof(site: Site, person: People) -> None:
    site.start()
    alice, bob = person(ALICE), person(BOB)
    alice.compute()
    bob.connect()
    for forged in ({"pid": alice.pid}, {"uid": ALICE}, {"pid": alice.pid, "uid": 0, "as": "root"}):
        assert bob.say(op="take", gpu=site.gpu, **forged)["error"] == "malformed"
    assert refused(bob.take(site), "others compute")


def test_root_gets_no_more_than_others(site: Site, person: People) -> None:
    site.start()
    alice, root = person(ALICE), person(0)
    alice.compute(gpu=0)
    root.connect()
    assert refused(root.take(site, gpu=0), "others compute")
    root.compute(gpu=1)
    assert root.take(site, gpu=1)["ok"]


@pytest.mark.parametrize("flag", [CLONE_NEWUSER, CLONE_NEWPID], ids=["user", "pid"])
def test_root_of_a_container_is_not_root_of_the_machine_nor_of_another_container(
    site: Site, person: People, flag: int
) -> None:
    if not may_unshare(flag):
        pytest.skip("namespaces cannot be made here")
    site.configure('[[grant]]\nusers = [0]\ngpus = ["*"]\n')
    site.start()
    host = person(0)
    host.compute(gpu=0)
    inside = person(0, in_new_namespace(flag)) if flag == CLONE_NEWUSER else person(0, contained)
    inside.connect()
    assert refused(inside.take(site, gpu=0), "others compute")  # the same uid, and yet somebody else
    assert refused(inside.take(site, gpu=1), "no process of yours")  # nor is the grant to root meant for it
    inside.compute(gpu=1)
    if flag == CLONE_NEWUSER:  # in a pid namespace of its own, it launches by a number that the driver knows better
        assert inside.take(site, gpu=1)["ok"]


def contained() -> None:
    """Go on in a process of a new pid namespace, as what a container's runtime starts does."""
    in_new_namespace(CLONE_NEWPID)()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)


def test_a_grant_holds_in_containers_only_if_it_says_so(site: Site, person: People) -> None:
    if not may_unshare(CLONE_NEWUSER):
        pytest.skip("namespaces cannot be made here")
    site.configure('[[grant]]\nusers = [0]\ngpus = ["*"]\ncontainers = true\n')
    site.start()
    inside = person(0, in_new_namespace(CLONE_NEWUSER))
    inside.connect()
    assert inside.take(site)["ok"]


@pytest.mark.alone
def test_a_lease_does_not_pass_to_a_process_that_gets_the_pid_of_a_dead_one(site: Site, person: People) -> None:
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip("pids cannot be chosen here")
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    alice.kill()
    alice.end()
    wait_until(lambda: site.limit_w() == 700.0, within_s=2.0)
    for _ in range(50):  # other processes start too
        LAST_PID.write_text(str(alice.pid - 1))
        bob = person(BOB)
        if bob.pid == alice.pid:
            break
    assert bob.pid == alice.pid
    # The driver goes on listing the number, which now is Bob's: so it is Bob's GPU, and he has no lease.
    bob.connect()
    assert bob.set(site, 300.0)["error"] == "no_lease"
    assert bob.say(op="renew") == {"ok": True, "leases": {}, "ended": {}}
    assert site.limit_w() == 700.0


def test_a_connection_made_by_another_user_carries_only_that_users_authority(site: Site, person: People) -> None:
    """What was connected as one user and is used as another: a set-uid program, or one that gave up its rights."""
    site.start()
    alice, turncoat = person(ALICE), person(0)
    alice.compute()
    turncoat.call(os.setresuid, ALICE, ALICE, 0)
    turncoat.connect()
    answer = turncoat.take(site)
    assert answer["error"] == "refused"
    assert site.limit_w() == 700.0


def test_a_number_is_proof_only_of_a_process_that_had_it_when_nobody_waited() -> None:
    """Before Linux 6.5 the kernel gives no pidfd of a peer; what is younger than the connection may be another."""
    before = peers.ticks_now() - 100  # a second ago
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        with pytest.raises(peers.UnknownPeer, match="only just started"):
            peers.pidfd_by_number(child, before)
        time.sleep(0.05)
        os.close(peers.pidfd_by_number(child, peers.ticks_now()))
    finally:
        os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with pytest.raises(peers.UnknownPeer):  # a zombie has its number still, and is nobody any more
        peers.pidfd_by_number(child, peers.ticks_now())
    os.waitpid(child, 0)


def test_a_process_of_two_users_is_nobodys() -> None:
    """As a set-uid program runs: with the rights of one user and by the will of another."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(ALICE, BOB, BOB)
        os.write(tell, b".")
        signal.pause()
    os.read(ready, 1)
    assert peers.process_of(child).uid is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (ready, tell):
        os.close(end)
