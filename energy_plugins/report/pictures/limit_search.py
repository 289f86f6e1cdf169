"""The search for a power limit, or for clocks, as a curve with the choice."""

from __future__ import annotations

from typing import Final

from energy_plugins.measure.limit_part import LimitPart, TriedLimit
from energy_plugins.measure.limit_summary import limit_lines
from energy_plugins.measure.ranks import named
from energy_plugins.measure.report import Report
from energy_plugins.report.pictures.picture import Missing, counted
from energy_plugins.report.pictures.search import Compared, SearchPicture, Tried, compared, means

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
    drawn, windows = _drawn(part, part.found)
    if not windows:
        return Missing(name=NAME, title=title, why="no window was measured at the limit found, to compare others with")
    whose = f" The limits were those of {named(drawn[0].ranks)}." if drawn[0].ranks else ""
    others = len(part.tried) - len(drawn)
    left_out = f" {counted(others, 'window')} for other ranks are not drawn." if others else ""
    return SearchPicture(
        name=NAME,
        title=title,
        caption=f"Steps against those at the {part.found:g} {part.unit} found: each window, and the mean of those of a "
        f"limit.{whose}{left_out} {_outcome(part)}",
        setting=_SETTINGS.get(part.unit, part.unit),
        windows=windows,
        means=means(windows),
        found=part.found,
        chosen=part.chosen,
    )


def _drawn(part: LimitPart, found: float) -> tuple[tuple[TriedLimit, ...], tuple[Compared, ...]]:
    """Return the windows for all ranks, else those for the ranks with most of them, as they are and compared.

    Where only some ranks were limited, because they wait for a slower one, a limit means something else.
    """
    whose = sorted({one.ranks for one in part.tried}, key=lambda ranks: (ranks != (), -_count(part, ranks)))
    for ranks in whose:
        drawn = tuple(one for one in part.tried if one.ranks == ranks)
        tried = [Tried(one.limit, one.seconds, one.step_energy_j, one.step_time_s) for one in drawn]
        if windows := compared(tried, found):
            return drawn, windows
    return (), ()


def _count(part: LimitPart, ranks: tuple[int, ...]) -> int:
    return sum(one.ranks == ranks for one in part.tried)


def _outcome(part: LimitPart) -> str:
    return " ".join(
        f"{text[:1].upper()}{text[1:]}." for text in limit_lines(part, lambda label, text: [f"{label} {text}".strip()])
    )
