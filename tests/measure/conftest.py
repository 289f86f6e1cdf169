"""Reports to test with: one that is typical, and a strategy for all that can be; and disks that are full."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from measuring import POWER_W, Simulated

from energy_plugins.measure.columns import Columns, Schema
from energy_plugins.measure.limit_part import LimitPart, TriedLimit
from energy_plugins.measure.micro_batch_part import MicroBatchPart, TriedMicroBatch
from energy_plugins.measure.rank_part import Backward, GpuPart, Rank, RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import (
    ACTIVITY_COLUMNS,
    POWER_COLUMNS,
    SPAN_COLUMNS,
    STATE_COLUMNS,
    STEP_COLUMNS,
    Company,
    CpuDomain,
    DeviceInfo,
    GpuState,
    KindActivity,
    KindTotal,
    Observer,
    Others,
    ProcessInfo,
    Work,
)
from energy_plugins.testing import Constant, Simulation

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Disk: TypeAlias = Callable[[int], AbstractContextManager[None]]

UUID = "GPU-3f8a1c92-0b1d-4f6e-9d61-52d6f1a0c7b4"
NO_RAPL = "CPU energy is not measured"


@pytest.fixture(scope="session")
def disk_of() -> Disk:
    """Return a context in which no file grows beyond a size: the kernel's own refusal, as of a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        found = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, found[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, found)

    return limited


def table(schema: Schema, rows: int) -> Columns:
    """Return a table whose columns count up from 0."""
    return Columns.of({name: np.arange(rows).astype(code) for name, code in schema.items()})


@pytest.fixture(scope="session")
def typical_report() -> Report:
    """Return a training of a minute on one GPU."""
    steps = table(STEP_COLUMNS, 1875)
    energy_j = np.where(np.arange(1875) < 1800, 4.85, np.nan)
    return Report(
        run_id="20261121-100000-7f3a",
        name="digits-cnn",
        node="node7",
        started="2026-11-21T10:00:00Z",
        duration_s=62.31,
        complete=True,
        simulated=False,
        total_j=12351.0,
        gpu_j={UUID: 12351.0},
        error_bound_j=118.2,
        coverage=0.9981,
        stall_j=1032.0,
        data_wait_j=612.0,
        missing={
            "cpu_j": NO_RAPL,
            "dram_j": NO_RAPL,
            "peer_wait_j": "one process has no peers",
            "underfilled_j": "needs the power of an idle GPU",
            "idle_j": "needs the power of an idle GPU",
        },
        steps=Columns.of({**steps, "end_s": steps["start_s"] + 0.032, "energy_j": energy_j}),
        spans=table(SPAN_COLUMNS, 5),
        span_kinds=("step", "validate"),
        kinds=(
            kind("step", 3750, 50.2, 9100.0, 91.0, 0.999),
            kind("validate", 3, 4.1, 812.2, 30.0, 0.99),
            kind("checkpoint", 3, 0.31, None, None, 0.0),
            kind("unattributed", 8, 8.0, 2438.8, 70.0, 0.998),
        ),
        phases=(kind("fit", 1, 61.9, 12300.0, 117.0, 0.998), kind("step", 1875, 52.1, 9712.0, 99.0, 0.999)),
        power={UUID: table(POWER_COLUMNS, 3000)},
        work=Work(steps=1875, samples=120_000),
        observer=Observer(
            thread_cpu_s=0.0714, driver_call_s=0.0602, mark_s=0.0021, collect_s=0.11, marks=3750, events=1875
        ),
        devices=(DeviceInfo(uuid=UUID, name="NVIDIA H200", index=0, driver="580.159", sensors=("power_samples",)),),
        versions={"energy_plugins": "0.1.0"},
        config={"max_epochs": 3, "nested": {"lr": [0.1, None, True]}},
        warnings=("the GPU was lost for 2.1 s, in which nothing was measured; it answered again afterwards",),
    )


def kind(name: str, count: int, *measured: float | None) -> KindTotal:
    """Return a total without spelling its fields out."""
    duration_s, energy_j, bound_j, seen = measured
    assert duration_s is not None
    assert seen is not None
    return KindTotal(
        kind=name, count=count, duration_s=duration_s, energy_j=energy_j, error_bound_j=bound_j, coverage=seen
    )


