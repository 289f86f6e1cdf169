"""Whatever ends, the limit found is back: two seconds after a client's death, or when the helper starts again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from powerd_site import ALICE, Person, Site, wait_until

from energy_plugins.testing import GpuLost, Hang, Ignored, NoPermission

People = Callable[..., Person]

pytest_plugins = ["powerd_fixtures"]
WITHIN_S = 2.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP])
def test_the_limit_found_is_back_after_the_death_of_the_client(site: Site, person: People, number: int) -> None:
    site.set_limit_w(650.0)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    alice.kill(number)
    wait_until(lambda: (site.limit_w(), site.entries()) == (650.0, []), WITHIN_S)


def fork_workers(count: int) -> list[int]:
    """Leave processes that have inherited the connection and sleep, as DataLoader workers do."""
    workers = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        workers.append(pid)
    return workers


def test_workers_that_inherited_the_connection_do_not_keep_the_limit(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    workers = alice.call(fork_workers, 3)
    alice.kill()
    wait_until(lambda: site.limit_w() == 700.0, WITHIN_S)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)


def test_the_death_of_a_whole_process_group_is_covered(site: Site, person: People) -> None:
    """As is that of a control group: the helper is in neither."""
    site.start()
    alice = person(ALICE, os.setsid)
    alice.limit(site, 450.0)
    alice.call(fork_workers, 3)
    os.killpg(alice.pid, signal.SIGKILL)
    wait_until(lambda: site.limit_w() == 700.0, WITHIN_S)


def the_entry(site: Site) -> Path:
    (path,) = site.journal.glob("*.json")
    return path


SPOILT: dict[str, Callable[[Site], object]] = {
    "the folder is removed": lambda site: shutil.rmtree(site.journal),
    "the entry is removed": lambda site: the_entry(site).unlink(),
    "the entry is cut": lambda site: os.truncate(the_entry(site), 10),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoiled_journal_keeps_nothing_from_being_put_back(site: Site, person: People, spoil: str) -> None:
    """The helper remembers what it found."""
    site.set_limit_w(650.0)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    SPOILT[spoil](site)
    alice.kill()
    wait_until(lambda: (site.limit_w(), site.entries()) == (650.0, []), WITHIN_S)


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoiled_journal_is_mended_for_the_next_helper(site: Site, person: People, spoil: str) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    SPOILT[spoil](site)
    wait_until(lambda: site.entries() != [] and "found_mw" in the_entry(site).read_text(), 5.0)
    site.stop(signal.SIGKILL)
    site.start()
    wait_until(lambda: (site.limit_w(), site.entries()) == (700.0, []), WITHIN_S)


CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


@pytest.fixture
def cgroup() -> Iterator[Path]:
    for root in CGROUPS:
        folder = root / f"energy-powerd-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / "cgroup.kill").exists():
            yield folder
            folder.rmdir()
            return
        folder.rmdir()
    pytest.skip("no control group can be made and killed here")


def test_the_death_of_a_whole_control_group_is_covered(site: Site, person: People, cgroup: Path) -> None:
    site.start()
    alice = person(ALICE)
    (cgroup / "cgroup.procs").write_text(str(alice.pid))
    alice.limit(site, 450.0)
    alice.call(fork_workers, 3)
    (cgroup / "cgroup.kill").write_text("1")
    wait_until(lambda: site.limit_w() == 700.0, WITHIN_S)
    alice.end()
    wait_until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())


def test_a_lease_ends_with_its_connection(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    alice.connect()  # the one before is closed
    wait_until(lambda: site.limit_w() == 700.0, WITHIN_S)


def test_a_lease_without_a_heartbeat_ends_and_its_client_hears_of_it(site: Site, person: People) -> None:
    site.configure(lease_s=1.0)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    for _ in range(4):
        time.sleep(0.5)
        assert alice.say(op="renew")["leases"] == {site.gpu: 450.0}
    alice.kill(signal.SIGSTOP)
    wait_until(lambda: site.limit_w() == 700.0, 3.0)
    alice.kill(signal.SIGCONT)
    answer = alice.set(site, 400.0)
    assert (answer["error"], answer["ended"]) == ("no_lease", True)
    assert "not heard of" in str(answer["why"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_helper_puts_everything_back_when_it_is_stopped(site: Site, person: People, number: int) -> None:
    site.start()
    person(ALICE).limit(site, 450.0, gpu=0)
    person(ALICE).limit(site, 350.0, gpu=1)
    assert site.stop(number) == 0
    assert (site.limit_w(0), site.limit_w(1)) == (700.0, 700.0)
    assert site.entries() == []
    assert not site.socket.exists()


def test_a_killed_helper_puts_back_at_its_next_start_what_was_leased(site: Site, person: People) -> None:
    site.set_limit_w(650.0)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    site.stop(signal.SIGKILL)
    assert site.limit_w() == 450.0
    assert len(site.entries()) == 1
    site.start()
    assert site.limit_w() == 650.0
    assert site.entries() == []
    assert alice.raw(b"") == {"closed": True}  # the client hears that it has no lease any more
    alice.connect()
    assert alice.take(site)["ok"]
    assert alice.set(site, 400.0)["ok"]
    assert site.limit_w() == 400.0


def test_a_change_of_an_administrator_is_respected_while_the_limit_is_leased(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    site.set_limit_w(300.0)
    answer = alice.set(site, 500.0)
    assert answer["error"] == "foreign"
    assert site.limit_w() == 300.0
    alice.kill()
    wait_until(lambda: site.entries() == [])
    assert site.limit_w() == 300.0


def test_a_change_of_an_administrator_is_noticed_and_told(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    site.set_limit_w(300.0)
    wait_until(lambda: site.entries() == [], 4.0)
    ended = alice.say(op="renew")["ended"]
    assert isinstance(ended, dict)
    assert ended[site.gpu]["error"] == "foreign"
    assert site.limit_w() == 300.0


def test_a_change_of_an_administrator_is_respected_at_the_next_start(site: Site, person: People) -> None:
    site.start()
    person(ALICE).limit(site, 450.0)
    site.stop(signal.SIGKILL)
    site.set_limit_w(300.0)
    site.start()
    assert site.limit_w() == 300.0
    assert site.entries() == []


def test_after_a_reboot_nothing_is_put_back(site: Site, person: People) -> None:
    site.start()
    person(ALICE).limit(site, 450.0)
    site.stop(signal.SIGKILL)
    (entry,) = site.journal.glob("*.json")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    entry.write_text(entry.read_text().replace(boot_id, "00000000-0000-0000-0000-000000000000"))
    site.start()
    assert site.limit_w() == 450.0  # not ours: the same number by chance
    assert site.entries() == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 1}', b"\xff" * 100, b"[" * 100_000],
    ids=["empty", "cut off", "a list", "another version", "no text", "deep"],
)
def test_a_journal_that_cannot_be_read_keeps_its_gpu_from_being_leased(
    site: Site, person: People, content: bytes
) -> None:
    site.journal.mkdir()
    (site.journal / f"{site.gpu}.json").write_bytes(content)
    site.start()
    assert "cannot be put back yet" in site.log()
    alice = person(ALICE)
    alice.compute(0)
    alice.connect()
    assert "could not be put back" in str(alice.take(site)["why"])
    alice.limit(site, 450.0, gpu=1)
    assert site.limit_w(0) == 700.0


def test_a_lost_gpu_is_put_back_when_it_answers_again(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    site.simulation.gpus[0].inject(GpuLost())
    assert alice.say(op="release", gpu=site.gpu) == {"ok": True, "restored": False}
    again = person(ALICE)
    again.compute()
    again.connect()
    assert not again.take(site)["ok"]
    site.simulation.gpus[0].heal()
    wait_until(lambda: site.limit_w() == 700.0)
    wait_until(lambda: site.entries() == [])


def test_a_driver_that_takes_a_limit_and_does_not_set_it_is_found_out(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    alice.take(site)
    site.simulation.gpus[0].inject(Ignored())
    answer = alice.set(site, 450.0)
    assert (answer["error"], answer["ended"]) == ("driver", True)
    assert site.entries() == []


def test_a_driver_that_refuses_leaves_nothing_behind(site: Site, person: People) -> None:
    site.simulation.gpus[0].inject(NoPermission())
    site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    assert alice.take(site)["ok"]
    assert alice.set(site, 450.0)["error"] == "driver"
    assert (site.limit_w(), site.entries()) == (700.0, [])


def test_a_helper_killed_between_journal_and_driver_leaves_what_was_found(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 600.0)
    site.simulation.gpus[0].inject(Hang("nvmlDeviceSetPowerManagementLimit", 1.0))
    before = (site.journal / site.entries()[0]).read_bytes()
    alice.call(_send_only, site.gpu)
    wait_until(lambda: (site.journal / site.entries()[0]).read_bytes() != before)
    site.stop(signal.SIGKILL)
    site.simulation.gpus[0].heal()
    assert site.limit_w() == 600.0
    site.start()
    assert (site.limit_w(), site.entries()) == (700.0, [])


def _send_only(gpu: str) -> None:
    from powerd_site import _Self

    _Self.connection.sendall(f'{{"op": "set", "gpu": "{gpu}", "limit_w": 500}}\n'.encode())


def test_a_second_helper_does_not_start(site: Site, person: People) -> None:
    site.start()
    person(ALICE).limit(site, 450.0)
    done = subprocess.run(site.command(), env={}, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1, done.stderr
    assert site.limit_w() == 450.0
