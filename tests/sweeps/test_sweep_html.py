"""A sweep as a page: what it says, that names stay names, and that a real browser draws it and asks no network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import pytest
from _browser import browser, no_browser_because
from hypothesis import given
from hypothesis import strategies as st
from sweeping import sqlite
from test_sweep_report import make_study

from energy_plugins.errors import ReportError
from energy_plugins.report.pictures.picture import Missing, Picture
from energy_plugins.report.pictures.sweep_ends import ends_picture
from energy_plugins.report.pictures.sweep_front import MOST_TRIALS, front_picture
from energy_plugins.report.pictures.sweep_parameters import ParametersPicture, parameters_picture
from energy_plugins.report.sweep import Sweep, SweepTrial
from energy_plugins.report.sweep_html import sweep_page, write_sweep_html
from energy_plugins.report.sweep_tables import numbers_of, sweep_tiles, trials_table
from energy_plugins.report.wire import encoded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

needs_browser = pytest.mark.skipif(bool(no_browser_because()), reason=no_browser_because() or "there is a browser")
EVIL = """</script><script>document.title='pwned'</script><img src="http://evil.example/x" onerror="alert(1)">\u202e"""
PICTURES = ("front", "ends", "hyperparameters")


def trial(number: int, value: float | None, energy_j: float | None, **more: Any) -> SweepTrial:
    facts: dict[str, Any] = {
        "state": "complete",
        "duration_s": 2.0,
        "to_target_j": None,
        "to_target_s": None,
        "shared": False,
        "params": {"width": 2**number, "optimizer": "adam" if number % 2 else "sgd"},
    }
    return SweepTrial(number=number, value=value, energy_j=energy_j, **{**facts, **more})


BENT = [trial(0, 0.5, 10e3), trial(1, 0.6, 15e3), trial(2, 0.85, 20e3), trial(3, 0.88, 60e3), trial(4, 0.9, 100e3)]
ENDED = [
    trial(5, None, 3e3, state="pruned"),
    trial(6, None, 2e3, state="fail", params={}),
    trial(7, 0.99, 1e3, shared=True, simulated=True, to_target_j=1e3),
    trial(8, 0.7, 90e3, to_target_j=80e3),
]
SWEEP = Sweep(
    study="digits",
    metric="acc",
    maximize=True,
    trials=[*BENT, *ENDED],
    budget_j=602e3,
    importance={"width": 0.9, "optimizer": 0.1},
)


def words(page: str) -> str:
    return unescape(
        re.sub(r"<[^>]+>", " ", page.split("</style>")[1].split('<script type="application/json"', maxsplit=1)[0])
    )


def test_the_page_says_what_the_table_says() -> None:
    said = " ".join(words(sweep_page(SWEEP)).split())
    assert "301.0 kJ 0.08361 kWh, 50.0 % of the budget of 0.1672 kWh" in said
    assert "on pruned and failed trials 5.000 kJ 1.7 % of all" in said
    assert "knee of the front trial 2 acc 0.85, 20.00 kJ" in said
    assert "best metric trial 4" in said
    assert "least energy to the target 80.00 kJ trial 8" in said
    assert "1 trials shared a GPU" in said
    assert "SIMULATED" in said
    assert "width 90.0 % up to 4: 15.00 kJ, above 4: 83.33 kJ" in said
    assert "optimizer 10.0 % sgd: 55.00 kJ, adam: 37.50 kJ" in said


def test_a_page_of_nothing_says_why() -> None:
    said = words(sweep_page(replace(SWEEP, trials=[], importance=None, why_no_importance="none")))
    assert "no trial has both a metric and joules" in said
    assert "no trial has joules" in said
    assert "no complete trial has hyperparameters" in said
    only = front_picture(replace(SWEEP, trials=[trial(0, 0.5, None)]))
    assert isinstance(only, Missing)


def test_names_are_text_and_nothing_else() -> None:
    evil = [replace(one, params={EVIL: EVIL}) for one in BENT]
    page = sweep_page(replace(SWEEP, study=EVIL, metric=EVIL, trials=evil, importance={EVIL: 1.0}))
    page.encode()
    plain = sweep_page(SWEEP)
    assert [page.count(tag) for tag in ("<img", "<script")] == [plain.count(tag) for tag in ("<img", "<script")]
    assert "\u202e" not in page


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(0, 1e12) | st.none()), max_size=30), st.booleans())
def test_pictures_take_whatever_trials_hold(points: list[tuple[float, float | None]], maximize: bool) -> None:
    trials = [trial(number % 9, value, energy_j) for number, (value, energy_j) in enumerate(points)]
    sweep = replace(SWEEP, trials=[replace(one, number=at) for at, one in enumerate(trials)], maximize=maximize)
    front = front_picture(sweep)
    drawn = 0 if isinstance(front, Missing) else sum(one.on_front for one in front.trials)
    assert drawn == len(sweep.front())
    pictures = (front, ends_picture(sweep), parameters_picture(sweep))
    there = tuple(picture for picture in pictures if isinstance(picture, Picture))
    assert json.loads(encoded(there, simulated=False))["pictures"] == [ANY] * len(there)
    for picture in there:
        assert all(len(row) == len(numbers_of(picture).heading) for row in numbers_of(picture).rows)
    assert len(trials_table(sweep).rows) == len(trials)
    assert sweep_tiles(sweep)


def test_of_many_trials_the_front_is_drawn_and_some_of_the_others() -> None:
    many = [trial(number, 1 / (number + 1), 10.0 + number, params={"x": number}) for number in range(5000)]
    best = trial(5000, 2.0, 1e6, params={"x": 1})
    picture = front_picture(replace(SWEEP, trials=[*many, best]))
    assert not isinstance(picture, Missing)
    assert len(picture.trials) <= MOST_TRIALS + 2
    assert [one.number for one in picture.trials if one.on_front] == [0, 5000]
    assert "are not drawn" in picture.caption


def test_categories_truths_and_rare_parameters_have_panels_of_their_own() -> None:
    trials = [
        trial(0, 0.1, 1.0, params={"rate": 1e-5, "nesterov": True, "only": 3}),
        trial(1, 0.1, 2.0, params={"rate": 1e-4, "nesterov": False}),
        trial(2, 0.1, 3.0, params={"rate": 1e-1, "nesterov": True}),
    ]
    picture = parameters_picture(replace(SWEEP, trials=trials, importance=None, why_no_importance="too few"))
    assert isinstance(picture, ParametersPicture)
    rate, nesterov, only = picture.panels
    assert rate.logarithmic
    assert rate.share is None
    assert nesterov.categories == ("True", "False")
    assert [(one.number, one.at) for one in nesterov.trials] == [(0, 0.0), (2, 0.0), (1, 1.0)]
    assert [one.number for one in only.trials] == [0]
    assert "too few" in picture.caption


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_command_writes_the_page(tmp_path: Path) -> None:
    make_study(sqlite(tmp_path))
    path = tmp_path / "new" / "sweep.html"

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "energy_plugins", "sweep", "report", sqlite(tmp_path), "digits", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    ended = run("--html", str(path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(path)]
    assert "trial 6" in words(path.read_text(encoding="utf-8"))
    assert run("--html", str(path), "--json").returncode == 2


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="Is a directory"):
        write_sweep_html(SWEEP, tmp_path)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


def opened(chromium: Browser, path: Path, size: tuple[int, int], scheme: Any) -> tuple[Page, list[str]]:
    page = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme).new_page()
    heard: list[str] = []
    page.on("request", lambda request: heard.append(request.url))
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=20_000)
    return page, heard


@needs_browser
@pytest.mark.parametrize(("size", "scheme"), [((1280, 900), "light"), ((360, 740), "dark")], ids=["desktop", "phone"])
def test_a_browser_draws_it_quietly_and_asks_nobody(
    chromium: Browser, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    path = write_sweep_html(SWEEP, tmp_path / "sweep.html")
    page, heard = opened(chromium, path, size, scheme)
    assert page.locator("html").get_attribute("data-drawn") == str(len(PICTURES))
    for name in PICTURES:
        assert page.locator(f"#chart-{name} svg path").count() > 5, name
    assert "knee: trial 2" in page.locator("#chart-front").inner_text()
    assert page.locator("#chart-hyperparameters").inner_text().count("90.0 %") == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert heard == [path.as_uri()]


@needs_browser
def test_points_are_read_by_keyboard_and_names_run_no_script(chromium: Browser, tmp_path: Path) -> None:
    evil = [replace(one, params={EVIL: EVIL}) for one in BENT]
    path = write_sweep_html(replace(SWEEP, metric=EVIL, trials=evil, importance={EVIL: 1.0}), tmp_path / "evil.html")
    page, heard = opened(chromium, path, (1280, 900), "light")
    for name in ("front", "hyperparameters"):
        box = page.locator(f"#chart-{name}")
        box.focus()
        box.press("Home")
        box.press("ArrowRight")
        box.press("ArrowRight" if name == "front" else "Home")
        assert '<img src="http://evil.example/x"' in box.locator("> div").last.inner_text()  # its tip is HTML
    page.locator("#chart-front").focus()
    page.locator("#chart-front").press("End")
    assert (page.locator("#spoken").text_content() or "").startswith("trial 4, on the front; ")
    assert page.locator("img").count() == 0
    assert "pwned" not in page.title()
    assert heard == [path.as_uri()]
