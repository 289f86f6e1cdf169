"""What a report's text says of the micro-batch and the power limit together."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from energy_plugins.measure.joint_summary import joint_saving
from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.report import Report

BATCH = MicroBatchPart(asked="least energy", batch=4, accumulation=8, chosen=32, source="search", expected_saving=0.4)
LIMIT = LimitPart(asked="least energy", found=700.0, chosen=500.0, source="search", expected_saving=0.1)


def text_of(report: Report, batch: MicroBatchPart | None, limit: LimitPart | None) -> str:
    return " ".join(str(dataclasses.replace(report, micro_batch=batch, power_limit=limit)).split())


def test_savings_are_of_what_is_left() -> None:
    assert joint_saving(BATCH, LIMIT) == pytest.approx(0.46)


@pytest.mark.parametrize(
    ("batch", "limit"),
    [
        (None, LIMIT),
        (BATCH, None),
        (dataclasses.replace(BATCH, expected_saving=None), LIMIT),
        (BATCH, dataclasses.replace(LIMIT, expected_saving=None)),
    ],
)
def test_one_alone_has_no_joint_saving(
    typical_report: Report, batch: MicroBatchPart | None, limit: LimitPart | None
) -> None:
    assert joint_saving(batch, limit) is None
    assert "together" not in text_of(typical_report, batch, limit)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "by the power limit "),
        (
            {"checked_beside": (16,), "saving_beside": 0.0},
            "by the power limit (16 at once compared once more under the limit: none is better)",
        ),
        (
            {"checked_beside": (16, 64), "saving_beside": 0.05, "chosen": 64},
            "(16, 64 at once compared once more under the limit: 64 at once instead of what was found first is better",
        ),
    ],
)
def test_the_text_has_the_saving_of_each_and_of_both(
    typical_report: Report, changes: dict[str, Any], words: str
) -> None:
    text = text_of(typical_report, dataclasses.replace(BATCH, **changes), LIMIT)
    each = "together 46.0 % less energy expected of both: 40.0 % by the micro-batch, 10.0 % of the rest "
    assert each in text
    assert words in text


def test_reports_of_before_the_check_can_be_read(typical_report: Report, tmp_path: Any) -> None:
    folder = dataclasses.replace(typical_report, micro_batch=BATCH).save(tmp_path / "report")
    header = folder / "report.json"
    text = header.read_text()
    for line in ('"checked_beside": []', '"saving_beside": null'):
        assert line in text
        text = text.replace(line + ",", "")
    header.write_text(text)
    assert Report.load(folder).micro_batch == BATCH
