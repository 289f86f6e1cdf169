"""The search for a power limit, or for clocks, as a curve with the choice."""

from __future__ import annotations

from typing import Final

from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.limit_summary import limit_lines
from energy_plugins.measure.report import Report
from energy_plugins.report.pictures.picture import Missing
from energy_plugins.report.pictures.search import SearchPicture, Tried, compared, means

NAME: Final = "limit-search"
_TITLES: Final = {"W": "Search for a power limit", "MHz": "Search for clocks"}
_SETTINGS: Final = {"W": "power limit (W)", "MHz": "SM clock (MHz)"}


def limit_search_picture(report: Report) -> SearchPicture | Missing:
    """Return the picture, or why there is none."""
    part = report.power_limit
    if part is None:
        return Missing(name=NAME, title=_TITLES["W"], why="no power limit was asked for")
    title = _TITLES.get(part.unit, _TITLES["W"])
    if part.found is None or not part.tried:
        return Missing(name=NAME, title=title, why=part.why or "no window was measured for it")
    windows = compared(
        [Tried(one.limit, one.seconds, one.step_energy_j, one.step_time_s) for one in part.tried], part.found
    )
    if not windows:
        return Missing(name=NAME, title=title, why="no window was measured at the limit found, to compare others with")
    return SearchPicture(
        name=NAME,
        title=title,
        caption=f"Steps against those at the {part.found:g} {part.unit} found: each window, and the mean of those of a "
        f"limit. {_outcome(part)}",
        setting=_SETTINGS.get(part.unit, part.unit),
        windows=windows,
        means=means(windows),
        found=part.found,
        chosen=part.chosen,
    )


def _outcome(part: LimitPart) -> str:
    return " ".join(
        f"{text[:1].upper()}{text[1:]}." for text in limit_lines(part, lambda label, text: [f"{label} {text}".strip()])
    )
