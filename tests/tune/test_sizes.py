"""Which micro-batches are tried: exact cuts and joins, on both sides of what the hierarchy says, within memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from batch_trainings import BatchTraining, Model
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.errors import ConfigError
from energy_plugins.tune import MicroBatchTask, candidates, search_micro_batch
from energy_plugins.tune.micro_batch.sizes import MOST_SIZES, Memory, possible

MIB = 2**20

batches = st.integers(1, 2048)
accumulations = st.integers(1, 512)


@dataclass(frozen=True)
class Piece:
    name: str
    size_bytes: int


@dataclass(frozen=True)
class Device:
    levels: Sequence[Piece]


@dataclass(frozen=True)
class Net:
    """A model whose layers take so much for each sample, and that needs so much in all."""

    layer_bytes_per_sample: float
    fixed_bytes: float = 1e9
    bytes_per_sample: float = 50e6

    def peak_bytes(self, size: int) -> float:
        return self.fixed_bytes + self.bytes_per_sample * size


H200 = Device((Piece("L1", 33 * MIB), Piece("L2", 60 * MIB), Piece("HBM", 140_000 * MIB)))


@given(batch=batches, accumulation=accumulations)
def test_every_size_cuts_or_joins_exactly(batch: int, accumulation: int) -> None:
    sizes = candidates(batch, accumulation)
    assert batch in sizes
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) <= MOST_SIZES
    for size in sizes:
        assert (batch * accumulation) % size == 0
        assert batch % size == 0 or (size % batch == 0 and accumulation % (size // batch) == 0)
        assert size > 1 or batch == 1


@given(batch=batches, accumulation=accumulations)
def test_the_largest_stays(batch: int, accumulation: int) -> None:
    assert candidates(batch, accumulation)[-1] == batch * accumulation


@given(batch=batches, accumulation=accumulations, per_sample=st.floats(1e3, 1e9), fixed=st.floats(0, 1e11))
def test_nothing_is_tried_that_cannot_fit(batch: int, accumulation: int, per_sample: float, fixed: float) -> None:
    net = Net(1e6, fixed, per_sample)
    sizes = candidates(batch, accumulation, H200, net)
    assert batch in sizes
    has = H200.levels[-1].size_bytes
    assert all(size == batch or net.peak_bytes(size) <= 1.2 * has for size in sizes)
    surely = [size for size in possible(batch, accumulation) if net.peak_bytes(size) <= 0.9 * has]
    assert not surely or max(surely) in sizes


@pytest.mark.parametrize(
    ("batch", "accumulation", "sizes"),
    [
        (8, 32, (2, 4, 8, 16, 32, 64, 128, 256)),
        (4, 16, (2, 4, 8, 16, 32, 64)),
        (1, 8, (1, 2, 4, 8)),
        (8, 1, (2, 4, 8)),
        (7, 1, (7,)),
        (256, 4, (8, 16, 32, 64, 128, 256, 512, 1024)),
        (12, 4, (2, 3, 4, 6, 12, 24, 48)),
        (96, 4, (8, 16, 24, 32, 48, 96, 192, 384)),  # of 14 those that tensor cores like
    ],
)
def test_what_is_tried(batch: int, accumulation: int, sizes: tuple[int, ...]) -> None:
    assert candidates(batch, accumulation) == sizes


def test_sizes_beside_a_boundary_stay() -> None:
    # Of 8 to 8192 a layer's activations leave the L1 above 32 samples, the L2 above 32, too: 64 lives in the HBM.
    net = Net(layer_bytes_per_sample=1.0 * MIB, bytes_per_sample=1e6)
    memory = Memory(H200, net)
    sizes = candidates(8, 1024, H200, net)
    assert len(sizes) == MOST_SIZES
    assert {8, 32, 64, 8192} <= set(sizes)
    later = Net(layer_bytes_per_sample=MIB / 32, bytes_per_sample=1e6)  # the L1 is left above 1056, the L2 above 1920
    assert {1024, 2048} <= set(candidates(8, 1024, H200, later))
    assert 1024 not in candidates(8, 1024)
    assert [memory.level_of(size) for size in (32, 33, 34, 60, 64)] == ["L1", "L1", "L2", "L2", "HBM"]


def test_memory_that_is_not_known_leaves_nothing_out() -> None:
    caches = Device((Piece("L2", 60 * MIB),))
    net = Net(1e6, fixed_bytes=1e12)
    assert candidates(8, 4, caches, net) == candidates(8, 4)
    assert candidates(8, 4, caches, net, memory_bytes=1e10) == (8,)
    assert candidates(8, 4, Device(()), net) == candidates(8, 4)


def test_a_search_knows_what_fits_and_where_it_lives() -> None:
    net = Net(layer_bytes_per_sample=1.0 * MIB, fixed_bytes=0, bytes_per_sample=1e9)
    task = MicroBatchTask.of(32, 8, Memory(H200, net))
    assert task.start == 32
    assert task.share == 256
    assert task.candidates == (2, 4, 8, 16, 32, 64, 128)  # 256 GB is far too much, 128 GB is just what there is
    assert task.fits == 128
    assert task.level_of(32) == "L1"
    assert task.level_of(64) == "HBM"
    unknown = MicroBatchTask.of(32, 8)
    assert (unknown.fits, unknown.levels, unknown.level_of(32)) == (None, (), None)


def test_a_search_can_be_told_where_activations_live() -> None:
    memory = Memory(H200, Net(layer_bytes_per_sample=1.0 * MIB, fixed_bytes=0, bytes_per_sample=1e6))
    training = BatchTraining(Model(spill_from=32, floor_s=0.0), 64)
    found = search_micro_batch(training.measure, (16, 32, 64), start=64, share=64, memory=memory)
    assert found.size == 16
    assert {one.size: one.level for one in found.tried} == {16: "L1", 32: "L1", 64: "HBM"}
    assert "64 samples at once cost more than 32: a layer's activations left the L1 for the HBM" in found.explanation


def test_a_size_that_may_just_fit_is_tried_with_care() -> None:
    net = Net(layer_bytes_per_sample=1.0, fixed_bytes=0, bytes_per_sample=1e9)
    task = MicroBatchTask.of(8, 16, Memory(H200, net, bytes=120e9))
    assert task.candidates[-1] == 128
    assert task.fits == 64


@pytest.mark.parametrize(("batch", "accumulation", "said"), [(0, 4, "batch is 0"), (4, 0, "accumulation is 0")])
def test_what_makes_no_sense_is_refused(batch: int, accumulation: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        candidates(batch, accumulation)
