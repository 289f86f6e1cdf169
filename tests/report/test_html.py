"""The page as text: self-contained, honest about what it is, and safe whatever a name holds."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from _made_report import Made, made_report

from energy_plugins.config import ReportConfig
from energy_plugins.errors import ReportError
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.quantity import quantity
from energy_plugins.measure.report import Report
from energy_plugins.report.carbon.circumstances import Circumstances
from energy_plugins.report.carbon.footprint import footprint
from energy_plugins.report.carbon.grid import Marginal, of_country, own
from energy_plugins.report.carbon.run_place import kept
from energy_plugins.report.html import page
from energy_plugins.report.pictures.album import pictures_of
from energy_plugins.report.pictures.picture import Picture

EVIL = (
    """</script><script>alert(1)</script><img src="http://evil.example/x" onerror='alert(2)'>{{ 7*7 }}"""
    "\u202e\x00\ud800"
)
ADDRESS = re.compile(r"https?://[\w.]+")


class Elements(HTMLParser):
    """Collects what a browser would see as elements."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._script = "" if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self._script += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._script is not None:
            self.scripts.append(self._script)
            self._script = None


@pytest.fixture(scope="module")
def training() -> Report:
    return made_report(Made(steps=800, ranks=4))


@pytest.fixture(scope="module")
def text(training: Report) -> str:
    return page(training)


def test_nothing_is_asked_of_a_network(text: str) -> None:
    addressed = {"src", "srcset", "action", "poster", "background"}
    for tag, attributes in Elements(text).found:
        assert not addressed & attributes.keys(), (tag, attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), (tag, attributes)
    own = text
    for known in ("http://www.w3.org", "http://www.apache.org", "https://github.com"):  # names of XML, and licences
        own = own.replace(known, "")
    assert ADDRESS.findall(own) == []
    assert "@import" not in text
    assert "url(" not in text.split("</style>", maxsplit=1)[0]


