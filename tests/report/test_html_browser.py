"""The page in a real browser: it draws, asks no network, and can be read by keyboard, on a phone and at night."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _browser import browser, no_browser_because
from _made_report import Made, made_report
from PIL import Image

from energy_plugins.config import ReportConfig
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.report.carbon.run_place import kept

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(bool(no_browser_because()), reason=no_browser_because() or "there is a browser")

DESKTOP, PHONE = (1280, 900), (360, 740)
PICTURES = ("where", "power", "steps", "ranks", "limit-search")
EVIL = (
    """<img src="http://evil.example/x" onerror="document.title='pwned'">"""
    """</script><script>document.title='pwned'</script>"""
)


@dataclass
class Visit:
    """A page that is open, and what it did."""

    page: Page
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def drawn(self) -> int:
        """Wait until the pictures are drawn, and return how many."""
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=20_000)
        return int(self.page.locator("html").get_attribute("data-drawn") or -1)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    training = made_report(Made(steps=5000, ranks=4, gpus=2))
    device = replace(training.devices[0], name=EVIL)
    assert training.ranks is not None
    rows = tuple(replace(row, part=replace(row.part, node=EVIL)) for row in training.ranks.rows)
    evil = replace(
        training,
        name=EVIL,
        node=EVIL,
        warnings=(EVIL,),
        devices=(device,),
        ranks=replace(training.ranks, rows=rows),
        power={EVIL: next(iter(training.power.values()))},
        kinds=(*training.kinds[:-1], replace(training.kinds[-1], kind=EVIL)),
    )
    return {"plain": training.to_html(folder / "plain.html"), "evil": evil.to_html(folder / "evil.html")}


def visit(chromium: Browser, path: Path, size: tuple[int, int] = DESKTOP, scheme: Any = "light") -> Visit:
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    seen = Visit(context.new_page())
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    seen.page.on("console", lambda message: seen.said.append(message.text))
    seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
    seen.page.goto(path.as_uri())
    return seen


def pixels(picture: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), np.int32)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_draws_quietly_and_asks_nobody(
    chromium: Browser, pages: dict[str, Path], size: tuple[int, int], scheme: str
) -> None:
    seen = visit(chromium, pages["plain"], size, scheme)
    assert seen.drawn() == len(PICTURES)
    for name in PICTURES:
        shot = pixels(seen.page.locator(f"#chart-{name}").screenshot())
        assert len(np.unique(shot[::3, ::3] @ np.array([1 << 16, 1 << 8, 1]))) > 30, name
        background = shot[2, 2].mean()
        assert background > 200 if scheme == "light" else background < 60
        ink = np.abs(shot - shot[2, 2]).max(axis=2) > 40
        assert ink.mean() > 0.01, name
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert seen.asked == [pages["plain"].as_uri()]
    assert seen.said == []


def test_names_run_no_script_and_load_no_picture(chromium: Browser, pages: dict[str, Path]) -> None:
    seen = visit(chromium, pages["evil"])
    assert seen.drawn() == len(PICTURES)
    for name in ("power", "ranks"):
        box = seen.page.locator(f"#chart-{name}")
        box.focus()
        box.press("End")
        assert '<img src="http://evil.example/x"' in box.locator("> div").last.inner_text()  # its tip is HTML
    assert seen.page.title().startswith("SIMULATED: <img")
    assert seen.page.locator("img").count() == 0
    assert seen.asked == [pages["evil"].as_uri()]
    assert seen.said == []


def test_a_script_that_is_not_the_pages_would_not_run(chromium: Browser, tmp_path: Path) -> None:
    text = made_report(Made(steps=50)).to_html(tmp_path / "run.html").read_text(encoding="utf-8")
    (tmp_path / "run.html").write_text(text.replace("</main>", "<script>document.title = 'pwned'</script></main>"))
    seen = visit(chromium, tmp_path / "run.html")
    seen.drawn()
    assert "made-up" in seen.page.title()
    assert any("Content Security Policy" in text for text in seen.said)


def test_everything_is_reached_and_read_by_keyboard(chromium: Browser, pages: dict[str, Path]) -> None:
    seen = visit(chromium, pages["plain"])
    seen.drawn()
    page, reached = seen.page, []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    while page.evaluate("document.activeElement !== document.body"):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        page.keyboard.press("Tab")
        assert len(reached) < 100
    assert [name for name in PICTURES if f"chart-{name}" not in reached] == []
    assert reached.count("SUMMARY") == len(PICTURES) + 1
    box = page.locator("#chart-steps")
    box.focus()
    box.press("Home")
    spoken = page.locator("#spoken")
    assert (spoken.text_content() or "").startswith("step 1 and those around it; mean ")
    box.press("ArrowRight")
    assert (spoken.text_content() or "").startswith("step 3 ")
    zoom = "echarts.getInstanceByDom(document.querySelector('#chart-steps')).getOption().dataZoom[0]"
    box.press("+")
    assert page.evaluate(f"{zoom}.end") < 60
    box.press("0")
    assert page.evaluate(f"{zoom}.end") == 100


def test_numbers_of_each_picture_are_a_table(chromium: Browser, pages: dict[str, Path]) -> None:
    seen = visit(chromium, pages["plain"], PHONE)
    seen.drawn()
    for name in PICTURES:
        seen.page.locator(f"#{name} summary").press("Enter")
        assert seen.page.locator(f"#{name} tbody tr").first.is_visible()
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_carbon_and_what_was_saved_together(chromium: Browser, tmp_path: Path, size: tuple[int, int]) -> None:
    training = made_report(Made(steps=50))
    assert training.power_limit is not None
    limit = replace(training.power_limit, expected_saving=0.1)
    batch = MicroBatchPart(asked="least energy", expected_saving=0.2)
    place = kept(ReportConfig(country="FR", pue=1.2))
    both = replace(training, config=place, power_limit=limit, micro_batch=batch)
    seen = visit(chromium, both.to_html(tmp_path / "run.html"), size)
    seen.drawn()
    seen.page.locator('nav a[href="#carbon"]').click()
    carbon = seen.page.locator("#carbon dl")
    assert "CO2e, location-based, at 56.04 g/kWh (France, 2023, Our World in Data" in carbon.inner_text()
    labels = [box["x"] for box in (one.bounding_box() for one in carbon.locator("dt").all()) if box]
    texts = [box["x"] for box in (one.bounding_box() for one in carbon.locator("dd").all()) if box]
    assert len(set(labels)) == len(set(texts)) == 1
    assert "28.0 % less energy expected of both" in seen.page.locator("#together").inner_text()
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert seen.said == []


def test_the_scheme_may_change_while_it_is_read(chromium: Browser, pages: dict[str, Path]) -> None:
    seen = visit(chromium, pages["plain"])
    seen.drawn()
    text = seen.page.locator("#chart-where text").first
    light = text.get_attribute("fill")
    seen.page.emulate_media(color_scheme="dark")
    seen.page.wait_for_function(
        "light => document.querySelector('#chart-where text').getAttribute('fill') !== light", arg=light
    )


def test_without_scripts_the_numbers_are_there(chromium: Browser, pages: dict[str, Path]) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["plain"].as_uri())
    assert page.locator("noscript p, p.warning").filter(has_text="Pictures need JavaScript").count() == 1
    page.locator("#where summary").press("Enter")
    assert "backward" in page.locator("#where table").inner_text()
