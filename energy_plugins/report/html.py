"""A report as one page that needs nothing else: it opens offline, asks no network and can be mailed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from energy_plugins import __version__
from energy_plugins.errors import ReportError
from energy_plugins.measure.joint_summary import joint_text
from energy_plugins.measure.json_section import plain
from energy_plugins.measure.quantity import quantity
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_files import folder_errors, write_atomically
from energy_plugins.report.advice import advice
from energy_plugins.report.carbon.footprint import Footprint
from energy_plugins.report.carbon.run_place import usual_footprint
from energy_plugins.report.carbon.text import entries
from energy_plugins.report.extras import needed
from energy_plugins.report.facts import cost_table, gpu_table, missing_table, tiles
from energy_plugins.report.page_parts import MOST_LINES, STYLE, asset, digests, template
from energy_plugins.report.pictures.album import pictures_of
from energy_plugins.report.pictures.picture import Missing, Picture
from energy_plugins.report.tables import table_of
from energy_plugins.report.wire import encoded

_SCRIPTS: Final = ("echarts.min.js", "scales.js", "views.js", "keys.js", "page.js")


def write_html(report: Report, path: str | Path, found: Footprint | None = None) -> Path:
    """Write ``report`` as one HTML file and return its path; a file that is there is replaced as a whole.

    Args:
        report: what to show.
        path: of the file.
        found: what the run meant in carbon and money; by the place that is configured if not given (`usual_footprint`).

    Raises:
        ReportError: the extra ``report`` is not installed, or the file cannot be written.
        ColumnError: columns of the report may not be read.
    """
    target = Path(path)
    with folder_errors("cannot write", target):
        if target.is_dir():
            raise ReportError(f"{target} is a folder: name the file to write, such as {target / 'report.html'}")
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page(report, found))
    return target


def page(report: Report, found: Footprint | None = None) -> str:
    """Return the page's text. Raises ReportError and ColumnError, as `write_html` does."""
    markupsafe = needed("markupsafe", "a page")
    pictures = pictures_of(report)
    drawn = tuple(picture for picture in pictures if isinstance(picture, Picture))
    scripts = [asset(name) for name in _SCRIPTS] if drawn else []
    return template("page.html").render(
        report=report,
        title=f"{report.name or 'unnamed run'} - energy report",
        simulated=report.simulated,
        all_rows_in="report.json",
        version=__version__,
        tiles=tiles(report),
        advice=advice(report),
        quantity=quantity,
        most_lines=MOST_LINES,
        pictures=[(picture, table_of(picture)) for picture in drawn],
        absent=[picture for picture in pictures if isinstance(picture, Missing)],
        together=joint_text(report.micro_batch, report.power_limit),
        footprint=entries(found or usual_footprint(report)),
        gpus=gpu_table(report),
        cost=cost_table(report),
        missing=missing_table(report),
        settings=json.dumps(
            {"config": plain(report.config), "versions": plain(report.versions)}, indent=1
        ).splitlines(),
        data=markupsafe.Markup(encoded(drawn, simulated=report.simulated)),
        style=markupsafe.Markup(asset(STYLE)),
        scripts=[markupsafe.Markup(script) for script in scripts],
        script_hashes=digests(scripts),
    )
