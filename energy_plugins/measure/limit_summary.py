"""What a report's text says of the power limit."""

from __future__ import annotations

from collections.abc import Callable

from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.quantity import duration, percent
from energy_plugins.measure.ranks import named

_BINDS = {
    True: "it binds",
    False: "NOT BINDING: it lowers no power and saves nothing",
    None: "whether it binds is not known",
}
_FROM = {"search": "searched for", "memory": "remembered, and checked", "fixed": "as asked for"}


def limit_lines(part: LimitPart | None, entry: Callable[[str, str], list[str]]) -> list[str]:
    """Return lines, none if no limit was asked for; ``entry`` makes them of a label and a text."""
    if part is None:
        return []
    texts = [_chosen(part), _by_rank(part), _expected(part), _searched(part), part.advice, part.put_back]
    texts = [text for text in texts if text]
    return [line for at, text in enumerate(texts) for line in entry("limited" if at == 0 else "", _plain(text))]


def _chosen(part: LimitPart) -> str:
    found = "" if part.found is None else f" of the {part.found:g} {part.unit} found"
    drawn = "" if part.drawn_w is None else f"; {part.drawn_w:.0f} W drawn in steps"
    if part.chosen is None:
        return f"no limit was kept ({part.asked}): {part.why or 'the search was not over'}"
    if part.chosen == part.found and part.source != "fixed" and not part.by_rank:
        return f"to the {part.found:g} {part.unit} found, for none saves more ({part.asked}){drawn}"
    how = f"{_FROM.get(part.source, part.source)} ({part.asked}); {_BINDS[part.binding]}"
    return f"to {part.chosen:g} {part.unit}{found}, {how}{drawn}"


def _by_rank(part: LimitPart) -> str:
    """Say who has which limit, where those that wait have another: the highest is that of the ones they wait for."""
    limits = sorted(set(part.by_rank), reverse=True)
    who = ((limit, [rank for rank, own in enumerate(part.by_rank) if own == limit]) for limit in limits)
    texts = [f"{named(ranks)} to {limit:g} {part.unit}" for limit, ranks in who]
    return f"each by itself, for some wait for others: {', '.join(texts)}" if texts else ""


def _expected(part: LimitPart) -> str:
    saving, slowdown, confidence = part.expected_saving, part.expected_slowdown, part.confidence
    if saving is None or slowdown is None or confidence is None or {part.chosen, *part.by_rank} == {part.found}:
        return ""
    sure = f"{percent(min(confidence, 0.999), 1)} sure"
    return f"expected of it: {percent(saving)} less energy, {percent(slowdown)} longer steps ({sure})"


def _searched(part: LimitPart) -> str:
    if not part.tried:
        return ""
    limits = len({one.limit for one in part.tried})
    return f"{limits} limits in {len(part.tried)} windows, {duration(part.search_s)} in all; set by {part.back_end}"


def _plain(text: str) -> str:
    """Return it with nothing that a terminal would act on: a file may say anything."""
    return "".join(char if char.isprintable() else "?" for char in text)
