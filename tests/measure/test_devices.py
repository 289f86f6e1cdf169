"""Which GPUs a process uses: CUDA_VISIBLE_DEVICES and names of devices become UUIDs."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import Simulated

from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu, find, installed_gpus, select, visible_gpus
from energy_plugins.measure.drivers import NVML_VARIABLE, Drivers, use_drivers
from energy_plugins.measure.python_nvml import library_in_use, use_library
from energy_plugins.testing import GpuLost
from energy_plugins.testing.simulation import STATE_VARIABLE

A = Gpu("GPU-aaaa1111-0000-0000-0000-000000000000", 0, "H200", "580")
B = Gpu("GPU-aaaa2222-0000-0000-0000-000000000000", 1, "H200", "580")
C = Gpu("GPU-bbbb3333-0000-0000-0000-000000000000", 2, "H200", "580")
ALL = (A, B, C)
SLICE = "MIG-12345678-0000-0000-0000-000000000000"
OTHER = "MIG-87654321-0000-0000-0000-000000000000"
PARENTS = {SLICE: B.uuid, OTHER: B.uuid}


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, ALL),
        ("", ()),
        ("0", (A,)),
        ("2,0", (C, A)),
        (" 1 , 2 ", (B, C)),
        ("1,1", (B,)),
        (A.uuid, (A,)),
        (f"{C.uuid},0", (C, A)),
        ("GPU-bbbb", (C,)),
        ("GPU-aaaa2", (B,)),
        ("gpu-AAAA1", (A,)),
        ("-1", ()),
        ("0,-1,1", (A,)),
        ("1,,0", (B,)),
        ("NoDevFiles", ()),
    ],
)
def test_what_is_visible(visible: str | None, chosen: tuple[Gpu, ...]) -> None:
    assert select(visible, ALL) == chosen


@pytest.mark.parametrize(
    ("visible", "complaint"),
    [
        ("3", "CUDA_VISIBLE_DEVICES names GPU 3, but there are 3"),
        ("0,17", "names GPU 17"),
        ("GPU-aaaa", "'GPU-aaaa', which matches 2 GPUs.*GPU-aaaa1111.*GPU-aaaa2222"),
        ("GPU-cccc", "'GPU-cccc', which matches 0 GPUs"),
        ("cuda:0", "'cuda:0', which matches 0 GPUs"),
        ("-2", "'-2', which matches 0 GPUs"),
        ("\N{SUPERSCRIPT TWO}", "matches 0 GPUs"),
        (SLICE, f"MIG slice '{SLICE}', which is not there; slices here: none"),
    ],
)
def test_what_is_not_there_is_named(visible: str, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        select(visible, ALL)


def test_no_gpus_at_all() -> None:
    assert select(None, ()) == ()
    with pytest.raises(DeviceError, match="there are 0"):
        select("0", ())
    with pytest.raises(DeviceError, match="there are: none"):
        select("GPU-1", ())


def test_a_slice_stands_for_its_gpu_and_keeps_its_own_name() -> None:
    chosen = select(f"{SLICE},{OTHER},0", ALL, PARENTS)
    assert [(gpu.uuid, gpu.mig) for gpu in chosen] == [(B.uuid, SLICE), (B.uuid, OTHER), (A.uuid, None)]
    with pytest.raises(DeviceError, match=f"slices here: {SLICE}, {OTHER}"):
        select("MIG-0", ALL, PARENTS)


def test_the_older_spelling_of_a_slice_names_its_gpu() -> None:
    (chosen,) = select(f"MIG-{C.uuid}/1/0", ALL)
    assert (chosen.uuid, chosen.mig) == (C.uuid, f"MIG-{C.uuid}/1/0")


def test_a_visible_slice_is_found_by_its_uuid() -> None:
    visible = select(SLICE, ALL, PARENTS)
    assert find(SLICE, visible, {}, "devices") == visible[0]
    assert find(0, visible, {}, "devices") == visible[0]


@given(st.text(max_size=20))
def test_any_text_selects_gpus_or_is_refused(visible: str) -> None:
    with suppress(DeviceError):
        chosen = select(visible, ALL, PARENTS)
        assert len(set(chosen)) == len(chosen)


@given(st.lists(st.sampled_from([*range(3), A.uuid, B.uuid[:10], C.uuid[:8]]), min_size=1, max_size=5))
def test_the_order_is_cudas(entries: list[int | str]) -> None:
    chosen = select(",".join(map(str, entries)), ALL)
    asked = [ALL[entry] if isinstance(entry, int) else find(entry, ALL, {}, "test") for entry in entries]
    assert chosen == tuple(dict.fromkeys(asked))


def test_visible_gpus_are_those_of_the_driver(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulated(count=3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = visible_gpus()
    assert [gpu.uuid for gpu in gpus] == [gpu.uuid for gpu in simulation.gpus]
    assert [gpu.index for gpu in gpus] == [0, 1, 2]
    assert all("H200" in gpu.name and gpu.driver and gpu.mig is None for gpu in gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"2,{gpus[0].uuid}")
    assert visible_gpus() == (gpus[2], gpus[0])
    assert installed_gpus() == gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", SLICE)
    with pytest.raises(DeviceError, match="slices here: none"):
        visible_gpus()


def test_the_variable_alone_names_the_driver(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    variables = {STATE_VARIABLE: str(simulation.state), NVML_VARIABLE: simulation.nvml_path}
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    code = "import energy_plugins; print(*(gpu.uuid for gpu in energy_plugins.visible_gpus()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=kept | variables
    )
    assert (done.stdout.split(), done.stderr) == ([gpu.uuid for gpu in simulation.gpus], "")


def test_the_driver_in_force_is_asked_whatever_library_was_open_before(simulated: Simulated) -> None:
    simulation = simulated()
    before = library_in_use()
    with simulation.lacking("nvmlDeviceGetCount_v2") as path:
        use_library(before)  # as other code would have left it
        assert str(path) != simulation.nvml_path
        with pytest.raises(DeviceError, match="does not list its GPUs"):
            visible_gpus()
    assert library_in_use() is before
    assert len(visible_gpus()) == 1


def test_a_driver_that_is_not_there_says_what_to_do() -> None:
    with (
        use_drivers(Drivers(nvml="/nowhere/libnvidia-ml.so.1")),
        pytest.raises(DeviceError, match=r"/nowhere/libnvidia-ml\.so\.1.*Is a driver installed"),
    ):
        visible_gpus()


def test_a_gpu_that_is_lost_is_said(simulated: Simulated) -> None:
    simulated(faults=[GpuLost()])
    with pytest.raises(DeviceError, match="GPU is lost"):
        installed_gpus()
