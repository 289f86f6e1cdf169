"""What a report's text says of the micro-batch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from energy_plugins.measure.micro_batch_part import MicroBatchPart, TriedMicroBatch
from energy_plugins.measure.report import Report

CHOSEN = MicroBatchPart(
    asked="least energy",
    batch=4,
    accumulation=8,
    chosen=32,
    source="search",
    expected_saving=0.18,
    expected_slowdown=-0.2,
    confidence=0.99,
    gradient_difference=2e-7,
    gradient_limit=1e-5,
    search_s=40.0,
    tried=(
        TriedMicroBatch(size=4, seconds=5.0, step_time_s=1.0, step_energy_j=600.0, saving=0.0, saving_sem=0.0),
        TriedMicroBatch(size=16, why="out of memory"),
        TriedMicroBatch(size=32, seconds=5.0, step_time_s=0.8, step_energy_j=500.0, saving=0.18, saving_sem=0.01),
    ),
    explanation=("each micro-batch costs 10 J whatever its size",),
    outlook=("an effective batch of 64 would save more",),
)


def text_of(report: Report, part: MicroBatchPart) -> str:
    return " ".join(str(dataclasses.replace(report, micro_batch=part)).split())


def test_what_was_chosen_and_why(typical_report: Report) -> None:
    assert (
        "micro-batch 32 samples at once instead of 4 x 8, searched for; 32 samples a step and rank as before, with the "
        "same gradients (they differ by 2e-07 of their norm, which is rounding) expected of it: "
        "18.0 % less energy (+- 2.0 %), 20.0 % shorter steps (99.0 % sure) tried in 40.00 s (energy of a step): "
        "4: +0.0 %, 16: out of memory, 32: -18.0 % each micro-batch costs 10 J whatever its size an "
        "effective batch of 64 would save more"
    ) in text_of(typical_report, CHOSEN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chosen": 4}, "micro-batch your setting 4 x 8, for none surely saves more (least energy)"),
        ({"chosen": None, "why": "BatchNorm"}, "your setting 4 x 8 was left alone (least energy): BatchNorm"),
        ({"chosen": None, "batch": None}, "your setting was left alone (least energy): the training ended before it"),
        ({"gradient_difference": 0.3}, "same gradients, but for 0.3 of their norm, AS YOU ALLOWED"),
        ({"source": "memory"}, "remembered, and checked"),
        ({"source": "fixed", "tried": ()}, "32 samples at once instead of 4 x 8, as asked for"),
        ({"expected_slowdown": 0.1}, "10.0 % longer steps"),
        (
            {"gradient_checks": 7, "check_s": 1.5},
            "rounding) gradients compared 7 times in 1.500 s, at the start and later expected of it",
        ),
    ],
)
def test_other_ends(typical_report: Report, changes: dict[str, Any], words: str) -> None:
    assert words in text_of(typical_report, dataclasses.replace(CHOSEN, **changes))


def test_steps_in_doubt_survive_the_disk_and_are_not_asked_of_older_reports(
    typical_report: Report, tmp_path: Path
) -> None:
    part = dataclasses.replace(CHOSEN, gradient_checks=7, check_s=1.5, steps_in_doubt=(5, 12))
    folder = dataclasses.replace(typical_report, micro_batch=part).save(tmp_path)
    assert Report.load(folder).micro_batch == part
    file = folder / "report.json"
    written = json.loads(file.read_text())
    for name in ("gradient_checks", "check_s", "steps_in_doubt"):
        del written["micro_batch"][name]
    file.write_text(json.dumps(written))
    assert Report.load(folder).micro_batch == CHOSEN


def test_without_being_asked_for_nothing_is_said(typical_report: Report) -> None:
    assert "micro-batch" not in str(typical_report)


def test_a_file_may_say_anything(typical_report: Report) -> None:
    part = dataclasses.replace(CHOSEN, explanation=("\x1b[2J",))
    assert "\x1b" not in text_of(typical_report, part)


def test_the_effective_batch() -> None:
    assert CHOSEN.effective_batch == 32
    assert dataclasses.replace(CHOSEN, batch=None).effective_batch is None
