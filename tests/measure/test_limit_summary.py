"""What a report's text says of the power limit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from energy_plugins.measure.limit_part import LimitPart, TriedLimit
from energy_plugins.measure.report import Report

TRIED = tuple(
    TriedLimit(limit=limit, seconds=5.0, step_time_s=0.5, step_energy_j=300.0, drawn_w=600.0)
    for limit in (700.0, 600.0, 700.0)
)
CHOSEN = LimitPart(
    asked="least energy with steps at most 3 % longer",
    back_end="NVML",
    found=700.0,
    chosen=600.0,
    source="search",
    expected_saving=0.123,
    expected_slowdown=0.021,
    confidence=0.97,
    binding=True,
    drawn_w=598.0,
    searches=1,
    search_s=15.0,
    tried=TRIED,
    put_back="the limit is 700 W again, as it was found",
)


def text_of(report: Report, part: LimitPart) -> str:
    return " ".join(str(dataclasses.replace(report, power_limit=part)).split())


def test_what_was_chosen_and_what_is_expected(typical_report: Report) -> None:
    text = text_of(typical_report, CHOSEN)
    assert (
        "limited to 600 W of the 700 W found, searched for (least energy with steps at most 3 % longer); it binds; "
        "598 W drawn in steps expected of it: 12.3 % less energy, 2.1 % longer steps (97.0 % sure) "
        "2 limits in 3 windows, 15.00 s in all; set by NVML the limit is 700 W again, as it was found"
    ) in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"binding": False}, "NOT BINDING: it lowers no power and saves nothing"),
        ({"binding": None}, "whether it binds is not known"),
        ({"chosen": 700.0}, "limited to the 700 W found, for none saves more"),
        ({"source": "memory"}, "remembered, and checked"),
        ({"source": "fixed", "asked": "a limit of 600 W"}, "as asked for (a limit of 600 W)"),
        (
            {"chosen": None, "why": "the driver refuses"},
            "no limit was kept (least energy with",
        ),
        ({"chosen": None, "advice": "run as root"}, "run as root"),
        ({"chosen": None}, "the search was not over"),
    ],
)
def test_the_rest(typical_report: Report, changes: dict[str, object], words: str) -> None:
    assert words in text_of(typical_report, dataclasses.replace(CHOSEN, **changes))  # type: ignore[arg-type] # fields


def test_limits_of_each_rank(typical_report: Report) -> None:
    part = dataclasses.replace(CHOSEN, chosen=700.0, by_rank=(500.0, 700.0, 500.0, 500.0))
    text = text_of(typical_report, part)
    assert "limited to 700 W of the 700 W found, searched for" in text
    assert "each by itself, for some wait for others: rank 1 to 700 W, ranks 0, 2, 3 to 500 W" in text
    assert "12.3 % less energy" in text


def test_it_is_read_as_it_was_written(typical_report: Report, tmp_path: Path) -> None:
    tried = (*TRIED, dataclasses.replace(TRIED[0], limit=500.0, ranks=(0, 2)))
    part = dataclasses.replace(CHOSEN, by_rank=(500.0, 700.0, 500.0), tried=tried)
    dataclasses.replace(typical_report, power_limit=part).save(tmp_path / "new")
    path = tmp_path / "new" / "report.json"
    assert Report.load(tmp_path / "new").power_limit == part
    values = json.loads(path.read_text())
    del values["power_limit"]["by_rank"]  # earlier versions had one limit for all
    for one in values["power_limit"]["tried"]:
        del one["ranks"]
    path.write_text(json.dumps(values))
    earlier = Report.load(tmp_path / "new").power_limit
    assert earlier is not None
    assert (earlier.by_rank, {one.ranks for one in earlier.tried}) == ((), {()})


def test_without_one_there_is_no_line(typical_report: Report) -> None:
    assert "\nlimited" not in str(typical_report)
