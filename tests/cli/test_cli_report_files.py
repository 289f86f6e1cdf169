"""`energy-plugins report --html` and `--png`: files from good folders, one sentence from bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _made_report import Made, made_report
from commands import call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_report(Made(steps=500, ranks=4)).save(tmp_path_factory.mktemp("made") / "run")


def test_a_page_and_pictures(folder: Path, tmp_path: Path) -> None:
    page, pictures = tmp_path / "run.html", tmp_path / "pictures"
    done = call("report", folder, "--html", page, "--png", pictures)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(page), *(str(pictures / name) for name in sorted_as_drawn(pictures))]
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def sorted_as_drawn(pictures: Path) -> list[str]:
    order = ["where.png", "power.png", "steps.png", "ranks.png", "limit-search.png"]
    assert {path.name for path in pictures.iterdir()} == set(order)
    return order


def test_the_header_may_be_named_too(folder: Path, tmp_path: Path) -> None:
    assert call("report", folder / "report.json", "--html", tmp_path / "run.html").returncode == 0


@pytest.mark.parametrize("other", ["--steps", "--json"])
def test_files_or_a_table_but_not_both(other: str, folder: Path, tmp_path: Path) -> None:
    done = call("report", folder, "--html", tmp_path / "run.html", other)
    assert done.returncode == 2
    assert "leave --steps and --json out" in done.stderr
    assert not (tmp_path / "run.html").exists()


def truncated(text: str) -> str:
    return text[: len(text) // 2]


def foreign(_: str) -> str:
    return json.dumps({"emissions": 1.2, "duration": 3})


def newer(text: str) -> str:
    return json.dumps({**json.loads(text), "schema_version": 2})


def binary(_: str) -> str:
    return "\x00\x01GIF89a"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (truncated, "report.json is no JSON"),
        (foreign, "report.json: schema_version is missing"),
        (newer, "schema_version is 2; this version of energy-plugins reads 1: use the one that wrote it"),
        (binary, "report.json is no JSON"),
    ],
)
def test_a_bad_report_is_one_sentence_and_no_file(spoil: object, sentence: str, folder: Path, tmp_path: Path) -> None:
    assert callable(spoil)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "report.json").write_text(spoil((folder / "report.json").read_text()))
    done = call("report", tmp_path / "bad", "--html", tmp_path / "run.html", "--png", tmp_path / "pictures")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"bad"}


def test_columns_that_were_cut_short_are_drawn_as_far_as_they_go(folder: Path, tmp_path: Path) -> None:
    energy = folder / "steps" / "energy_j.f8"
    whole = energy.read_bytes()
    try:
        energy.write_bytes(whole[: len(whole) // 2])
        done = call("report", folder, "--html", tmp_path / "run.html")
    finally:
        energy.write_bytes(whole)
    assert done.returncode == 0
    assert "steps: only 250 of 500 rows are left on the disk" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    done = call("report", folder, "--html", tmp_path)
    assert done.returncode == 1
    assert "is a folder: name the file to write" in done.stderr
