"""A report as one page that needs nothing else: it opens offline, asks no network and can be mailed."""

from __future__ import annotations

import json
from pathlib import Path

from energy_plugins.measure.joint_summary import joint_text
from energy_plugins.measure.json_section import plain
from energy_plugins.measure.quantity import quantity
from energy_plugins.measure.report import Report
from energy_plugins.report.advice import advice
from energy_plugins.report.carbon.footprint import Footprint
from energy_plugins.report.carbon.run_place import usual_footprint
from energy_plugins.report.carbon.text import entries
from energy_plugins.report.facts import cost_table, gpu_table, missing_table, tiles
from energy_plugins.report.page_parts import rendered, write_page
from energy_plugins.report.pictures.album import pictures_of
from energy_plugins.report.pictures.picture import Missing, Picture
from energy_plugins.report.tables import table_of


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
    return write_page(page(report, found), path)


def page(report: Report, found: Footprint | None = None) -> str:
    """Return the page's text. Raises ReportError and ColumnError, as `write_html` does."""
    pictures = pictures_of(report)
    drawn = tuple(picture for picture in pictures if isinstance(picture, Picture))
    return rendered(
        "page.html",
        drawn,
        report=report,
        title=f"{report.name or 'unnamed run'} - energy report",
        simulated=report.simulated,
        all_rows_in="report.json",
        tiles=tiles(report),
        advice=advice(report),
        quantity=quantity,
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
    )
