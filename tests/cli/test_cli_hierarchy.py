"""`energy-plugins hierarchy`: where a user's own model works, on a simulated H200 and on this machine's CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call

from energy_plugins.cli.hierarchy_view import view_of
from energy_plugins.testing import Simulation
from energy_plugins.tune.growth import Growth
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy
from energy_plugins.tune.working_set import WorkingSet

MIB = 2**20

PROGRAM = """
import torch
from torch import nn

def mlp():
    layers = [layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    model = nn.Sequential(*layers)
    return model, torch.empty(64, 1024), torch.optim.SGD(model.parameters(), momentum=0.9)

def three():
    return nn.Linear(4, 4), torch.empty(2, 4)
"""

QUICK = """
def fails():
    raise KeyError("no data")

def returns_none():
    pass

def returns_text():
    return "model", "batch"

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "quick.py").write_text(QUICK)
    return tmp_path


def test_a_layer_leaves_the_l2_of_an_h200_where_its_tile_is_larger(folder: Path, simulation: Simulation) -> None:
    done = call("hierarchy", "train:mlp", "--json", on=simulation, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["device"] == "NVIDIA H200 (SIMULATED)"
    assert [(level["name"], level["size_bytes"]) for level in found["levels"]][1] == ("L2", 60 * MIB)
    layers = {row["size"]: row["sets"]["layer"] for row in found["micro_batches"]}
    assert layers[4096] == {"bytes": 32 * MIB, "level": "L1"}
    assert layers[8192] == {"bytes": 64 * MIB, "level": "HBM"}
    assert found["micro_batches"][0]["sets"]["gradients"]["bytes"] == 4 * 6 * (1024 * 1024 + 1024)
    assert found["micro_batches"][-1]["sets"]["all at once"]["level"] is None
    assert found["micro_batches"][-2]["sets"]["all at once"]["level"] == "HBM"


def test_a_cpus_levels_are_a_table_a_picture_and_a_png(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    path = folder / "sets.png"
    done = call(
        "hierarchy",
        "train.py:three",
        "--sizes",
        "8,2,8",
        "--png",
        path,
        cwd=folder,
        variables={"MPLCONFIGDIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    assert "DRAM" in done.stdout.splitlines()[0]
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["micro-batch", "2", "8"]
    assert "the end of a level" in done.stdout
    assert f"{path} is written" in done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train"], 2, "'train' names no function: write MODULE:FUNCTION"),
        (["nowhere:f"], 1, "cannot import nowhere: ModuleNotFoundError"),
        (["quick:missing"], 1, "quick has no function missing"),
        (["quick:number"], 1, "quick has no function number"),
        (["quick:fails"], 1, "quick:fails failed: KeyError: 'no data'"),
        (["quick:returns_none"], 1, "quick:returns_none returned a NoneType, but must return (model, batch)"),
        (["quick.py:returns_none", "--sizes", "0,1"], 2, "'0,1' is no list of numbers above 0"),
        (["quick.py:returns_none", "--sizes", "many"], 2, "'many' is no list of numbers above 0"),
        (["quick.py:returns_none", "--device", "abacus"], 1, "'abacus' is no device that is known here"),
        (["quick:returns_text", "--device", "cpu"], 1, "the model is a str, but must be a torch.nn.Module"),
    ],
)
def test_what_is_wrong_is_a_sentence(folder: Path, arguments: list[str], code: int, said: str) -> None:
    done = call("hierarchy", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_picture_has_a_mark_for_each_set_and_level() -> None:
    hierarchy = MemoryHierarchy("a device", (Level("L2", 16 * MIB), Level("HBM", 1024 * MIB, 4e12)), ("about it",))
    working_set = WorkingSet(
        layer_bytes_per_sample=1.0 * MIB,
        kept=Growth(0.0, 4.0 * MIB),
        parameter_bytes=8 * MIB,
        gradient_bytes=8 * MIB,
        optimizer_state_bytes=None,
        peaks=(Growth(16 * MIB, 5 * MIB),),
        accumulating_peaks=(Growth(16 * MIB, 5 * MIB),),
        notes=("and more",),
    )
    view = view_of(hierarchy, working_set)
    assert view.sizes == (1, 2, 4, 8, 16, 32, 64, 128, 256)  # the first that does not fit, too
    lines = [*view.text()]
    assert lines[0] == "a device: L2 16.0 MiB, HBM 1.00 GiB at 4.00 TB/s"
    table = [line.split() for line in lines[3:12]]
    assert " ".join(table[0]) == "1 1.00 MiB L2 9.00 MiB L2 20.0 MiB HBM 8.00 MiB L2 - - 21.0 MiB HBM"
    assert [row[-1] for row in table] == [*["HBM"] * 8, "none"]
    borders, *picture = lines[13:23]
    ends = [borders.index("L2"), borders.index("HBM")]
    assert [line.index("l", 13) < ends[0] for line in picture] == [True] * 4 + [False] * 5  # 8 MiB, then 16 MiB
    assert [line.rindex("A") < ends[1] for line in picture[:-1]] == [True] * 8
    assert all({*line[13:]} <= {*"lfbA| "} for line in picture)
    assert lines[-2:] == ["note: about it", "note: and more"]
