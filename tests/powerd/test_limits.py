"""What may be set: within the card's range and the site's, never above what was found, not too often."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from powerd_site import ALICE, Person, Site

from energy_plugins.powerd.config import Config, Range
from energy_plugins.powerd.policy import Bounds, bounds

People = Callable[..., Person]

pytest_plugins = ["powerd_fixtures"]

WATTS = st.integers(1, 1000)


@given(WATTS, WATTS, WATTS, WATTS, WATTS, st.integers(1, 100_000_000), st.booleans())
def test_nothing_outside_the_sites_or_the_cards_range_is_ever_chosen(
    one: int, two: int, three: int, four: int, found: int, asked_mw: int, above: bool
) -> None:
    card = Bounds(min(one, two) * 1000, max(one, two) * 1000)
    site = Range(min(three, four), max(three, four))
    may = bounds("GPU-1", card, found * 1000, Config(nvml=Path("/n"), ranges=(site,), above_found=above))
    if may.min_mw > may.max_mw:
        return  # refused: see test_a_site_range_without_room_refuses
    chosen_mw = may.clamp(asked_mw)
    assert card.min_mw <= chosen_mw <= card.max_mw
    assert site.min_w * 1000 <= chosen_mw <= site.max_w * 1000
    assert above or chosen_mw <= found * 1000
    if may.min_mw <= asked_mw <= may.max_mw:
        assert chosen_mw == asked_mw


def test_a_range_for_one_gpu_goes_before_that_for_all() -> None:
    config = Config(nvml=Path("/n"), ranges=(Range(100, 200), Range(300, 400, frozenset({"GPU-1"}))))
    assert config.range_of("GPU-1").min_w == 300
    assert config.range_of("GPU-2").min_w == 100


@pytest.mark.parametrize(
    ("asked_w", "set_w"),
    [(100.0, 300.0), (299.9, 300.0), (450.0, 450.0), (601.0, 600.0), (1e5, 600.0), (1e-300, 300.0)],
)
def test_a_limit_outside_the_sites_range_becomes_the_nearest_inside(
    site: Site, person: People, asked_w: float, set_w: float
) -> None:
    site.configure("[[range]]\nmin_w = 300\nmax_w = 600\n")
    site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    taken = alice.take(site)
    assert (taken["min_w"], taken["max_w"]) == (300.0, 600.0)
    assert alice.set(site, asked_w) == {"ok": True, "limit_w": set_w}
    assert site.limit_w() == set_w


def test_nobody_sets_more_than_was_found_unless_the_site_allows_it(site: Site, person: People) -> None:
    site.set_limit_w(500.0)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 400.0)
    assert alice.set(site, 700.0)["limit_w"] == 500.0
    site.stop()
    site.configure(above_found=True)
    site.start()
    alice.connect()
    assert alice.take(site)["found_w"] == 500.0
    assert alice.set(site, 700.0)["limit_w"] == 700.0


def test_a_site_range_without_room_refuses(site: Site, person: People) -> None:
    site.set_limit_w(250.0)  # by an administrator, below what users may set
    site.configure("[[range]]\nmin_w = 300\nmax_w = 600\n")
    site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    answer = alice.take(site)
    assert (answer["error"], site.limit_w()) == ("refused", 250.0)


def test_changes_come_no_more_often_than_the_site_allows(site: Site, person: People) -> None:
    site.configure(sets_per_minute=1)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    answers = [alice.set(site, 400.0 + number) for number in range(20)]
    done = [answer for answer in answers if answer["ok"]]
    assert len(done) == 8  # ten in a row, two of which taking it and setting it were
    assert {answer.get("error") for answer in answers} == {None, "too_often"}
    assert site.limit_w() == done[-1]["limit_w"]


def test_asking_changes_nothing(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    assert alice.say(op="ask", gpu=site.gpu, id=7) == {
        "ok": True,
        "id": 7,
        "allowed": True,
        "why": "you alone compute on it",
        "taken": False,
        "limit_w": 700.0,
        "min_w": 200.0,
        "max_w": 700.0,
    }
    assert site.entries() == []


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """A disk of the journal's own."""
    site.journal.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "powerd-test", str(site.journal)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield site.journal
    site.end()
    subprocess.run(["umount", str(site.journal)], check=True)


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(512)):
            pass


def test_a_full_disk_under_the_journal_refuses_the_set_and_keeps_nothing_from_being_put_back(
    site: Site, person: People, small_disk: Path
) -> None:
    site.start()
    alice, other = person(ALICE), person(ALICE)
    alice.limit(site, 450.0, gpu=0)
    fill(small_disk / "ballast")
    other.compute(gpu=1)
    other.connect()
    assert other.take(site, gpu=1)["ok"]
    assert other.set(site, 450.0, gpu=1)["error"] == "journal"
    assert alice.set(site, 400.0, gpu=0)["error"] == "journal"
    assert (site.limit_w(0), site.limit_w(1)) == (450.0, 700.0)
    assert alice.say(op="release", gpu=site.gpu) == {"ok": True, "restored": True}
    assert (site.limit_w(0), site.entries()) == (700.0, [])
    (small_disk / "ballast").unlink()
    assert other.set(site, 450.0, gpu=1)["ok"]


def test_a_journal_that_no_file_can_be_written_to_refuses_the_set(site: Site, person: People) -> None:
    """The same by a limit on the size of files, where nothing can be mounted; the log cannot be written either."""
    helper = site.start()
    alice = person(ALICE)
    alice.compute()
    alice.connect()
    assert alice.take(site)["ok"]
    resource.prlimit(helper, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    assert alice.set(site, 450.0)["error"] == "journal"
    assert (site.limit_w(), site.entries()) == (700.0, [])
    resource.prlimit(helper, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert alice.set(site, 450.0)["ok"]
