"""The threat model names a test for every row, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parents[1] / "docs/powerd.md"


def test_every_test_that_the_document_names_is_there() -> None:
    written = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", DOCUMENT.read_text())
    assert len(named) > 30
    assert [name for name in named if f"def {name}(" not in written] == []
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "threat" not in line]
    threats = [row for row in rows if row.count("|") == 4 and "`test_" in row]
    assert len(threats) > 25
