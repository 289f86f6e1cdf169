"""What the site does with links of docs/ to files that are not part of it: they become plain names, if they are there.

A hook of MkDocs (mkdocs.org/user-guide/configuration/#hooks), which calls it with each page's Markdown. Whoever hosts
the site beside the sources sets ``repo_url``, and gets links.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[1]
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")

_LOG = logging.getLogger("mkdocs.hooks.docs_site")
"""MkDocs counts the warnings of its own loggers, and --strict fails if there are any."""


class _File(Protocol):
    src_uri: str


class _Page(Protocol):
    file: _File


class _Config(Protocol):
    repo_url: str | None


def on_page_markdown(markdown: str, *, page: _Page, config: _Config, **_: object) -> str:
    """Return the page with its links to other files of the sources replaced; one to nothing is a warning."""

    def replaced(link: re.Match[str]) -> str:
        text, path = link[1], link[2]
        if not (ROOT / path).exists():
            _LOG.warning("%s points to ../%s, which is not there", page.file.src_uri, path)
        return f"[{text}]({config.repo_url}/blob/main/{path})" if config.repo_url else f"`{text.strip('`')}`"

    return _OUTSIDE.sub(replaced, markdown)
