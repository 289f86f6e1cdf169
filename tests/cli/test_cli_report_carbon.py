"""`energy-plugins report` with a place and a price: grams where they are known, errors that name the nearest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from commands import call

REAL = Path(__file__).parents[2] / "benchmarks" / "results" / "h200_lightning_report"
"""A training of a minute on an H200; it drew 9.724 Wh."""


def report(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return call("report", REAL, *arguments, variables=variables)


def test_a_country_a_pue_and_a_price() -> None:
    done = report("--country", "FR", "--pue", "1.2", "--price", "0.25")
    assert done.returncode == 0, done.stderr
    assert "11.67 Wh = (GPUs 9.724 Wh) x PUE 1.2" in done.stdout
    assert "653.9 mg CO2e, location-based, at 56.04 g/kWh (France, 2023, Our World in Data" in done.stdout
    assert "0.002917 at 0.25 per kWh" in done.stdout
    found = json.loads(report("--json", "--country", "FR", "--pue", "1.2").stdout)
    assert found["carbon"]["location_based"]["grams"] == pytest.approx(0.6539, rel=1e-3)
    assert found["total_j"] == pytest.approx(9.724 * 3600, rel=1e-3)


def test_without_any_of_it_the_report_is_as_ever() -> None:
    plain = report()
    assert "carbon" not in plain.stdout
    assert "carbon" not in json.loads(report("--json").stdout)


def test_a_price_alone_invents_no_grams() -> None:
    done = report("--price", "0.25")
    assert "no grams: the place is not known" in done.stdout
    assert "CO2e" not in done.stdout


def test_the_configuration_says_where_trainings_run_and_options_override_it() -> None:
    usual = {"ENERGY_REPORT_COUNTRY": "DE", "ENERGY_REPORT_PUE": "1.5"}
    assert "Germany, 2023" in report(**usual).stdout
    assert "x PUE 1.5" in report(**usual).stdout
    done = report("--country", "FR", "--pue", "1", **usual, ENERGY_REPORT_CARBON_INTENSITY_G_PER_KWH="9")
    assert "France, 2023" in done.stdout
    assert "at 56.04 g/kWh" in done.stdout
    assert "x PUE 1\n" in done.stdout
    own = report("--intensity", "7", **usual)
    assert "at 7 g/kWh (Germany, your own figure)" in " ".join(own.stdout.split())


def test_a_time_series(tmp_path: Path) -> None:
    series = tmp_path / "grid.csv"
    series.write_text("time,g_per_kwh\n2026-11-22T14:00:00Z,100\n2026-11-22T15:00:00Z,300\n")
    assert "at 100 g/kWh (your own figures, grid.csv)" in " ".join(report("--intensity", series).stdout.split())
    series.write_text("time,g_per_kwh\n2026-11-21T14:00:00Z,100\n2026-11-21T15:00:00Z,300\n")
    done = report("--intensity", series)
    assert (done.returncode, done.stdout) == (2, "")
    assert "grid.csv covers 2026-11-21T14:00:00Z to 2026-11-21T16:00:00Z" in done.stderr


def test_a_model_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n# Model\n")
    done = report("--country", "FR", "--model-card", card, "--training-type", "fine-tuning")
    assert done.returncode == 0, done.stderr
    before, block, after = card.read_text().partition("co2_eq_emissions:\n")
    assert before == "---\nlicense: mit\n"
    assert block
    assert after.endswith("  hardware_used: 1 x NVIDIA H200\n---\n# Model\n")
    assert "  training_type: fine-tuning\n" in after


def test_the_page_has_what_the_table_has(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    done = report("--html", page, "--country", "FR", "--pue", "1.2", "--price", "0.25", "--marginal", "400")
    assert (done.returncode, done.stdout) == (0, f"{page}\n"), done.stderr
    text = page.read_text()
    assert "<dd>11.67 Wh = (GPUs 9.724 Wh) x PUE 1.2</dd>" in text
    assert "<dd>653.9 mg CO2e, location-based, at 56.04 g/kWh (France, 2023, Our World in Data" in text
    assert " g CO2e, marginal, at 400 g/kWh (your own figure)" in text
    assert "<dd>0.002917 at 0.25 per kWh</dd>" in text
    report("--html", page)
    assert "energy only, no grams: the place is not known" in page.read_text()
    assert "CO2e" not in page.read_text()


def test_a_model_card_needs_grams(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# Model\n")
    done = report("--model-card", card)
    assert done.returncode == 1
    assert "is to have grams, and there are none" in done.stderr
    assert card.read_text() == "# Model\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--country", "Frence"], "the nearest: France (FR)"),
        (["--country", "Atlantis, sunk"], "is not known"),
        (["--intensity", "-5"], "-5 g/kWh; expected a number, 0 or more"),
        (["--marginal", "-5"], "-5 g/kWh"),
        (["--intensity", "none.csv"], "neither a number nor a CSV file"),
        (["--pue", "0.8"], "expected a number, 1 or more"),
        (["--price", "-1"], "price"),
        (["--epochs", "0"], "epochs"),
        (["--embodied-kg", "-1"], "embodied"),
        (["--lifetime-years", "4"], "give that as well"),
        (["--country", "FR", "--steps"], "leave --steps and --png out"),
        (["--price", "1", "--png", "pictures"], "leave --steps and --png out"),
        (["--country", "Frence", "--html", "page.html"], "the nearest: France (FR)"),
        (["--training-type", "guessing"], "guessing"),
    ],
)
def test_what_cannot_be(arguments: list[str], said: str) -> None:
    done = report(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configured_country_that_does_not_exist() -> None:
    done = report(ENERGY_REPORT_COUNTRY="Frence")
    assert done.returncode == 2
    assert "France (FR)" in done.stderr
