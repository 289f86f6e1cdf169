"""CPU and DRAM energy of a run: exact over hours of wraps, beside a real thread, and through all that may go wrong."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from measuring import Simulated

from energy_plugins import CpuEstimate, EnergyMeter, Report
from energy_plugins.measure.drivers import Drivers, current_drivers, use_drivers
from energy_plugins.measure.sensors import DRAIN_PERIOD_NS
from energy_plugins.testing import Constant, GpuLost, Simulation
from energy_plugins.testing.powercap import PowercapTree, Zone, amd, intel, multi_die

pytestmark = pytest.mark.filterwarnings("ignore:energy:RuntimeWarning")
"""What goes wrong here is meant to; it is looked for in the report."""

HOUR_S = 3600.0


def play(simulation: Simulation, tree: PowercapTree, period_s: float = 0.7) -> Callable[[int], int]:
    """Let a tree's counters follow the simulation's time; they move every ``period_s``."""
    last_ns = simulation.clock.now_ns()

    def tick(now_ns: int) -> int:
        nonlocal last_ns
        tree.spend((now_ns - last_ns) * 1e-9)
        last_ns = now_ns
        return now_ns + round(period_s * 1e9)

    simulation.clock.attach(tick)
    return tick


@contextmanager
def counters_of(tree: PowercapTree) -> Iterator[None]:
    """Put a tree in the place of the machine's."""
    with use_drivers(dataclasses.replace(current_drivers(), powercap=str(tree.root))):
        yield


@pytest.fixture
def machine(simulated: Simulated) -> Simulation:
    """Give a machine whose time is ours."""
    return simulated(virtual=True, start_s=10)


@pytest.mark.parametrize(
    ("zones", "wraps"),
    [
        (intel(1, psys=True), 4),
        (intel(2, mmio=True), 8),
        (amd(2), 30),
        (multi_die(2, 2), 4),
    ],
    ids=["one socket", "two sockets", "AMD", "dies"],
)
def test_hours_of_wraps_are_exact(machine: Simulation, tmp_path: Path, zones: tuple[Zone, ...], wraps: int) -> None:
    tree = PowercapTree(tmp_path, zones)
    tick = play(machine, tree, 1.3)
    with counters_of(tree):
        machine.advance(100.0)
        tick(machine.clock.now_ns())
        before_j = tree.true_j()
        with EnergyMeter(devices=[]) as meter:
            machine.advance(HOUR_S + 0.7)
            tick(machine.clock.now_ns())
        report = meter.report()
    assert tree.wraps() >= wraps
    after_j = tree.true_j()
    for domain in report.cpu_domains:
        folder = Path(domain.source).parent.name
        assert domain.energy_j == pytest.approx(after_j[folder] - before_j[folder], abs=1.001e-6)
        assert domain.coverage == 1.0
    for name, kind, joules in (("package", "cpu", report.cpu_j), ("dram", "dram", report.dram_j)):
        own = [zone for zone in zones if zone.name.startswith(name) and zone.folder.startswith("intel-rapl:")]
        assert sum(domain.kind == kind for domain in report.cpu_domains) == len(own)
        if own:
            true_j = sum(after_j[zone.folder] - before_j[zone.folder] for zone in own)
            assert joules == pytest.approx(true_j, abs=1.001e-6 * len(own))
    assert ("dram_j" in report.missing) == (report.dram_j is None)
    assert "cpu_j" not in report.missing
    assert report.total_j is None


def test_beside_gpus_the_joules_are_apart(machine: Simulation, tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path, intel(1))
    play(machine, tree, 0.001)
    with counters_of(tree), EnergyMeter(folder=tmp_path / "report") as meter:
        machine.advance(8.0)
    report = meter.report()
    assert report.cpu_j == pytest.approx(270.0 * report.duration_s, rel=1e-3)
    assert report.dram_j == pytest.approx(21.0 * report.duration_s, rel=1e-3)
    assert report.total_j == pytest.approx(sum(joules or 0.0 for joules in report.gpu_j.values()))
    assert report.warnings == ()
    text = " ".join(str(report).split())
    assert "cpu 2.1" in text
    assert "of the whole machine; not in the total" in text
    assert Report.load(tmp_path / "report").cpu_domains == report.cpu_domains
    (package, dram) = report.cpu_domains
    assert (package.name, package.kind, package.energy_j) == ("package-0", "cpu", report.cpu_j)
    assert (dram.name, dram.kind, dram.source) == (
        "package-0 dram",
        "dram",
        f"{tree.root}/intel-rapl:0:2/energy_uj",
    )


