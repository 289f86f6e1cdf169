"""A time on the command line."""

from __future__ import annotations

import math

import click


class Seconds(click.FloatRange):
    """Seconds, at least ``min`` of them; "nan" and "inf", which are numbers to click, are none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises click.BadParameter."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds
