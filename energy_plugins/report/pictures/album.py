"""All pictures of a report, in the order in which a page shows them. A new picture is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from energy_plugins.measure.report import Report
from energy_plugins.report.pictures.limit_search import limit_search_picture
from energy_plugins.report.pictures.micro_batch_search import micro_batch_search_picture
from energy_plugins.report.pictures.picture import Missing, Picture
from energy_plugins.report.pictures.power import power_picture
from energy_plugins.report.pictures.ranks import rank_picture
from energy_plugins.report.pictures.steps import step_picture
from energy_plugins.report.pictures.where import where_picture

_PICTURES: Final[tuple[Callable[[Report], Picture | Missing], ...]] = (
    where_picture,
    power_picture,
    step_picture,
    rank_picture,
    limit_search_picture,
    micro_batch_search_picture,
)


def pictures_of(report: Report) -> tuple[Picture | Missing, ...]:
    """Return every picture, or why there is nothing to draw.

    Raises:
        ColumnError: columns of the report may not be read.
    """
    return tuple(picture(report) for picture in _PICTURES)
