"""How a value is written, whatever it is written in: a file, a variable, a flag or Python."""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass

Value = bool | int | float | str | tuple[int | str, ...]

_WORDS = dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "f", "n", "0"), False
)
_INTEGER = re.compile(r"[0-9]{1,18}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UUID = re.compile(r"(GPU|MIG)-[^\s,]+", re.IGNORECASE)
"""Its beginning is enough, as in CUDA_VISIBLE_DEVICES."""


@dataclass(frozen=True)
class Kind:
    """The values that a key may have.

    Attributes:
        expected: the values in words, as an error message ends.
        read: makes a value of what was given, which may be text or Python's own; ValueError for any other.
        placeholder: what stands for a value in the help of a flag.
    """

    expected: str
    read: Callable[[object], Value]
    placeholder: str


def _yes_no(given: object) -> bool:
    match given:
        case bool():
            return given
        case str() if given.strip().lower() in _WORDS:
            return _WORDS[given.strip().lower()]
    raise ValueError


def _count(given: object) -> int:
    match given:
        case int() if not isinstance(given, bool) and given >= 0:
            return given
        case str() if _INTEGER.fullmatch(given.strip()):
            return int(given)
    raise ValueError


def _whole(given: object) -> int:
    number = _count(given)
    if number < 1:
        raise ValueError
    return number


def _port(given: object) -> int:
    if not 1 <= (port := _count(given)) <= 65_535:
        raise ValueError
    return port


def _number(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError  # noqa: TRY004 - a value that is not allowed, whatever its type
    try:
        number = float(given)
    except OverflowError as error:
        raise ValueError from error
    if not math.isfinite(number):
        raise ValueError
    return number


def _positive(given: object) -> float:
    number = _number(given)
    if number <= 0:
        raise ValueError
    return number


def _not_negative(given: object) -> float:
    number = _number(given)
    if number < 0:
        raise ValueError
    return abs(number)  # -0.0 is 0


def _share(given: object) -> float:
    number = _not_negative(given)
    if number > 1:
        raise ValueError
    return number


def _at_least_one(given: object) -> float:
    number = _number(given)
    if number < 1:
        raise ValueError
    return number


def _text(given: object) -> str:
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str) or not text.strip() or _CONTROL.search(text):
        raise ValueError
    os.fsencode(text)  # a ValueError for what no file name or variable can hold
    return text


def _devices(given: object) -> tuple[int | str, ...]:
    match given:
        case str():
            devices = tuple(_device(part.strip()) for part in given.split(","))
        case list() | tuple():
            devices = tuple(map(_device, given))
        case _:
            devices = (_device(given),)
    if not devices:
        raise ValueError
    return devices


def _device(given: object) -> int | str:
    if isinstance(given, str) and not _INTEGER.fullmatch(given):
        if not _UUID.fullmatch(given):
            raise ValueError
        return _text(given)
    return _count(given)


YES_NO = Kind("true or false (or yes/no, on/off, 1/0)", _yes_no, "true|false")
COUNT = Kind("a whole number, 0 or more", _count, "N")
WHOLE = Kind("a whole number, 1 or more", _whole, "N")
PORT = Kind("a port, 1 to 65535", _port, "PORT")
POSITIVE = Kind("a positive number", _positive, "NUMBER")
NOT_NEGATIVE = Kind("a number, 0 or more", _not_negative, "NUMBER")
AT_LEAST_ONE = Kind("a number, 1 or more", _at_least_one, "NUMBER")
SHARE = Kind("a number from 0 to 1", _share, "SHARE")
TEXT = Kind("one line of text, not empty", _text, "TEXT")
DEVICES = Kind("CUDA ordinals or UUIDs of GPUs, one at least, such as 0,1 or GPU-1234", _devices, "0,1,...")


def one_of(*words: str) -> Kind:
    """Return the kind of a value that is one of some words."""

    def read(given: object) -> str:
        if not isinstance(given, str) or given.strip() not in words:
            raise ValueError
        return given.strip()

    return Kind(f"one of {', '.join(words)}", read, "|".join(words))


def as_text(value: Value) -> str:
    """Write a value as text that reads as the same value."""
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


def shown(given: object) -> str:
    """Return what was given as an error quotes it: in short, however long it is."""
    quoting = reprlib.Repr()
    quoting.maxstring = quoting.maxother = 60
    return quoting.repr(given)