def test_a_report_in_mid_run_has_the_joules_of_its_time(machine: Simulation, tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path, intel(2))
    play(machine, tree, 0.01)
    with counters_of(tree), EnergyMeter() as meter:
        machine.advance(40.0)
        report = meter.report()
        assert 9 < report.duration_s < 40
        assert report.cpu_j == pytest.approx(533.0 * report.duration_s, rel=0.01)
        assert [domain.coverage for domain in report.cpu_domains] == [1.0] * 4


def test_a_machine_without_gpu_or_nvml_has_its_cpu_measured(tmp_path: Path) -> None:
    """In real time: a thread moves the counter about every millisecond while the sampler's thread reads it."""
    power_w, unit_nj = 180.0, 15258
    tree = PowercapTree(tmp_path, [Zone("intel-rapl:0", "package-0", power_w, unit_nj, register=2**32 - 10_000_000)])
    stopping = threading.Event()

    def draw() -> None:
        last_ns = time.monotonic_ns()
        while not stopping.wait(0.001):
            now_ns = time.monotonic_ns()
            tree.spend((now_ns - last_ns) * 1e-9)
            last_ns = now_ns

    drawing = threading.Thread(target=draw)
    drawing.start()
    drivers = Drivers(nvml=str(tmp_path / "no driver"), powercap=str(tree.root), event_sources=str(tmp_path))
    try:
        with use_drivers(drivers), EnergyMeter() as meter:
            time.sleep(1.7)
    finally:
        stopping.set()
        drawing.join()
    report = meter.report()
    assert tree.wraps() == 1
    assert report.total_j is None
    assert report.cpu_j == pytest.approx(power_w * report.duration_s, rel=0.03)
    assert [domain.coverage for domain in report.cpu_domains] == [1.0]
    assert report.observer.dropped == 0


def test_a_counter_that_goes_is_told_once_and_costs_coverage(machine: Simulation, tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path, intel(1))
    counter = tree.folder(tree.zones[0]) / "energy_uj"
    with counters_of(tree):
        meter = EnergyMeter(devices=[]).start()
        machine.advance(6.0)
        tree.spend(4.0)
        machine.advance(6.0)
        counter.write_text("")
        machine.advance(12.0)
        meter.stop()
    report = meter.report()
    package, dram = report.cpu_domains
    assert package.coverage == pytest.approx(0.5, abs=0.06)
    assert dram.coverage == 1.0
    assert report.cpu_j == pytest.approx(1080.0, rel=1e-6)
    assert [warning for warning in report.warnings if "devices" not in warning] == [
        f"an energy counter of the CPU failed, and is tried again: {tree.root}/intel-rapl:0/energy_uj: Bad message"
    ]


def test_a_counter_that_comes_back_lost_nothing(machine: Simulation, tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path, intel(1))
    counter = tree.folder(tree.zones[0]) / "energy_uj"
    with counters_of(tree):
        meter = EnergyMeter(devices=[]).start()
        machine.advance(5.0)
        counter.write_text("")
        machine.advance(5.0)
        tree.spend(10.0)
        machine.advance(5.0)
        meter.stop()
    package, _ = meter.report().cpu_domains
    assert any("failed" in warning for warning in meter.report().warnings)
    assert package.coverage == 1.0
    assert package.energy_j == pytest.approx(2700.0, rel=1e-6)


def test_a_counter_set_back_is_told_and_not_guessed(machine: Simulation, tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path, [Zone("intel-rapl:0", "package-0", 150.0)])
    tick = play(machine, tree, 0.1)
    with counters_of(tree):
        meter = EnergyMeter(devices=[]).start()
        machine.advance(60.0)
        machine.clock.detach(tick)
        (tree.folder(tree.zones[0]) / "energy_uj").write_text("0\n")
        machine.advance(10.0)
        meter.stop()
    (package,) = meter.report().cpu_domains
    assert any("package-0: its counter jumped" in warning for warning in meter.report().warnings)
    assert 1 - package.coverage == pytest.approx(DRAIN_PERIOD_NS * 1e-9 / 70, rel=1e-3)
    assert package.energy_j == pytest.approx(150.0 * (60 - 0.6), abs=150.0)


def test_a_package_of_which_nothing_is_known_leaves_no_sum(machine: Simulation, tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path, amd(2))
    with counters_of(tree):
        meter = EnergyMeter(devices=[]).start()
        (tree.folder(tree.zones[1]) / "energy_uj").write_text("")
        machine.advance(5.0)
        meter.stop()
    report = meter.report()
    assert report.cpu_j is None
    assert report.missing["cpu_j"] == "no two readings of package-1 in the window"
    assert [domain.energy_j for domain in report.cpu_domains] == [0.0, None]


