"""The pictures of a report as PNG files, for papers and slides."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from energy_plugins.errors import ReportError
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_files import folder_errors
from energy_plugins.report.drawing import draw
from energy_plugins.report.extras import needed
from energy_plugins.report.pictures.album import pictures_of
from energy_plugins.report.pictures.picture import Missing, Picture
from energy_plugins.report.readable import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI: Final = 200
_SIMULATED: Final = "SIMULATED: no measurement of hardware"
_SIZE: Final = {"where": (7.0, 4.2), "power": (7.0, 4.6)}
"""Inches; as wide as a page of two columns."""


def write_png(report: Report, folder: str | Path) -> tuple[Path, ...]:
    """Write each picture that there is to ``folder``, such as ``power.png``, and return the paths.

    Files of that name are replaced; nothing else in the folder is touched.

    Raises:
        ReportError: the extra ``report`` is not installed, there is nothing to draw, or a file cannot be written.
        ColumnError: columns of the report may not be read.
    """
    target = Path(folder)
    pictures = pictures_of(report)
    drawn = [picture for picture in pictures if isinstance(picture, Picture)]
    if not drawn:
        reasons = "; ".join(f"{picture.title}: {picture.why}" for picture in pictures if isinstance(picture, Missing))
        raise ReportError(f"there is nothing to draw of this report ({readable(reasons)})")
    with folder_errors("cannot write pictures to", target):
        target.mkdir(parents=True, exist_ok=True)
        return tuple(_write(picture, report, target / f"{picture.name}.png") for picture in drawn)


def _write(picture: Picture, report: Report, path: Path) -> Path:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # one for each letter that the font lacks
        return _drawn(picture, report, path)


def _drawn(picture: Picture, report: Report, path: Path) -> Path:
    figure: Figure = needed("matplotlib.figure", "a PNG").Figure(
        figsize=_SIZE.get(picture.name, (7.0, 3.6)), layout="constrained"
    )
    draw(picture, figure)
    figure.suptitle(_plain(f"{picture.title}: {report.name or 'unnamed run'}"), fontsize=10)
    if report.simulated:
        figure.text(
            0.5, 0.5, _SIMULATED, fontsize=22, color="#b3261e", alpha=0.25, ha="center", va="center", rotation=20
        )
    figure.savefig(path, dpi=_DPI, metadata={"Title": _plain(report.name), "Description": _plain(picture.caption)})
    return path


def _plain(text: str) -> str:
    """Return text in which matplotlib finds no formula, for between dollars it looks for one; Latin-1 in metadata."""
    return readable(text[:120] if len(text) > 4000 else text).replace("$", r"\$")
