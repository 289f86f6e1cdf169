"""Figures quoted in the documents are those of the committed results.

A quoted figure is followed by a comment ``<!-- results/FILE.json KEY.PATH FORMAT -->``. Until the result is there, the
placeholder stands for it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/measuring.md")
PLACEHOLDER = "<<?>>"

QUOTE = re.compile(r"(<<\?>>|[-+]?[\d.]+%?) <!-- results/(\w+\.json) (.+?) (\S+) -->")
MARKED = re.compile(r"<!-- results/")


@dataclass(frozen=True)
class Quote:
    """A figure as a document has it, and where it comes from."""

    document: str
    figure: str
    file: str
    path: str
    format: str

    def __str__(self) -> str:
        return f"{self.document}: {self.file} {self.path}"


def value_at(result: object, path: str) -> float:
    """Return the number at a dotted path of keys and list positions."""
    for key in path.split("."):
        match result:
            case dict():
                result = result[key]
            case list():
                result = result[int(key)]
    assert isinstance(result, int | float)
    return result


def quotes_in(document: str) -> list[Quote]:
    return [Quote(document, *found) for found in QUOTE.findall((ROOT / document).read_text())]


QUOTES = [quote for document in DOCUMENTS for quote in quotes_in(document)]


@pytest.mark.parametrize("quote", QUOTES, ids=str)
def test_quotes_the_result(quote: Quote) -> None:
    path = RESULTS / quote.file
    if not path.exists():
        assert quote.figure == PLACEHOLDER, "there is no such result"
        return
    assert quote.figure == format(value_at(json.loads(path.read_text()), quote.path), quote.format)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_marked_figure_is_a_quote(document: str) -> None:
    assert len(quotes_in(document)) == len(MARKED.findall((ROOT / document).read_text()))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    result = json.loads(path.read_text())

    assert {"date", "hardware", "versions", "commit", "raw"} <= result.keys()
    simulated = any("SIMULATED" in gpu for gpu in result["hardware"]["gpus"])
    assert ("SIMULATED" in result["label"]) == simulated
