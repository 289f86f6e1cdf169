"""Working sets and levels as values: what fits where, at every micro-batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.errors import ConfigError
from energy_plugins.tune.growth import Growth, highest
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy
from energy_plugins.tune.working_set import Part, WorkingSet

MIB = 2**20
GROWTHS = st.builds(Growth, st.integers(0, 10**12), st.integers(0, 10**9))
SIZES = st.integers(1, 10**5)

WORKING_SET = WorkingSet(
    layer_bytes_per_sample=8.0 * MIB,
    kept=Growth(1.0 * MIB, 20.0 * MIB),
    parameter_bytes=100 * MIB,
    gradient_bytes=90 * MIB,
    optimizer_state_bytes=200 * MIB,
    peaks=(Growth(400 * MIB, 0), Growth(300 * MIB, 25 * MIB)),
    accumulating_peaks=(Growth(400 * MIB, 0), Growth(390 * MIB, 25 * MIB)),
)


def test_the_sets_are_made_of_their_parts() -> None:
    assert WORKING_SET.bytes_at(4) == {
        Part.LAYER: 32 * MIB,
        Part.FORWARD: 132 * MIB,
        Part.BACKWARD: (100 + 90 + 81) * MIB,
        Part.GRADIENTS: 90 * MIB,
        Part.OPTIMIZER: 390 * MIB,
    }


def test_the_peak_is_the_fullest_moment_of_the_step() -> None:
    assert WORKING_SET.peak_bytes(1, accumulating=False) == 400 * MIB
    assert WORKING_SET.peak_bytes(8, accumulating=False) == 500 * MIB
    assert WORKING_SET.peak_bytes(8) == 590 * MIB


@given(st.sampled_from([None, *Part]), st.integers(0, 10**12))
def test_the_largest_that_fits_fits_and_one_more_does_not(part: Part | None, room: int) -> None:
    def taken(size: int) -> int | None:
        return WORKING_SET.peak_bytes(size) if part is None else WORKING_SET.bytes_at(size)[part]

    largest = WORKING_SET.largest_within(room, part)
    if largest is None:
        assert (taken(10**9) or 0) <= room
        return
    if largest:
        assert (taken(largest) or 0) <= room + 1
    assert (taken(largest + 1) or 0) > room - 1


def test_a_set_that_is_not_known_has_no_bytes_and_no_largest() -> None:
    unknown = replace(WORKING_SET, optimizer_state_bytes=None)
    assert unknown.bytes_at(1)[Part.OPTIMIZER] is None
    assert unknown.largest_within(1, Part.OPTIMIZER) is None


@pytest.mark.parametrize("size", [0, -1])
def test_a_micro_batch_without_samples_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"the micro-batch is {size}, but must be at least 1"):
        WORKING_SET.bytes_at(size)
    with pytest.raises(ConfigError, match="at least 1"):
        WORKING_SET.peak_bytes(size)


@given(st.lists(GROWTHS, min_size=1, max_size=30), SIZES)
def test_the_highest_of_lines_are_as_high_as_all_of_them(lines: list[Growth], size: int) -> None:
    kept = highest(lines)
    assert set(kept) <= set(lines)
    assert max(line.at(size) for line in kept) == max(line.at(size) for line in lines)


@given(st.lists(GROWTHS, min_size=1, max_size=10))
def test_none_of_the_highest_is_needless(lines: list[Growth]) -> None:
    kept = highest(lines)
    assert len(kept) == len({line.bytes_per_sample for line in kept})
    assert [*kept] == sorted(kept, key=lambda line: line.bytes_per_sample)
    assert [*kept] == sorted(kept, key=lambda line: -line.fixed_bytes)


@given(GROWTHS, SIZES, st.integers(1, 1000))
def test_a_line_goes_through_what_it_was_made_from(line: Growth, size: int, more: int) -> None:
    again = Growth.through((size, line.at(size)), (size + more, line.at(size + more)))
    assert again.at(size + 3) == pytest.approx(line.at(size + 3), abs=1 + 1e-9 * line.at(size + 3))


H200 = MemoryHierarchy(
    "H200", (Level("L1", 33 * MIB), Level("L2", 60 * MIB, sharers=132), Level("HBM", 141 * 2**30, 4.8e12, 132))
)


@pytest.mark.parametrize(
    ("size_mib", "name"), [(0, "L1"), (33, "L1"), (33.1, "L2"), (60, "L2"), (61, "HBM"), (141 * 1024, "HBM")]
)
def test_bytes_are_in_the_nearest_level_that_holds_them(size_mib: float, name: str) -> None:
    assert H200.level_of(size_mib * MIB) == H200.level(name)


def test_what_fits_nowhere_has_no_level() -> None:
    assert H200.level_of(142 * 2**30) is None
    assert H200.level("L3") is None


@pytest.mark.parametrize(
    "level", [("L1", 0), ("L1", 1, 0.0), ("L1", 1, float("inf")), ("L1", 1, None, 0)], ids=lambda level: str(level[1:])
)
def test_a_level_of_nothing_is_refused(level: tuple[str, int]) -> None:
    with pytest.raises(ConfigError, match="cannot be a level of memory"):
        Level(*level)


def test_levels_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="the levels of X are L1, L1"):
        MemoryHierarchy("X", (Level("L1", 1), Level("L1", 2)))
