"""A page and its pictures can be made of any report, sensible or not; the strategy for those lies in this folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from energy_plugins.errors import ReportError
from energy_plugins.measure.report import Report
from energy_plugins.report.advice import advice
from energy_plugins.report.html import page
from energy_plugins.report.pictures.album import pictures_of
from energy_plugins.report.pictures.picture import Missing

# Not made smaller when one fails: a report has hundreds of parts, and that takes minutes.
PHASES = (Phase.explicit, Phase.generate)
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@given(data=st.data())
@settings(max_examples=60, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_becomes_a_page(any_report: st.SearchStrategy[Report], data: st.DataObject) -> None:
    report = data.draw(any_report)
    text = page(report)
    text.encode()
    (found,) = DATA.findall(text)
    pictures = json.loads(found, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["pictures"]
    assert all(f'id="chart-{picture["name"]}"' in text for picture in pictures)
    assert ("<strong>SIMULATED</strong>" in text) == report.simulated


@given(data=st.data())
@settings(max_examples=10, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_becomes_pictures_or_a_sentence(
    any_report: st.SearchStrategy[Report], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    report = data.draw(any_report)
    folder: Path = tmp_path_factory.mktemp("pictures")
    if all(isinstance(picture, Missing) for picture in pictures_of(report)):
        with pytest.raises(ReportError, match="there is nothing to draw"):
            report.to_png(folder)
    else:
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.to_png(folder))


@given(data=st.data())
@settings(max_examples=60, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
def test_advice_on_any_report_is_in_order(any_report: st.SearchStrategy[Report], data: st.DataObject) -> None:
    items = advice(data.draw(any_report))
    known = [item.energy_j for item in items if item.energy_j is not None]
    assert known == sorted(known, reverse=True)
    assert all(item.sentence and item.evidence for item in items)
    assert [item.energy_j is None for item in items] == sorted(item.energy_j is None for item in items)
