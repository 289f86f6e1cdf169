"""Text of a report as it may be shown: names come from users and files, and may hold anything."""

from __future__ import annotations

from typing import Final

MOST_TEXT: Final = 2000
"""Characters of one text: a warning may quote a file."""


def readable(text: str) -> str:
    """Return ``text`` on one line, with "?" for what cannot be printed or would turn the text around it."""
    short = text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in short)
