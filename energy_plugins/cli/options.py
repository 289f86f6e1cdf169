"""Options that several verbs have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """Seconds, at least ``min`` of them; "nan" and "inf", which are numbers to click, are none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises click.BadParameter."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return found


class Amount(click.FloatRange):
    """A number that is not negative; "nan" and "inf", which are numbers to click, are none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises click.BadParameter."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is no amount.", param, ctx)
        return found


def amount(name: str, meaning: str) -> Callable[[_F], _F]:
    """Return an option that takes a number that is not negative, zero if it is not given."""
    return click.option(name, type=Amount(min=0), default=0.0, metavar="AMOUNT", help=meaning)


def seconds(name: str, meaning: str) -> Callable[[_F], _F]:
    """Return an option that takes a time of at least a tenth of a second, one second if it is not given."""
    return click.option(name, type=Seconds(min=0.1), default=1.0, show_default=True, metavar="SECONDS", help=meaning)
