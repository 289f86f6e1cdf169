"""What every page is made of: its template, its pictures, the files inside it and the scripts that may run."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from energy_plugins import __version__
from energy_plugins.errors import ReportError
from energy_plugins.measure.report_files import folder_errors, write_atomically
from energy_plugins.report.extras import needed
from energy_plugins.report.readable import readable
from energy_plugins.report.wire import encoded

if TYPE_CHECKING:
    import jinja2

    from energy_plugins.report.pictures.picture import Picture

_MOST_LINES: Final = 500
"""Of warnings, rows and settings: a page stays small whatever a report holds."""
_STYLE: Final = "page.css"
_DRAWING: Final = ("echarts.min.js", "scales.js", "views.js")
_AT_LAST: Final = ("keys.js", "page.js")
_PAGE: Final = "energy_plugins.report"


def rendered(
    name: str, drawn: tuple[Picture, ...], *, title: str, simulated: bool, views: tuple[str, ...] = (), **parts: object
) -> str:
    """Return a page.

    Args:
        name: of its template, in the folder ``page``.
        drawn: its pictures.
        title: of the page.
        simulated: whether its joules are those of simulated GPUs.
        views: scripts that draw pictures which ``views.js`` does not know.
        parts: what the template asks for.

    Raises:
        ReportError: the extra ``report`` is not installed.
    """
    markup = needed("markupsafe", "a page").Markup
    scripts = [_asset(script) for script in (*_DRAWING, *views, *_AT_LAST)] if drawn else []
    return _template(name).render(
        title=title,
        simulated=simulated,
        version=__version__,
        most_lines=_MOST_LINES,
        data=markup(encoded(drawn, simulated=simulated)),
        style=markup(_asset(_STYLE)),
        scripts=[markup(script) for script in scripts],
        script_hashes=_digests(scripts),
        **parts,
    )


def write_page(text: str, path: str | Path) -> Path:
    """Write a page and return its path; a file that is there is replaced as a whole.

    Raises:
        ReportError: it cannot be written.
    """
    target = Path(path)
    with folder_errors("cannot write", target):
        if target.is_dir():
            raise ReportError(f"{target} is a folder: name the file to write, such as {target / 'report.html'}")
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text)
    return target


def _template(name: str) -> jinja2.Template:
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


def _asset(name: str) -> str:
    text = (files(_PAGE) / "page" / name).read_text(encoding="utf-8")
    if re.search("</script|<!--", text, re.IGNORECASE):
        raise ReportError(f"{name} cannot stand inside a page: it would end the element it is in")
    return text


def _digests(scripts: list[str]) -> str:
    """Return what a content security policy calls the scripts: only these may run, whatever a name holds."""
    each = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in each) or "'none'"
