"""What every page is made of: its template, the files that stand inside it, and the scripts that may run."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from energy_plugins.errors import ReportError
from energy_plugins.report.extras import needed
from energy_plugins.report.readable import readable

if TYPE_CHECKING:
    import jinja2

MOST_LINES: Final = 500
"""Of warnings, rows and settings: a page stays small whatever a report holds."""
STYLE: Final = "page.css"
_PAGE: Final = "energy_plugins.report"


def template(name: str) -> jinja2.Template:
    """Return a template of the folder ``page``. Raises ReportError if the extra ``report`` is not installed."""
    templates = needed("jinja2", "a page")
    markupsafe = needed("markupsafe", "a page")

    def shown(value: object) -> object:
        return value if isinstance(value, markupsafe.Markup) else readable(str(value))

    environment = templates.Environment(
        loader=templates.PackageLoader(_PAGE, "page"),
        autoescape=True,
        finalize=shown,
        undefined=templates.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found: jinja2.Template = environment.get_template(name)
    return found


def asset(name: str) -> str:
    """Return the text of a script or style of the folder ``page``."""
    text = (files(_PAGE) / "page" / name).read_text(encoding="utf-8")
    if re.search("</script|<!--", text, re.IGNORECASE):
        raise ReportError(f"{name} cannot stand inside a page: it would end the element it is in")
    return text


def digests(scripts: list[str]) -> str:
    """Return what a content security policy calls the scripts: only these may run, whatever a name holds."""
    each = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in each) or "'none'"
