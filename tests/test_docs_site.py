"""The documents' site: every page has its place; `make docs` builds it, and fails where a link is broken."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def pages_of(nav: Any) -> list[str]:
    """Return the files that a nav names, at whatever depth."""
    match nav:
        case str():
            return [nav]
        case dict():
            return [page for value in nav.values() for page in pages_of(value)]
        case _:
            return [page for item in nav for page in pages_of(item)]


def test_every_page_has_one_place() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(pages_of(site["nav"])) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize(
    ("repository", "expected"),
    [(None, "`setup.py`"), ("https://host/repo", "[setup.py](https://host/repo/blob/main/setup.py)")],
)
def test_a_link_to_the_sources_is_a_name_or_leads_to_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, repository: str | None, expected: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from docs_site import on_page_markdown

    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    config: Any = SimpleNamespace(repo_url=repository)
    text = "see [setup.py](../setup.py) <!-- results/a.json b .1f --> and [here](there.md)"
    found = on_page_markdown(text, page=page, config=config)
    assert found == f"see {expected} <!-- results/a.json b .1f --> and [here](there.md)"
    with caplog.at_level(logging.WARNING):
        on_page_markdown("[gone](../no/such.file)", page=page, config=config)
    assert "page.md points to ../no/such.file, which is not there" in caplog.text
