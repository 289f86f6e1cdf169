"""Energy and grams as things that people know; each with its source and year."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_LEAST = 0.01
"""Of less than a hundredth of a thing nobody has an idea."""


@dataclass(frozen=True)
class Thing:
    """Something that takes energy, or causes emissions."""

    of_one: float
    """Kilowatt-hours or grams of CO2 equivalent."""
    words: str
    """With a place for the number."""
    source: str


BY_KWH: Final = (
    Thing(
        4.184 * 80.0 / 3600.0, "heating {} litres of water from 20 to 100 C", "specific heat of water, 4.184 kJ/(kg K)"
    ),
    Thing(10_715.0 / 366.0, "{} days of electricity of an American home", "U.S. EIA, for 2020"),
)
BY_GRAMS: Final = (
    Thing(400.0 / 1.609344, "driving {} km in an average American car", "U.S. EPA-420-F-23-014, 2023"),
    Thing(
        1984.0 * 453.59237,
        "{} seats on a flight from New York to San Francisco and back",
        "Strubell et al., arXiv:1906.02243, 2019",
    ),
)


def as_much_as(kwh: float | None, grams: float | None) -> list[str]:
    """Return what takes as much energy, and what causes as many grams; nothing for amounts too small to picture."""
    pairs = [(kwh, thing) for thing in BY_KWH] + [(grams, thing) for thing in BY_GRAMS]
    return [
        f"{thing.words.format(_number(amount / thing.of_one))} ({thing.source})"
        for amount, thing in pairs
        if amount is not None and amount / thing.of_one >= _LEAST
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
