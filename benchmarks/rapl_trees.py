"""SIMULATED: whether CPU and DRAM energy is exact on the trees of counters that machines have, through hours of wraps.

    python benchmarks/rapl_trees.py        one or two minutes; exits with 1 if a bar is missed

The counters are files as Linux has them in sysfs, with 32-bit registers that begin again every few minutes; time is
virtual. Zones, names and ranges are those of listings that people have published ("recorded", with their sources), or
made after the kernel's documentation ("modelled"); what the counters draw is ours in both. A counter shows whole
microjoules, so a window may be off by one of them at its ends, and by nothing more.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _common import Bar, Table, finish, print_table, progress

from energy_plugins import EnergyMeter, Report
from energy_plugins.measure.drivers import current_drivers, use_drivers
from energy_plugins.measure.report_parts import CpuDomain
from energy_plugins.testing import simulated_gpus
from energy_plugins.testing.powercap import PowercapTree, Zone, amd, intel, multi_die
from energy_plugins.testing.powercap_recorded import RECORDED

SEED = 2026
WINDOWS = 8
WINDOW_S = (600.0, 3000.0)
PERIOD_S = 0.3
"""Between two movements of the counters."""
SHARES = (0.5, 1.15)
"""Of its power that the machine draws, drawn anew for each of these periods."""
MODELLED: Mapping[str, tuple[Zone, ...]] = {
    "Intel, one socket": intel(1),
    "Intel, two sockets": intel(2),
    "Intel, psys and no dram": intel(1, psys=True, dram=False),
    "Intel, psys and mmio": intel(2, psys=True, mmio=True),
    "AMD, one socket": amd(1),
    "AMD, two sockets": amd(2),
    "two packages of two dies": multi_die(2, 2),
}
TREES = {
    **{f"{name} (modelled)": zones for name, zones in MODELLED.items()},
    **{f"{name} (recorded)": machine.zones for name, machine in RECORDED.items()},
}


@dataclass(frozen=True)
class Window:
    """One window of a meter: its length, how often a counter began again, and how far its joules are off."""

    seconds: float
    wraps: int
    error_uj: float
    """Of the counter that is off most."""
    coverage: float


def measure(zones: Sequence[Zone], rng: np.random.Generator, folder: Path) -> list[Window]:
    """Return windows of one machine, one after the other."""
    tree = PowercapTree(folder, zones)
    with simulated_gpus(virtual=True) as simulation:
        last_ns = simulation.clock.now_ns()

        def draw(now_ns: int) -> int:
            nonlocal last_ns
            tree.spend((now_ns - last_ns) * 1e-9, float(rng.uniform(*SHARES)))
            last_ns = now_ns
            return now_ns + round(PERIOD_S * 1e9)

        simulation.clock.attach(draw)
        with use_drivers(replace(current_drivers(), powercap=str(tree.root))):
            found = []
            for _ in range(WINDOWS):
                before_j, wraps = tree.true_j(), tree.wraps()
                with EnergyMeter(devices=[]) as meter:
                    simulation.advance(float(rng.uniform(*WINDOW_S)))
                    after_j = tree.true_j()
                report = meter.report()
                errors = [off_j(domain, before_j, after_j) * 1e6 for domain in report.cpu_domains]
                check_sums(report, zones)
                coverage = min(domain.coverage for domain in report.cpu_domains)
                found.append(Window(report.duration_s, tree.wraps() - wraps, max(errors), coverage))
    return found


def off_j(domain: CpuDomain, before_j: Mapping[str, float], after_j: Mapping[str, float]) -> float:
    """Return how far a counter's joules are from the truth."""
    assert domain.energy_j is not None
    folder = Path(domain.source).parent.name
    return abs(domain.energy_j - (after_j[folder] - before_j[folder]))


def check_sums(report: Report, zones: Sequence[Zone]) -> None:
    """Make sure that each package and each DRAM of the machine is in its sum once, and nothing else is."""
    for name, kind, joules in (("package", "cpu", report.cpu_j), ("dram", "dram", report.dram_j)):
        own = {zone.folder for zone in zones if zone.name.startswith(name) and zone.folder.startswith("intel-rapl:")}
        read = [domain for domain in report.cpu_domains if domain.kind == kind]
        assert sorted(own) == sorted(Path(domain.source).parent.name for domain in read)
        assert (joules or 0.0) == sum(domain.energy_j or 0.0 for domain in read)


def figures(windows: Sequence[Window]) -> dict[str, float]:
    """Return what there is to say of a machine's windows."""
    seconds, wraps = sum(one.seconds for one in windows), sum(one.wraps for one in windows)
    return {
        "windows": len(windows),
        "hours": seconds / 3600,
        "wraps": wraps,
        "largest_error_uj": max(one.error_uj for one in windows),
        "least_coverage": min(one.coverage for one in windows),
    }


def main() -> int:
    """Measure, print, write, and return 1 if a bar is missed."""
    warnings.filterwarnings("ignore", message="energy: the list of devices to measure is empty")
    rng = np.random.default_rng(SEED)
    names = tuple(TREES)
    measured: dict[str, list[Window]] = {}
    for number in progress("machines", len(names)):
        with TemporaryDirectory() as folder:
            measured[names[number]] = measure(TREES[names[number]], rng, Path(folder))
    found = {name: figures(windows) for name, windows in measured.items()}
    print_table(
        [
            ("machine", "hours", "wraps", "largest error of a counter"),
            *(
                (name, f"{each['hours']:.1f}", f"{each['wraps']:.0f}", f"{each['largest_error_uj']:.3f} uJ")
                for name, each in found.items()
            ),
        ]
    )
    worst_uj = max(each["largest_error_uj"] for each in found.values())
    bars = [
        Bar(f"{name}: largest error of a counter, in uJ", each["largest_error_uj"], at_most=1.0, show=".3f")
        for name, each in found.items()
    ]
    bars.append(Bar("least coverage", min(each["least_coverage"] for each in found.values()), at_least=1.0))
    bars.append(Bar("wraps on a machine", min(each["wraps"] for each in found.values()), at_least=10, show=".0f"))
    rows = [(name, window) for name, windows in measured.items() for window in windows]
    table: Table = {
        "machine": [name for name, _ in rows],
        "seconds": [window.seconds for _, window in rows],
        "wraps": [window.wraps for _, window in rows],
        "error_uj": [window.error_uj for _, window in rows],
        "coverage": [window.coverage for _, window in rows],
    }
    sources = {name: machine.source for name, machine in RECORDED.items()}
    label = ["none: SIMULATED counters of the CPU, files as in sysfs"]
    counts = {"modelled": len(MODELLED), "recorded": len(RECORDED)}
    result = {"worst_uj": worst_uj, "trees": counts, "machines": found, "recorded_from": sources}
    return finish("rapl_trees", gpus=label, figures=result, bars=bars, raw={"windows": table})


if __name__ == "__main__":
    sys.exit(main())
