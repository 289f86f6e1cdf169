"""What the native code may ask of the drivers: nothing that waits for the GPU or copies from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SYMBOL = re.compile(r'"((?:cu|nvml)[A-Z]\w+)"')
WAITS_OR_COPIES = re.compile(r"Synchroni[sz]e|Wait|Memcpy|Memset|HostFunc|Callback", re.IGNORECASE)


def symbols_in(source: str) -> set[str]:
    """Return every driver symbol that a source names, whichever way it is looked up."""
    return set(SYMBOL.findall(source))


@pytest.mark.parametrize(
    ("library", "known"),
    [
        ("cu", {"cuEventRecord", "cuEventQuery", "cuEventElapsedTime", "cuStreamIsCapturing", "cuDeviceGetUuid_v2"}),
        ("nvml", {"nvmlInit_v2", "nvmlDeviceGetSamples", "nvmlDeviceGetTotalEnergyConsumption", "nvmlGpmSampleGet"}),
    ],
)
def test_no_call_waits_or_copies(library: str, known: set[str]) -> None:
    named = {path.name: symbols_in(path.read_text("utf-8")) for path in sorted(CSRC.glob("*.[ch]pp"))}
    found = {name for names in named.values() for name in names if re.match(library + "[A-Z]", name)}
    assert known <= found
    assert not {name for name in found if WAITS_OR_COPIES.search(name)}


def test_symbols_are_looked_up_by_literal_names_alone() -> None:
    """Else the test above would not see them all."""
    lookups = {
        path.name: re.findall(r"\.?(?:find|find_either)<[^;]*?>\(\s*([^\s,)]+)", path.read_text("utf-8"))
        for path in sorted(CSRC.glob("*.[ch]pp"))
    }
    assert lookups["cuda.hpp"]
    assert lookups["nvml.cpp"]
    assert not {(name, first) for name, firsts in lookups.items() for first in firsts if not first.startswith('"')} - {
        ("cuda.hpp", "newer"),  # find_either, whose callers name both
        ("cuda.hpp", "older"),
    }


@pytest.mark.parametrize("planted", ["cuStreamSynchronize", "cuMemcpyDtoH_v2", "cuStreamWaitEvent"])
def test_one_that_does_is_found(planted: str) -> None:
    (found,) = symbols_in(f'library_.find<int(void*)>(\n    "{planted}")')
    assert WAITS_OR_COPIES.search(found)
