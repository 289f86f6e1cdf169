"""A sweep as one page that needs nothing else, as `energy_plugins.report.html` makes one of a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from energy_plugins import __version__
from energy_plugins.measure.report_files import folder_errors, write_atomically
from energy_plugins.report.extras import needed
from energy_plugins.report.page_parts import MOST_LINES, STYLE, asset, digests, template
from energy_plugins.report.pictures.picture import Missing, Picture
from energy_plugins.report.pictures.sweep_ends import ends_picture
from energy_plugins.report.pictures.sweep_front import front_picture
from energy_plugins.report.pictures.sweep_parameters import parameters_picture
from energy_plugins.report.sweep_tables import numbers_of, sweep_tiles, trials_table
from energy_plugins.report.sweep_text import doubts
from energy_plugins.report.wire import encoded

if TYPE_CHECKING:
    from energy_plugins.report.sweep import Sweep

_SCRIPTS: Final = ("echarts.min.js", "scales.js", "views.js", "sweep_views.js", "keys.js", "page.js")


def write_sweep_html(sweep: Sweep, path: str | Path) -> Path:
    """Write ``sweep`` as one HTML file and return its path; a file that is there is replaced as a whole.

    Raises:
        ReportError: the extra ``report`` is not installed, or the file cannot be written.
    """
    target = Path(path)
    text = sweep_page(sweep)
    with folder_errors("cannot write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text)
    return target


def sweep_page(sweep: Sweep) -> str:
    """Return the page's text. Raises ReportError, as `write_sweep_html` does."""
    markupsafe = needed("markupsafe", "a page")
    pictures = (front_picture(sweep), ends_picture(sweep), parameters_picture(sweep))
    drawn = tuple(picture for picture in pictures if isinstance(picture, Picture))
    scripts = [asset(name) for name in _SCRIPTS] if drawn else []
    simulated = any(trial.simulated for trial in sweep.trials)
    return template("sweep.html").render(
        sweep=sweep,
        title=f"{sweep.study} - energy of a sweep",
        simulated=simulated,
        all_rows_in="what energy-plugins sweep report --json prints",
        version=__version__,
        tiles=sweep_tiles(sweep),
        doubts=doubts(sweep),
        most_lines=MOST_LINES,
        pictures=[(picture, numbers_of(picture)) for picture in drawn],
        absent=[picture for picture in pictures if isinstance(picture, Missing)],
        trials=trials_table(sweep),
        data=markupsafe.Markup(encoded(drawn, simulated=simulated)),
        style=markupsafe.Markup(asset(STYLE)),
        scripts=[markupsafe.Markup(script) for script in scripts],
        script_hashes=digests(scripts),
    )
