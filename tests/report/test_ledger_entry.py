"""What a run tells the ledger survives being written and read; what is no entry is refused with a sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgering import entry

from energy_plugins.errors import ReportError
from energy_plugins.measure.ledger_entry import GpuEntry, LedgerEntry, ProcessEntry, Status, one_line

texts = st.text(max_size=300).map(one_line)
counts = st.integers(0, 2**63 - 1)
joules = st.none() | st.floats(0, 1e300)
entries = st.builds(
    LedgerEntry,
    run_id=st.from_regex(r"[0-9A-Za-z_-]{1,64}", fullmatch=True),
    training_id=st.from_regex(r"[0-9A-Za-z_-]{1,64}", fullmatch=True),
    **dict.fromkeys(("name", "node", "user", "project", "model", "framework", "missing"), texts),
    inside=st.from_regex(r"[0-9A-Za-z_-]{0,64}", fullmatch=True),
    **dict.fromkeys(("rank", "world_size", "beat", "steps"), counts),
    **dict.fromkeys(("samples", "tokens"), st.none() | counts),
    **dict.fromkeys(("started", "updated"), st.datetimes().map(lambda at: f"{at.isoformat()}+00:00")),
    simulated=st.booleans(),
    status=st.sampled_from(Status),
    process=st.builds(ProcessEntry, pid=counts, start_ticks=counts, boot_id=st.text(), pid_namespace=counts),
    duration_s=st.floats(0, 1e300),
    energy_j=joules,
    gpus=st.lists(
        st.builds(GpuEntry, uuid=texts, name=texts, energy_j=joules), max_size=3, unique_by=lambda gpu: gpu.uuid
    ).map(tuple),
)


@given(entries)
def test_an_entry_survives_being_written_and_read(one: LedgerEntry) -> None:
    assert LedgerEntry.decode(one.encode().encode(), "here") == one


@given(st.text(max_size=500))
def test_a_text_that_was_made_one_line_is_one(text: str) -> None:
    made = one_line(text)
    assert one_line(made) == made
    assert len(made) <= 200
    assert made.isprintable() or not set(made) & set(map(chr, [*range(32), 127]))
    made.encode()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"spool_version": 2}, "is 2; this version of energy-plugins reads 1: use a newer one"),
        ({"run_id": "../../etc/passwd"}, "run_id, training_id or inside is none"),
        ({"run_id": ""}, "run_id, training_id or inside is none"),
        ({"training_id": "x" * 65}, "run_id, training_id or inside is none"),
        ({"inside": "no/run"}, "run_id, training_id or inside is none"),
        ({"name": "two\nlines"}, "cannot be printed"),
        ({"name": "\x1b[2J"}, "cannot be printed"),
        ({"project": "nul\0"}, "cannot be printed"),
        ({"user": "x" * 201}, "too long"),
        ({"model": "\ud800"}, "cannot be printed"),
        ({"started": "yesterday"}, "no time in UTC"),
        ({"started": "2026-11-22T08:15:00"}, "no time in UTC"),
        ({"updated": "2026-13-22T08:15:00+00:00"}, "no time in UTC"),
        ({"steps": 2**63}, "too large"),
        ({"energy_j": -1.0}, "negative"),
        ({"energy_j": "many"}, "energy_j must be a number"),
        ({"energy_j": True}, "energy_j must be a number"),
        ({"duration_s": None}, "duration_s must be a number"),
        ({"status": "fine"}, "status must be one of running, finished"),
        ({"gpus": [{"uuid": "a", "name": "b", "energy_j": 1}] * 2}, "a GPU is in it twice"),
        ({"gpus": 3}, "gpus must be a list"),
        ({"process": None}, "process must be an object"),
    ],
)
def test_what_is_no_entry_is_refused(changes: dict[str, Any], complaint: str) -> None:
    values = json.loads(entry().encode()) | changes
    with pytest.raises(ReportError, match=r"^here: ") as caught:
        LedgerEntry.decode(json.dumps(values).encode(), "here")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"{}", entry().encode().encode()[:-40]])
def test_what_is_cut_short_or_foreign_is_refused(data: bytes) -> None:
    with pytest.raises(ReportError, match="here"):
        LedgerEntry.decode(data, "here")


def test_what_a_later_version_adds_within_this_one_does_no_harm() -> None:
    values = json.loads(entry().encode()) | {"colour": "green"}
    assert LedgerEntry.decode(json.dumps(values).encode(), "here") == entry()


@pytest.mark.parametrize("energy_j", [math.nan, math.inf])
def test_joules_that_are_no_number_are_none(energy_j: float) -> None:
    written = replace(entry(), energy_j=energy_j).encode()
    assert LedgerEntry.decode(written.encode(), "here").energy_j is None
