"""JSON read with suspicion: every value is checked, and a wrong one is named by its key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, cast

import numpy as np

from energy_plugins.errors import ReportError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_E = TypeVar("_E", bound=Enum)

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def plain(value: object) -> JSON:
    """Return ``value`` as JSON can hold it; what JSON cannot hold becomes text, and NaN and infinity become null."""
    match value:
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case Enum():
            return plain(value.value)
        case np.bool_() | np.integer():
            return cast("bool | int", value.item())
        case float() | np.floating():
            return float(value) if math.isfinite(value) else None
        case _:
            return value if isinstance(value, bool | int | str | None) else str(value)


def parse(text: str | bytes, source: str) -> Section:
    """Return the JSON object in ``text``; ``source`` names it in errors. Raises ReportError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{source} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{source} must hold an object, found {_shown(value)}")
    return Section(value, source)


@dataclass(frozen=True)
class Section:
    """One JSON object; every method reads one key and raises ReportError if it is missing or of another type."""

    values: Mapping[str, object]
    source: str
    prefix: str = ""

    def has(self, key: str) -> bool:
        """Tell whether there is such a key: reports of earlier versions lack some."""
        return key in self.values

    def absent(self, key: str) -> bool:
        """Tell whether nothing stands under a key: no such key, or null."""
        return self.values.get(key) is None

    def text(self, key: str) -> str:
        """Read text."""
        value = self._value(key)
        return value if isinstance(value, str) else self._refuse(key, "text")

    def maybe_text(self, key: str) -> str | None:
        """Read text, or null."""
        return None if self._value(key) is None else self.text(key)

    def one_of(self, key: str, kinds: type[_E]) -> _E:
        """Read the value of a member of an enumeration."""
        value = self._value(key)
        for member in kinds:
            if member.value == value:
                return member
        return self._refuse(key, f"one of {', '.join(str(member.value) for member in kinds)}")

    def flag(self, key: str) -> bool:
        """Read true or false."""
        value = self._value(key)
        return value if isinstance(value, bool) else self._refuse(key, "true or false")

    def maybe_flag(self, key: str) -> bool | None:
        """Read true or false, or null."""
        return None if self._value(key) is None else self.flag(key)

    def count(self, key: str) -> int:
        """Read a whole number that is not negative."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self._refuse(key, "a whole number, 0 or more")
        return value

    def counts(self, key: str) -> tuple[int, ...]:
        """Read a list of whole numbers that are not negative."""
        value = self._value(key)
        if not isinstance(value, list):
            self._refuse(key, "a list of whole numbers")
        items = self._section(key, {str(i): item for i, item in enumerate(value)})
        return tuple(items.count(name) for name in items.values)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Read a list of finite numbers."""
        value = self._value(key)
        if not isinstance(value, list):
            self._refuse(key, "a list of numbers")
        items = self._section(key, {str(i): item for i, item in enumerate(value)})
        return tuple(items.number(name) for name in items.values)

    def maybe_count(self, key: str) -> int | None:
        """Read a whole number that is not negative, or null."""
        return None if self._value(key) is None else self.count(key)

    def number(self, key: str) -> float:
        """Read a finite number."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        return number if math.isfinite(number) else self._refuse(key, "a finite number")

    def maybe_number(self, key: str) -> float | None:
        """Read a finite number, or null."""
        return None if self._value(key) is None else self.number(key)

    def section(self, key: str) -> Section:
        """Read an object."""
        value = self._value(key)
        return self._section(key, value) if isinstance(value, dict) else self._refuse(key, "an object")

    def sections(self, key: str) -> tuple[Section, ...]:
        """Read a list of objects."""
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self._refuse(key, "a list of objects")
        return tuple(self._section(f"{key}[{i}]", item) for i, item in enumerate(value))

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of texts."""
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(key, "a list of texts")
        return tuple(value)

    def text_by_name(self, key: str) -> dict[str, str]:
        """Read an object that holds only texts."""
        section = self.section(key)
        return {name: section.text(name) for name in section.values}

    def number_by_name(self, key: str) -> dict[str, float]:
        """Read an object that holds only finite numbers."""
        section = self.section(key)
        return {name: section.number(name) for name in section.values}

    def maybe_number_by_name(self, key: str) -> dict[str, float | None]:
        """Read an object that holds only finite numbers and nulls."""
        section = self.section(key)
        return {name: section.maybe_number(name) for name in section.values}

    def section_by_name(self, key: str) -> dict[str, Section]:
        """Read an object that holds only objects."""
        section = self.section(key)
        return {name: section.section(name) for name in section.values}

    def json_by_name(self, key: str) -> dict[str, JSON]:
        """Read an object that holds anything."""
        return cast("dict[str, JSON]", dict(self.section(key).values))

    def others(self, known: Collection[str]) -> dict[str, JSON]:
        """Return what stands under keys other than ``known``."""
        return cast("dict[str, JSON]", {key: value for key, value in self.values.items() if key not in known})

    def with_defaults(self, values: Mapping[str, object]) -> Section:
        """Return the same object, with ``values`` for keys that it lacks."""
        return Section({**values, **self.values}, self.source, self.prefix)

    def error(self, key: str, complaint: str) -> ReportError:
        """Return the error that says what is wrong with ``key``."""
        return ReportError(f"{self.source}: {self.prefix}{key} {complaint}")

    def _value(self, key: str) -> object:
        if key not in self.values:
            raise self.error(key, "is missing")
        return self.values[key]

    def _section(self, key: str, value: Mapping[str, object]) -> Section:
        return Section(value, self.source, f"{self.prefix}{key}.")

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        raise self.error(key, f"must be {wanted}, found {_shown(self.values[key])}")


_READERS: Mapping[str, Callable[[Section, str], object]] = {
    "str": Section.text,
    "str | None": Section.maybe_text,
    "bool": Section.flag,
    "bool | None": Section.maybe_flag,
    "int": Section.count,
    "int | None": Section.maybe_count,
    "float": Section.number,
    "float | None": Section.maybe_number,
    "tuple[int, ...]": Section.counts,
    "tuple[float, ...]": Section.numbers,
    "tuple[str, ...]": Section.texts,
    "Mapping[str, str]": Section.text_by_name,
    "Mapping[str, float]": Section.number_by_name,
    "Mapping[str, float | None]": Section.maybe_number_by_name,
    "Mapping[str, JSON]": Section.json_by_name,
}
"""How a field is read, by the text of its annotation."""


def read_fields(kind: type[DataclassInstance], section: Section, *left_out: str) -> dict[str, Any]:
    """Read the fields of a dataclass as their annotations say, each under its name, but for those ``left_out``.

    Raises:
        ReportError: a key is missing, or holds something else.
    """
    names = {field.name: str(field.type) for field in fields(kind) if field.name not in left_out}
    return {name: _READERS[annotation](section, name) for name, annotation in names.items()}


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
