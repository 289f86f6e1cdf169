"""Which counters are found in the trees that machines have, and what is said where there are none."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from energy_plugins import _native
from energy_plugins.measure.cpu import plan_cpu
from energy_plugins.measure.drivers import Drivers
from energy_plugins.measure.rapl import Found, Part, powercap_counters
from energy_plugins.measure.rapl_perf import perf_counters
from energy_plugins.testing.powercap import PowercapTree, Zone, amd, intel, multi_die
from energy_plugins.testing.powercap_recorded import RECORDED

NOBODY = 65534
CPU_CLOCK = {"type": "1", "cpumask": "0", "events/energy-pkg": "event=0x00", "events/energy-pkg.scale": "1e-9"}
"""The kernel's own cpu-clock in the place of the counter: nanoseconds, as if a watt were drawn."""


def names(found: Found) -> list[str]:
    return [sensor.name for sensor in found.sensors]


def describe(root: Path, **changes: str) -> Path:
    """Write a folder of event sources as a CPU with the one event `CPU_CLOCK` has; an empty text leaves a file out."""
    texts = {**CPU_CLOCK, **{name.replace("__", "/"): text for name, text in changes.items()}}
    for name, text in ((name, text) for name, text in texts.items() if text):
        path = root / "power" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("zones", "cpu", "dram"),
    [
        (intel(1), ["package-0"], ["package-0 dram"]),
        (intel(2), ["package-0", "package-1"], ["package-0 dram", "package-1 dram"]),
        (intel(1, psys=True, dram=False), ["package-0"], []),
        (intel(2, mmio=True), ["package-0", "package-1"], ["package-0 dram", "package-1 dram"]),
        (intel(1, psys=True, mmio=True), ["package-0"], ["package-0 dram"]),
        (amd(1), ["package-0"], []),
        (amd(2), ["package-0", "package-1"], []),
        (multi_die(2, 2), [f"package-{n}-die-{die}" for n in (0, 1) for die in (0, 1)], []),
        ((Zone("intel-rapl-mmio:0", "package-0", 9.0),), ["package-0"], []),
    ],
)
@pytest.mark.parametrize("at", ["links", "folders", "copy"])
def test_each_part_of_the_machine_is_counted_once(
    tmp_path: Path, zones: tuple[Zone, ...], cpu: list[str], dram: list[str], at: str
) -> None:
    tree = PowercapTree(tmp_path / "sys", zones)
    root = {"links": tree.root, "folders": tmp_path / "sys/devices/virtual/powercap", "copy": tmp_path / "copy"}[at]
    if at == "copy":  # of what the links lead to, as a mount into a container may be
        for link in tree.root.iterdir():
            shutil.copytree(link, root / link.name, ignore=shutil.ignore_patterns("device", "subsystem"))
    found = powercap_counters(root, Part.CPU)
    assert names(found) == cpu
    assert names(powercap_counters(root, Part.DRAM)) == dram
    assert all(sensor.scale.wraps_at is not None for sensor in found.sensors)
    assert all("mmio" not in sensor.source for sensor in found.sensors) or len(zones) == 1


RANGES_UJ = {
    "Intel server, four sockets counted backwards": {262143328850, 65712999613},
    "Intel server, two sockets without dram": {262143328850},
    "Intel server, four sockets with core and dram": {65532610987},
    "Intel laptop": {262143328850},
    "Intel laptop with psys": {262143328850},
    "Core i7-4770S, kernel of 2015": {262143999938},
    "AMD Zen": {65532610987},
}
"""``max_energy_range_uj`` as it was shown."""


@pytest.mark.parametrize("machine", RECORDED)
def test_machines_as_they_were_shown_are_counted_once(tmp_path: Path, machine: str) -> None:
    zones = RECORDED[machine].zones
    tree = PowercapTree(tmp_path / "sys", zones)
    shown = {int((tree.folder(zone) / "max_energy_range_uj").read_text()) for zone in zones}
    assert shown == RANGES_UJ[machine]
    for part, name in ((Part.CPU, "package"), (Part.DRAM, "dram")):
        own = sorted(f"{tree.root}/{zone.folder}/energy_uj" for zone in zones if zone.name.startswith(name))
        found = powercap_counters(tree.root, part)
        assert sorted(sensor.source for sensor in found.sensors) == own
        for sensor in found.sensors:
            assert sensor.scale.wraps_at == 2**32 * next(
                Fraction(zone.unit_nj, 1000) for zone in zones if f"/{zone.folder}/" in sensor.source
            )


@pytest.mark.parametrize(
    ("zones", "part", "words"),
    [
        (amd(1), Part.DRAM, "no domain under .* is the energy of DRAM alone"),
        ((Zone("intel-rapl:0", "psys", 90.0),), Part.CPU, "only psys"),
        ((Zone("dtpm:0", "package-0", 90.0),), Part.CPU, "modprobe intel_rapl_msr"),
        ((), Part.CPU, "modprobe intel_rapl_msr"),
    ],
)
def test_where_there_is_none_it_says_why(tmp_path: Path, zones: tuple[Zone, ...], part: Part, words: str) -> None:
    found = powercap_counters(PowercapTree(tmp_path / "sys", zones).root, part)
    assert not found.sensors
    assert re.search(words, found.reason)