texts = st.text(max_size=12) | st.text(min_size=90, max_size=130)
names = st.text(max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
maybe_numbers = st.none() | numbers
counts = st.integers(0, 10**20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)


def by_name(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, values, max_size=2)


ANY = {
    "str": texts | names,
    "str | None": st.none() | names,
    "bool": st.booleans(),
    "bool | None": st.none() | st.booleans(),
    "int": counts,
    "int | None": st.none() | counts,
    "float": numbers,
    "float | None": maybe_numbers,
    "tuple[str, ...]": st.lists(names, max_size=2).map(tuple),
    "tuple[int, ...]": st.lists(counts, max_size=2).map(tuple),
    "tuple[float, ...]": st.lists(numbers, max_size=2).map(tuple),
    "Mapping[str, str]": by_name(texts),
    "Mapping[str, float]": by_name(numbers),
    "Mapping[str, float | None]": by_name(maybe_numbers),
    "Mapping[str, JSON]": by_name(json_values),
}
"""What a field of a report may be, by the text of its annotation."""


@st.composite
def columns(draw: st.DrawFn, schema: Schema) -> Columns:
    rows = draw(st.integers(0, 3))
    return Columns.of({name: draw(hnp.arrays(f"<{code}", rows)) for name, code in schema.items()})


def built(kind: type[DataclassInstance], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for a dataclass: each field anything that its annotation allows, but for those ``given``."""
    plain = {field.name: ANY[str(field.type)] for field in fields(kind) if field.name not in given}
    return st.builds(kind, **plain, **given)


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=2).map(tuple)


@pytest.fixture(scope="session")
def any_report() -> st.SearchStrategy[Report]:
    """Return a strategy for reports of every kind, sensible or not."""
    ranks = st.builds(
        lambda size, rank, **others: Rank(rank=rank % size, world_size=size, **others),
        size=st.integers(1, 1000),
        rank=counts,
        local_rank=counts,
        local_world_size=counts,
        pid=counts,
        boot_id=names,
        pid_space=names,
        gpu_choice=texts,
    )
    modest = st.none() | st.floats(-1e12, 1e12)
    parts = st.builds(
        RankPart,
        who=ranks,
        node=names,
        run_id=texts,
        started=names,
        duration_s=st.floats(0, 1e9),
        complete=st.booleans(),
        energy_j=modest,
        error_bound_j=modest,
        coverage=st.floats(0, 1),
        gpus=st.lists(st.builds(GpuPart, uuid=names, energy_j=modest, error_bound_j=modest), max_size=2).map(tuple),
        steps=counts,
        samples=st.none() | counts,
        tokens=st.none() | counts,
        step_j=modest,
        backward=st.none()
        | st.builds(
            Backward,
            steps=counts,
            seconds=st.floats(0, 1e6),
            spread_s=st.floats(0, 1e6),
            energy_j=st.none() | st.floats(0, 1e9),
        ),
        stall_j=modest,
        cpu_j=modest,
        warnings=counts,
    )
    others = built(Others, company=st.sampled_from(Company), processes=few(built(ProcessInfo)))
    kinds = few(built(KindTotal))
    return built(
        Report,
        cpu_domains=few(built(CpuDomain)),
        steps=columns(STEP_COLUMNS),
        spans=columns(SPAN_COLUMNS),
        kinds=kinds,
        phases=kinds,
        power=st.dictionaries(names, columns(POWER_COLUMNS), max_size=2),
        state=st.dictionaries(names, columns(STATE_COLUMNS), max_size=1),
        gpu_states=few(built(GpuState)),
        activity=st.dictionaries(names, columns(ACTIVITY_COLUMNS), max_size=1),
        kind_activity=few(built(KindActivity)),
        work=built(Work),
        observer=built(Observer),
        devices=few(built(DeviceInfo, others=others, idle_measured=names | st.datetimes().map(datetime.isoformat))),
        warnings=st.lists(texts, max_size=12).map(tuple),
        power_limit=st.none() | built(LimitPart, tried=few(built(TriedLimit))),
        micro_batch=st.none() | built(MicroBatchPart, tried=few(built(TriedMicroBatch))),
        rank=st.none() | ranks,
        ranks=st.none() | st.lists(parts, max_size=3).map(lambda some: Ranks.merge(some, 3)),
        extra=st.dictionaries(names.map("x_".__add__), json_values, max_size=2),
    )


@pytest.fixture
def virtual(simulated: Simulated) -> Simulation:
    """Give a steady simulated GPU in virtual time."""
    return simulated(Constant(POWER_W), virtual=True, start_s=10)


@pytest.fixture
def real(simulated: Simulated) -> Simulation:
    """Give a steady simulated GPU in real time."""
    return simulated(Constant(POWER_W))
