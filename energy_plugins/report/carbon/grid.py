"""Carbon intensity of electricity: grams of CO2 equivalent per kilowatt-hour, of a country or as the user knows it.

Location-based intensities are means over what a grid generates; marginal ones say what one more kilowatt-hour causes.
They answer different questions, so they are different types and nothing adds or divides one by the other.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from energy_plugins.errors import ConfigError
from energy_plugins.report.carbon.grid_series import Series

SOURCE: Final = "Our World in Data from Ember, CC BY 4.0"
_TABLE = "grid_intensity.csv"
_ALSO_CALLED = {"uk": "gb", "el": "gr"}
"""Codes of the European Union that are not those of ISO 3166-1."""
_OWN = "your own figure"


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Carbon intensity; one of the two kinds below."""

    g_per_kwh: float | Series
    source: str
    place: str = ""
    year: int | None = None
    basis: ClassVar[str]

    def __post_init__(self) -> None:
        if isinstance(self.g_per_kwh, Series):
            return
        if not (math.isfinite(self.g_per_kwh) and self.g_per_kwh >= 0):
            raise ConfigError(f"a carbon intensity is {self.g_per_kwh:g} g/kWh; expected a number, 0 or more")


class LocationBased(Intensity):
    """A mean over what the grid of a place generates."""

    basis = "location-based"


class Marginal(Intensity):
    """What one more kilowatt-hour causes."""

    basis = "marginal"


_I = TypeVar("_I", bound=Intensity)


@dataclass(frozen=True)
class Country:
    """A row of the table."""

    alpha_2: str
    alpha_3: str
    name: str
    year: int
    g_per_kwh: float


def country(text: str) -> Country:
    """Return the country that ``text`` names: its name, or its code of two or three letters (ISO 3166-1).

    Raises:
        ConfigError: there is none of that name in the table; the message has the nearest.
    """
    key = " ".join(text.lower().split())
    table = _countries()
    if found := table.get(_ALSO_CALLED.get(key, key)):
        return found
    near = [table[name] for name in get_close_matches(key, table, n=5, cutoff=0.5)]
    names = ", ".join(dict.fromkeys(f"{one.name} ({one.alpha_2})" for one in near))
    hint = f"the nearest: {names}" if names else "give its name, or its code of two or three letters (ISO 3166-1)"
    raise ConfigError(f"the carbon intensity of the country {text!r} is not known; {hint}; or give your own figure")


def of_country(text: str) -> LocationBased:
    """Return the yearly mean of a country's grid. Raises ConfigError as `country`."""
    found = country(text)
    return LocationBased(g_per_kwh=found.g_per_kwh, source=SOURCE, place=found.name, year=found.year)


def own(kind: type[_I], text: str | float, place: str = "") -> _I:
    """Return an intensity of the user's own: a number, or the path of a CSV file (`Series.read`).

    Raises:
        ConfigError: it is negative, no number and no file, or a file that is no series.
    """
    try:
        return kind(g_per_kwh=float(text), source=_OWN, place=place)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
    path = Path(str(text))
    return kind(g_per_kwh=Series.read(path), source=f"{_OWN}s, {path.name}", place=place)


@cache
def _countries() -> Mapping[str, Country]:
    """Return the table by names and codes, in lower case."""
    lines = files(__package__).joinpath(_TABLE).read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    found = [
        Country(row["alpha_2"], row["alpha_3"], row["name"], int(row["year"]), float(row["g_per_kwh"])) for row in rows
    ]
    return {key.lower(): one for one in found for key in (one.alpha_2, one.alpha_3, one.name)}


def placed(place: str | None, g_per_kwh: str | float | None) -> LocationBased | None:
    """Return the intensity of a place: the user's own (as in `own`) if there is one, else that of the country.

    None if neither is given. Raises ConfigError as `own` and `country`.
    """
    if g_per_kwh is None:
        return None if place is None else of_country(place)
    return own(LocationBased, g_per_kwh, "" if place is None else _named(place))


def _named(place: str) -> str:
    """Return the name of a country, or the text as it stands: with an intensity of one's own it may be any place."""
    try:
        return country(place).name
    except ConfigError:
        return place