def test_a_container_that_hides_the_counters_is_recognised(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / "sys", intel(1))
    shutil.rmtree(tmp_path / "sys/devices/virtual/powercap")
    (tmp_path / "sys/devices/virtual/powercap").mkdir()
    assert "systempaths=unconfined" in powercap_counters(tree.root, Part.CPU).reason
    assert "a container without it" in powercap_counters(tmp_path / "nowhere", Part.CPU).reason


def test_one_counter_that_cannot_be_read_spoils_the_sum_of_all(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / "sys", intel(2))
    (tree.folder(tree.zones[4]) / "energy_uj").write_text("nothing\n")
    found = powercap_counters(tree.root, Part.CPU)
    assert not found.sensors
    assert found.reason == f"{tree.root}/intel-rapl:1/energy_uj: Bad message"
    assert names(powercap_counters(tree.root, Part.DRAM)) == ["package-0 dram", "package-1 dram"]


def test_a_domain_without_a_name_may_be_a_package(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / "sys", intel(2))
    (tree.folder(tree.zones[4]) / "name").unlink()
    found = powercap_counters(tree.root, Part.CPU)
    assert not found.sensors
    assert found.reason.startswith(f"{tree.root}/intel-rapl:1/name cannot be read")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Take root's rights away, where tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def closed() -> Iterator[PowercapTree]:
    """Give a tree of which everything but the counters may be read, in a folder that everyone may enter."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = PowercapTree(Path(folder), intel(1))
        for zone in tree.zones:
            (tree.folder(zone) / "energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        yield tree


def test_counters_closed_to_this_user_come_with_the_remedy(closed: PowercapTree, tmp_path: Path) -> None:
    with as_nobody():
        plan = plan_cpu(Drivers(powercap=str(closed.root), event_sources=str(tmp_path)))
    assert not plan.sensors
    for part in Part:
        assert re.fullmatch(
            r"/.*/energy_uj: Permission denied: run as root, .* or allow perf events .*perf_event_paranoid.*",
            plan.reasons[part],
        )


def test_what_perf_says_is_said_too(closed: PowercapTree) -> None:
    events = describe(closed.root.parent, type="999999")
    with as_nobody():
        plan = plan_cpu(Drivers(powercap=str(closed.root), event_sources=str(events)))
    assert not plan.sensors
    assert re.search(r"; as a perf event: perf_event_open on CPU 0: \w+", plan.reasons[Part.CPU])
    assert re.search(r"; as a perf event: .*energy-ram", plan.reasons[Part.DRAM])


def test_a_perf_event_counts(tmp_path: Path) -> None:
    found = perf_counters(describe(tmp_path), Part.CPU)
    if not found.sensors:
        pytest.skip(f"needs perf events: {found.reason}")
    (sensor,) = found.sensors
    assert (sensor.name, sensor.source, sensor.scale.wraps_at) == ("energy-pkg of CPU 0", "perf energy-pkg", None)
    began_ns, first = time.monotonic_ns(), sensor.counter.read()
    time.sleep(0.05)
    joules = float((sensor.counter.read() - first) * sensor.scale.joules_per_count)
    assert joules == pytest.approx((time.monotonic_ns() - began_ns) * 1e-9, abs=0.01)


def test_perf_takes_over_where_files_are_closed(closed: PowercapTree) -> None:
    events = describe(closed.root.parent)
    if not perf_counters(events, Part.CPU).sensors:
        pytest.skip("needs perf events")
    (closed.folder(closed.zones[0]) / "energy_uj").unlink()
    plan = plan_cpu(Drivers(powercap=str(closed.root), event_sources=str(events)))
    assert [sensor.source for sensor in plan.sensors if sensor.part is Part.CPU] == ["perf energy-pkg"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpumask": ""}, "No such file"),
        ({"type": "power"}, "invalid literal"),
        ({"cpumask": "0-x"}, "invalid literal"),
        ({"events__energy-pkg": "config=2"}, "names no event"),
        ({"events__energy-pkg.scale": "1/0"}, "Fraction"),
        ({"events__energy-pkg.scale": "0"}, "worth nothing"),
        ({"type": "999999"}, "perf_event_open on CPU 0"),
        ({"cpumask": "0,700-701"}, "perf_event_open on CPU"),
    ],
)
def test_a_description_that_is_not_understood_is_a_reason(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    found = perf_counters(describe(tmp_path, **changes), Part.CPU)
    assert not found.sensors
    assert words in found.reason


def test_a_machine_without_such_events_needs_no_reason(tmp_path: Path) -> None:
    assert perf_counters(tmp_path, Part.CPU) == Found()


def test_errors_of_a_counter_are_pythons(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such file"):
        _native.RaplCounter(str(tmp_path / "energy_uj"))
    (tmp_path / "energy_uj").write_text("123456789\n")
    assert _native.RaplCounter(str(tmp_path / "energy_uj")).read() == 123456789


def test_only_the_first_process_of_a_node_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = Drivers(powercap=str(PowercapTree(tmp_path / "sys", intel(2)).root), event_sources=str(tmp_path))
    for rank in ("", "0"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert len(plan_cpu(drivers).sensors) == 4
    monkeypatch.setenv("LOCAL_RANK", "3")
    plan = plan_cpu(drivers)
    assert (plan.sensors, plan.ours) == ((), False)
    assert set(plan.reasons.values()) == {"CPU energy is measured by local rank 0"}
