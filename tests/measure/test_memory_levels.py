"""What levels of memory a device has: of simulated GPUs, and of CPUs whose sysfs is a folder of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from energy_plugins.errors import DeviceError
from energy_plugins.measure.container import cpu_limit, memory_limit_bytes
from energy_plugins.measure.cpu_memory import cpu_memory
from energy_plugins.measure.drivers import Drivers, use_drivers
from energy_plugins.measure.quantity import binary
from energy_plugins.testing import A100, RTX_4090, V100, NotSupported, Profile, Simulation
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy

Simulated = Callable[..., Simulation]
KIB, MIB, GIB = 2**10, 2**20, 2**30


def sizes(hierarchy: MemoryHierarchy) -> dict[str, int]:
    return {level.name: level.size_bytes for level in hierarchy.levels}


def test_an_h200_has_its_four_levels(simulation: Simulation) -> None:
    found = MemoryHierarchy.detect("cuda")
    assert found.device == "NVIDIA H200 (SIMULATED)"
    assert sizes(found) == {"L1": 132 * 256 * KIB, "L2": 60 * MIB, "HBM": 143771 * MIB}
    assert [level.sharers for level in found.levels] == [1, 132, 132]
    hbm = found.level("HBM")
    assert hbm is not None
    assert hbm.bandwidth_bytes_per_s == pytest.approx(4.8e12, rel=0.03)  # of the data sheet
    assert found.notes == ()


@pytest.mark.parametrize(
    ("profile", "l1", "l2", "name", "bytes_per_s"),
    [
        (A100, 108 * 192 * KIB, 40 * MIB, "HBM", 1.555e12),
        (V100, 80 * 128 * KIB, 6 * MIB, "HBM", 0.9e12),
        (RTX_4090, 128 * 128 * KIB, 72 * MIB, "GDDR", 1.008e12),
    ],
)
def test_other_cards_have_theirs(
    simulated: Simulated, profile: Profile, l1: int, l2: int, name: str, bytes_per_s: float
) -> None:
    simulated(profile=profile)
    found = MemoryHierarchy.detect(0)
    assert sizes(found) == {"L1": l1, "L2": l2, name: round(profile.memory_bytes)}
    assert found.levels[-1].bandwidth_bytes_per_s == pytest.approx(bytes_per_s, rel=0.01)


def test_a_process_without_cuda_is_left_without_it(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulated(cuda=False, count=2)
    for name, value in simulation.environment().items():
        monkeypatch.setenv(name, value)
    code = (
        "import ctypes, json; from energy_plugins.tune.memory_hierarchy import MemoryHierarchy;"
        "levels = [level.name for level in MemoryHierarchy.detect('cuda:1').levels];"
        f"untouched = ctypes.CDLL({simulation.cuda_path!r}).cuDeviceGetCount(ctypes.byref(ctypes.c_int()));"
        "print(*levels, untouched)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["L1", "L2", "HBM", "3"]  # CUDA_ERROR_NOT_INITIALIZED


def test_the_visible_gpu_is_the_one_that_is_asked(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(count=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(MemoryHierarchy.detect("cuda:0").levels) == 3
    with pytest.raises(DeviceError, match="cuda:1 is not there: this process sees 1 GPUs"):
        MemoryHierarchy.detect("cuda:1")


def test_without_cuda_the_memory_is_known_and_the_rest_says_why(
    simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = simulated()
    with use_drivers(Drivers(nvml=simulation.nvml_path, cuda="/nonexistent/libcuda.so.1", clock=simulation.clock)):
        found = MemoryHierarchy.detect("cuda")
    assert sizes(found) == {"HBM": 143771 * MIB}
    assert "caches are not known: /nonexistent/libcuda.so.1" in found.notes[0]


def test_a_bus_that_nvml_does_not_tell_of_cuda_may_know(simulated: Simulated) -> None:
    simulated(faults=[NotSupported("nvmlDeviceGetMemoryBusWidth")])
    hbm = MemoryHierarchy.detect("cuda").level("HBM")
    assert hbm is not None
    assert hbm.bandwidth_bytes_per_s == pytest.approx(4.8e12, rel=0.03)


def test_a_memory_that_is_not_told_is_left_out_with_the_reason(simulated: Simulated) -> None:
    simulated(faults=[NotSupported("nvmlDeviceGetMemoryInfo")])
    found = MemoryHierarchy.detect("cuda")
    assert [*sizes(found)] == ["L1", "L2"]
    assert found.notes == ("the memory's size is not known: Not Supported",)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (7, "7 B"),
        (1024, "1.00 KiB"),
        (60 * MIB, "60.0 MiB"),
        (233 * KIB, "233 KiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_bytes_are_said_as_caches_are_sold(size_bytes: int, text: str) -> None:
    assert binary(size_bytes) == text


@pytest.mark.parametrize("device", ["tpu", "", "cuda:x", "mps:0", None])
def test_an_unknown_device_is_named(device: object) -> None:
    with pytest.raises(DeviceError, match="is no device that is known here"):
        MemoryHierarchy.detect(device)


Files = Mapping[str, str]


def machine(root: Path, cpus: int, caches: Mapping[str, tuple[str, int]], more: Files | None = None) -> Path:
    """Make the folders of a machine whose caches of a name have a size and so many CPUs each."""
    files = {"proc/meminfo": f"MemTotal:       {64 * GIB // KIB} kB\nMemFree: 1 kB\n", **(more or {})}
    for cpu in range(cpus):
        for place, (name, (size, sharers)) in enumerate(caches.items()):
            first = cpu - cpu % sharers
            kind = {"i": "Instruction", "d": "Data"}.get(name[2:], "Unified")
            folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{place}"
            span = f"{first}-{first + sharers - 1}" if sharers > 1 else f"{cpu}"
            files |= {f"{folder}/level": name[1], f"{folder}/type": kind, f"{folder}/size": size}
            files |= {f"{folder}/shared_cpu_list": span}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


EPYC = {"L1d": ("48K", 2), "L1i": ("32K", 2), "L2": ("1024K", 2), "L3": ("32M", 16)}
"""32 CPUs on 16 cores, with an L3 for each 8 cores."""


def levels_of(root: Path, allowed: range | None = None) -> MemoryHierarchy:
    return cpu_memory(root / "sys", root / "proc", frozenset(range(32) if allowed is None else allowed))


def test_pieces_of_a_level_add_up_and_are_counted_once(tmp_path: Path) -> None:
    found = levels_of(machine(tmp_path, 32, EPYC))
    assert found.levels == (
        Level("L1", 16 * 48 * KIB, sharers=2),
        Level("L2", 16 * MIB, sharers=2),
        Level("L3", 64 * MIB, sharers=16),
        Level("DRAM", 64 * GIB, sharers=32),
    )


def test_only_what_the_allowed_cpus_have_counts(tmp_path: Path) -> None:
    found = levels_of(machine(tmp_path, 32, EPYC), range(16, 20))
    assert sizes(found) == {"L1": 2 * 48 * KIB, "L2": 2 * MIB, "L3": 32 * MIB, "DRAM": 64 * GIB}


GROUPS = {
    "version 2": {
        "proc/self/cgroup": "0::/pod/box",
        "sys/fs/cgroup/pod/box/memory.max": "max",
        "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
        "sys/fs/cgroup/pod/memory.max": str(8 * GIB),
        "sys/fs/cgroup/pod/cpu.max": "250000 100000",
    },
    "version 1": {
        "proc/self/cgroup": "3:cpu,cpuacct:/box\n2:memory:/box\n1:name=systemd:/box",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(8 * GIB),
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    },
    "inside a container, with the host's path": {
        "proc/self/cgroup": "0::/kubepods/pod1/box",
        "sys/fs/cgroup/memory.max": str(8 * GIB),
        "sys/fs/cgroup/cpu.max": "250000 100000",
    },
}


@pytest.mark.parametrize("files", GROUPS.values(), ids=GROUPS)
def test_a_containers_limits_are_the_machines(tmp_path: Path, files: Files) -> None:
    root = machine(tmp_path, 32, EPYC, files)
    found = levels_of(root)
    assert sizes(found) == {"L1": 3 * 48 * KIB, "L2": 3 * MIB, "L3": 64 * MIB, "DRAM": 8 * GIB}
    assert found.notes == (
        "caches are those of 3 of 32 CPUs: the cgroup allows the time of 2.5",
        "the cgroup allows 8.00 GiB of the machine's 64.0 GiB",
    )


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, 2, EPYC)
    assert memory_limit_bytes(root / "sys", root / "proc") is None
    assert cpu_limit(root / "sys", root / "proc") is None


def test_what_the_kernel_hides_is_missing_with_a_reason(tmp_path: Path) -> None:
    found = levels_of(machine(tmp_path, 0, {}))
    assert sizes(found) == {"DRAM": 64 * GIB}
    assert "no caches are shown" in found.notes[0]
    nothing = levels_of(tmp_path / "nowhere")
    assert nothing.levels == ()
    assert [note.partition(":")[0] for note in nothing.notes][1:] == ["the memory's size is not known"]


def test_nonsense_in_a_cache_costs_only_that_cache(tmp_path: Path) -> None:
    root = machine(tmp_path, 2, {"L1d": ("48K", 1), "L2": ("a lot", 1), "L3": ("0K", 2)})
    assert sizes(levels_of(root, range(2))) == {"L1": 96 * KIB, "DRAM": 64 * GIB}


def test_this_machine_has_memory_and_no_more_than_it_has() -> None:
    found = MemoryHierarchy.detect("cpu")
    assert 0 < sizes(found)["DRAM"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
