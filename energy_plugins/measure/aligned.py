"""Rows of text as lines whose columns stand below each other."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Return a line for each row; ``sides`` says of each column to which side its cells are moved: ``<`` or ``>``."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(_padded, row, sides, widths)) for row in rows]


def _padded(cell: str, side: str, width: int) -> str:
    return f"{cell:{side}{width}}"