def test_a_lost_gpu_does_not_take_the_cpu_along(simulated: Simulated, tmp_path: Path) -> None:
    simulation = simulated(Constant(300.0), virtual=True, start_s=10)
    tree = PowercapTree(tmp_path, intel(1))
    play(simulation, tree, 0.01)
    with counters_of(tree):
        meter = EnergyMeter().start()
        simulation.advance(5.0)
        simulation.gpus[0].inject(GpuLost())
        simulation.advance(30.0)
        meter.stop()
    report = meter.report()
    assert report.coverage < 0.5
    assert report.cpu_j == pytest.approx(270.0 * report.duration_s, rel=2e-3)


def test_without_counters_the_report_says_why(machine: Simulation) -> None:
    with EnergyMeter() as meter:
        machine.advance(5.0)
    report = meter.report()
    assert (report.cpu_j, report.dram_j, report.cpu_domains, report.warnings) == (None, None, (), ())
    assert "no energy counter of a CPU" in report.missing["cpu_j"]
    assert report.missing["dram_j"] == report.missing["cpu_j"]
    assert report.missing["cpu_estimate_j"] == "no estimate was asked for"
    assert "no estimate" not in str(report)


def stat_of(path: Path, busy_s: float) -> None:
    """Write what /proc/stat says of cores that were busy for so long and idle and waiting for longer."""
    ticks = round(busy_s * os.sysconf("SC_CLK_TCK"))
    path.write_text(f"cpu  {ticks} 0 0 999999 999 0 0 55 0 0\ncpu0 1 0 0 0 0 0 0 0 0 0\n")


def test_an_estimate_is_labelled_and_in_no_sum(machine: Simulation, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat_of(stat, 1000.0)
    with EnergyMeter(cpu_estimate=CpuEstimate(idle_w=40, per_core_w=3.5, stat=str(stat))) as meter:
        machine.advance(10.0)
        stat_of(stat, 1080.0)
        halfway = meter.report()
        machine.advance(10.0)
        stat_of(stat, 1240.0)
    report = meter.report()
    assert (report.cpu_j, report.dram_j) == (None, None)
    assert report.cpu_estimate_j == pytest.approx((40 + 3.5 * 12) * report.duration_s, rel=1e-3)
    assert halfway.cpu_estimate_j == pytest.approx((40 + 3.5 * 8) * halfway.duration_s, rel=1e-2)
    assert "cpu_estimate_j" not in report.missing
    assert report.total_j == pytest.approx(sum(joules or 0.0 for joules in report.gpu_j.values()))
    assert "ESTIMATE, not measured: 40 W and 3.5 W for each of 12.0 busy cores" in report.cpu_estimate_label
    assert "cpu estimate" in str(report)


def test_what_is_measured_is_not_estimated(machine: Simulation, tmp_path: Path) -> None:
    meter = EnergyMeter(devices=[], cpu_estimate=CpuEstimate(idle_w=40, per_core_w=3.5))
    with counters_of(PowercapTree(tmp_path, amd(1))), meter:
        machine.advance(2.0)
    report = meter.report()
    assert (report.cpu_j, report.cpu_estimate_j, report.cpu_estimate_label) == (0.0, None, "")
    assert report.missing["cpu_estimate_j"] == "cpu_j is measured"


def test_an_estimate_that_fails_is_a_warning(machine: Simulation, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("intr 1 2 3 4 5 6 7 8\n")
    meter = EnergyMeter(cpu_estimate=CpuEstimate(idle_w=40, per_core_w=3.5, stat=str(stat)))
    with meter:
        machine.advance(2.0)
    assert any("could not be estimated" in warning for warning in meter.report().warnings)
    assert meter.report().cpu_estimate_j is None
    assert "could not be estimated" in meter.report().missing["cpu_estimate_j"]


@pytest.mark.parametrize("watts", [-1.0, float("nan"), float("inf")])
def test_an_estimate_takes_watts(watts: float) -> None:
    for idle_w, per_core_w in ((watts, 1.0), (1.0, watts)):
        with pytest.raises(ValueError, match="must be watts"):
            CpuEstimate(idle_w=idle_w, per_core_w=per_core_w)


def test_the_other_ranks_leave_the_cpu_to_the_first(
    machine: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    meter = EnergyMeter(cpu_estimate=CpuEstimate(idle_w=40, per_core_w=3.5))
    with counters_of(PowercapTree(tmp_path, intel(1))), meter:
        machine.advance(2.0)
    report = meter.report()
    assert (report.cpu_j, report.cpu_estimate_j, report.cpu_domains) == (None, None, ())
    for name in ("cpu_j", "dram_j", "cpu_estimate_j"):
        assert report.missing[name] == "CPU energy is measured by local rank 0"
