"""A real browser without a window: Debian's chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def no_browser_because() -> str:
    """Return why there is none, and what to do; nothing where there is one."""
    if find_spec("playwright") is None:
        return "needs playwright: pip install playwright"
    return "" if _chromium() else "needs chromium: apt-get install chromium"


@contextmanager
def browser() -> Iterator[Browser]:
    """Start it; a page in it may ask no network, because there is none in a test."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where it is installed

    with sync_playwright() as playwright:
        # Root has no sandbox, and containers little shared memory.
        switches = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=_chromium(), args=switches)
        try:
            yield started
        finally:
            started.close()


def _chromium() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)
