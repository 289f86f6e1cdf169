"""A sweep as one page that needs nothing else, as `energy_plugins.report.html` makes one of a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from energy_plugins.report.page_parts import rendered, write_page
from energy_plugins.report.pictures.picture import Missing, Picture
from energy_plugins.report.pictures.sweep_ends import ends_picture
from energy_plugins.report.pictures.sweep_front import front_picture
from energy_plugins.report.pictures.sweep_parameters import parameters_picture
from energy_plugins.report.sweep_tables import numbers_of, sweep_tiles, trials_table
from energy_plugins.report.sweep_text import doubts

if TYPE_CHECKING:
    from energy_plugins.report.sweep import Sweep


def write_sweep_html(sweep: Sweep, path: str | Path) -> Path:
    """Write ``sweep`` as one HTML file and return its path; a file that is there is replaced as a whole.

    Raises:
        ReportError: the extra ``report`` is not installed, or the file cannot be written.
    """
    return write_page(sweep_page(sweep), path)


def sweep_page(sweep: Sweep) -> str:
    """Return the page's text. Raises ReportError, as `write_sweep_html` does."""
    pictures = (front_picture(sweep), ends_picture(sweep), parameters_picture(sweep))
    drawn = tuple(picture for picture in pictures if isinstance(picture, Picture))
    return rendered(
        "sweep.html",
        drawn,
        sweep=sweep,
        title=f"{sweep.study} - energy of a sweep",
        simulated=any(trial.simulated for trial in sweep.trials),
        views=("sweep_views.js",),
        all_rows_in="what energy-plugins sweep report --json prints",
        tiles=sweep_tiles(sweep),
        doubts=doubts(sweep),
        pictures=[(picture, numbers_of(picture)) for picture in drawn],
        absent=[picture for picture in pictures if isinstance(picture, Missing)],
        trials=trials_table(sweep),
    )