def test_only_the_scripts_of_the_page_may_run(text: str) -> None:
    (policy,) = (
        attributes["content"] or ""
        for _, attributes in Elements(text).found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = [script for script in Elements(text).scripts if not script.startswith("{")]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert len(digests) == 5


def test_it_fits_in_a_mail(text: str) -> None:
    assert len(text.encode()) < 6e6


def test_names_are_text_and_nothing_else(training: Report) -> None:
    device = replace(training.devices[0], name=EVIL)
    bad = replace(
        training,
        name=EVIL,
        run_id=EVIL,
        node=EVIL,
        started=EVIL,
        stopped=EVIL,
        warnings=(EVIL,),
        missing={EVIL: EVIL},
        devices=(device,),
        gpu_j={EVIL: 1.0, device.uuid: 2.0},
        power={EVIL: next(iter(training.power.values()))},
        config={EVIL: EVIL},
        span_kinds=(*training.span_kinds[:-1], EVIL),
        kinds=(*training.kinds[:-1], replace(training.kinds[-1], kind=EVIL)),
        underfilled_how=EVIL,
    )
    text = page(bad)
    text.encode()
    plain = Elements(page(training))
    found = Elements(text)
    tags = [tag for tag, _ in found.found]
    assert "img" not in tags
    assert tags.count("script") == [tag for tag, _ in plain.found].count("script")
    assert not any(name.startswith("on") for _, attributes in found.found for name in attributes)
    assert "49" not in re.findall(r"<h1>(.*)</h1>", text)[0]
    assert "\u202e" not in text
    assert "\x00" not in text
    assert text.count("</script>") == tags.count("script")


def test_a_simulated_run_says_so_in_title_banner_and_pictures(text: str, training: Report) -> None:
    assert "<title>SIMULATED: made-up training" in text
    assert '<p class="banner"><strong>SIMULATED</strong>' in text
    assert '"simulated":true' in text
    real = page(replace(training, simulated=False))
    assert "<title>made-up training" in real
    assert 'class="banner"' not in real
    assert '"simulated":false' in real


def test_an_unfinished_or_stopped_run_says_so(training: Report) -> None:
    text = page(replace(training, complete=False, stopped="the energy budget is spent"))
    assert "<strong>Incomplete:</strong>" in text
    assert "<strong>Stopped early:</strong> the energy budget is spent" in text


def test_what_was_not_measured_says_why(training: Report) -> None:
    text = page(replace(training, total_j=None, missing={"total_j": "the driver is not there"}, power={}))
    assert "<b>not measured</b>" in text
    assert "<strong>Where the joules went:</strong> the driver is not there" in text
    assert "<strong>Power over time:</strong> no power samples were kept" in text


def test_a_page_stays_small_whatever_a_report_holds(training: Report) -> None:
    uuids = [f"GPU-{place}" for place in range(3000)]
    power = next(iter(training.power.values()))
    text = page(
        replace(
            training,
            warnings=("it failed " * 1000,) * 2000,
            missing={uuid: uuid for uuid in uuids},
            gpu_j=dict.fromkeys(uuids, 1.0),
            power=dict.fromkeys(uuids, power),
            config=dict.fromkeys(uuids, "x" * 100),
        )
    )
    assert len(text.encode()) < 6e6
    assert "and 1500 more in report.json" in text
    assert "2984 more GPUs are not drawn" in text


def test_a_page_without_pictures_needs_no_script(training: Report) -> None:
    bare = Report(
        run_id="1",
        name="",
        node="n",
        started="",
        duration_s=0.0,
        complete=False,
        simulated=False,
        total_j=None,
        gpu_j={},
    )
    text = page(bare)
    assert "script-src &#39;none&#39;" in text
    assert len(text) < 20_000
    assert len(page(training)) > 1_000_000


def test_a_page_is_written_as_a_whole_or_not_at_all(training: Report, tmp_path: Path) -> None:
    path = training.to_html(tmp_path / "new" / "run.html")
    assert path.read_text(encoding="utf-8") == page(training)
    assert training.to_html(str(path)) == path  # a page that is there is replaced
    assert [item.name for item in path.parent.iterdir()] == ["run.html"]
    with pytest.raises(ReportError, match="is a folder: name the file to write, such as .*report.html"):
        training.to_html(tmp_path)
    with pytest.raises(ReportError, match="cannot write"):
        training.to_html(path / "below.html")


@pytest.mark.parametrize(("package", "call"), [("jinja2", "to_html"), ("matplotlib", "to_png")])
def test_without_its_extra_it_says_what_to_install(package: str, call: str, training: Report, tmp_path: Path) -> None:
    training.save(tmp_path / "run")
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from energy_plugins import Report\n"
        "from energy_plugins.errors import ReportError\n"
        "try:\n"
        f"    Report.load({str(tmp_path / 'run')!r}).{call}({str(tmp_path / 'out')!r})\n"
        "except ReportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert f"needs {package}: pip install 'energy-plugins[report]'" in done.stdout
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_echarts_is_the_published_file() -> None:
    folder = Path(__file__).parents[2] / "energy_plugins" / "report" / "page"
    said = (folder / "echarts.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((folder / "echarts.min.js").read_bytes()).hexdigest()
    assert digest in said


def test_pictures_of_one_rank_of_several_say_so(training: Report) -> None:
    for picture in pictures_of(training):
        if isinstance(picture, Picture) and picture.name in {"where", "power", "steps"}:
            assert picture.caption.endswith("This is rank 0 of 4 alone.")
    alone = [picture for picture in pictures_of(made_report(Made(steps=50))) if isinstance(picture, Picture)]
    assert not any("rank" in picture.caption for picture in alone)


def carbon_of(text: str) -> dict[str, str]:
    """Return the lines of the page's part on carbon, by their labels."""
    part = text.partition('<section id="carbon"')[2].partition("</section>")[0]
    return dict(re.findall(r"<dt>(.*)</dt><dd>(.*)</dd>", part))


class TestCarbon:
    def test_where_the_place_is_known(self, training: Report) -> None:
        asked = Circumstances(location=of_country("FR"), marginal=own(Marginal, 400), pue=1.5, price_per_kwh=0.25)
        found = footprint(training, asked)
        lines = carbon_of(page(training, found))
        assert list(lines) == ["electricity", "cost", "carbon", "marginal", "SCI", "as much as"]
        assert found.location is not None
        assert lines["carbon"].startswith(f"{quantity(found.location.grams, 'g')} CO2e, location-based, at 56.04 g/kWh")
        assert lines["marginal"].endswith("in no sum with it")
        assert "location-based" not in lines["marginal"]
        assert f"{quantity(found.scores['sample'], 'g')} CO2e per sample" in lines["SCI"]
        assert "litres of water" in lines["as much as"]

    def test_where_it_is_not_there_is_energy_only(self, training: Report) -> None:
        lines = carbon_of(page(training))
        assert lines.keys() == {"electricity", "carbon", "as much as"}
        assert lines["carbon"].startswith("energy only, no grams: the place is not known: give a country")
        assert "CO2e" not in page(training)

    def test_the_place_that_the_report_has(self, training: Report, tmp_path: Path) -> None:
        settings = ReportConfig(country="DE", carbon_intensity_g_per_kwh=100.0, pue=2.0)
        placed = replace(training, config={**training.config, **kept(settings)})
        text = placed.to_html(tmp_path / "run.html").read_text()
        assert "x PUE 2" in carbon_of(text)["electricity"]
        assert "at 100 g/kWh (Germany, your own figure)" in carbon_of(text)["carbon"]

    def test_the_place_that_is_configured(self, training: Report, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENERGY_REPORT_COUNTRY", "FR")
        monkeypatch.setenv("ENERGY_REPORT_PUE", "1.25")
        assert "(France, 2023, " in carbon_of(page(training))["carbon"]
        elsewhere = replace(training, config={"place": {"country": "DE"}})
        lines = carbon_of(page(elsewhere))
        assert "(Germany, 2023, " in lines["carbon"]
        assert "x PUE 1" in lines["electricity"].replace("1.25", "of another place")

    @pytest.mark.parametrize(
        ("place", "why"),
        [
            ({"country": "Frence"}, "the nearest: France (FR)"),
            ({"carbon_intensity_g_per_kwh": -4}, "carbon_intensity_g_per_kwh is -4; expected"),
            ({"country": EVIL}, "expected one line of text"),
        ],
    )
    def test_a_place_that_cannot_be_is_the_reason(self, place: dict[str, str], why: str, training: Report) -> None:
        text = page(replace(training, config={"place": place}))
        assert carbon_of(text)["carbon"].startswith("energy only, no grams: ")
        assert why in carbon_of(text)["carbon"]

    def test_energy_that_was_not_measured(self, training: Report) -> None:
        lost = replace(training, total_j=None, ranks=None, missing={"total_j": "the GPU was lost"})
        assert carbon_of(page(lost)) == {"carbon": "no grams: the energy was not measured: the GPU was lost"}


def test_what_both_searches_save_together(training: Report) -> None:
    assert 'id="together"' not in page(training)
    assert training.power_limit is not None
    limit = replace(training.power_limit, expected_saving=0.1)
    batch = MicroBatchPart(asked="least energy", expected_saving=0.2, checked_beside=(4, 8), saving_beside=0.0)
    text = page(replace(training, power_limit=limit, micro_batch=batch))
    together = text.partition('<section id="together"')[2].partition("</section>")[0]
    assert "28.0 % less energy expected of both: 20.0 % by the micro-batch, 10.0 % of the rest by the power" in together
    assert "(4, 8 at once compared once more under the limit: none is better)" in together
    assert '<a href="#together">' in text
