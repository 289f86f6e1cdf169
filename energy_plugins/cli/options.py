"""Options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def seconds(name: str, meaning: str) -> Callable[[_F], _F]:
    """Return an option that takes a time of at least a tenth of a second, one second if it is not given."""
    return click.option(
        name, type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS", help=meaning
    )
