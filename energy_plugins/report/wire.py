"""Pictures as JSON for the page's script: few digits, no NaN, nothing that could end the script element."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from energy_plugins.measure.json_section import JSON, plain
from energy_plugins.report.pictures.picture import GPU_COLOURS, Picture, Shares, colour_of
from energy_plugins.report.pictures.power import PowerPicture
from energy_plugins.report.pictures.ranks import RankPicture
from energy_plugins.report.pictures.search import SearchPicture
from energy_plugins.report.pictures.steps import StepPicture
from energy_plugins.report.pictures.sweep_front import FrontPicture
from energy_plugins.report.pictures.sweep_parameters import ParametersPicture
from energy_plugins.report.pictures.where import Slice, WherePicture
from energy_plugins.report.readable import readable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

VIEWS: Final[Mapping[type[Picture], str]] = {
    PowerPicture: "power",
    StepPicture: "steps",
    WherePicture: "where",
    RankPicture: "ranks",
    SearchPicture: "search",
    FrontPicture: "front",
    ParametersPicture: "parameters",
}
"""Which function of the script draws a picture."""
_DIGITS: Final = 5
_UNSAFE: Final = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def encoded(pictures: tuple[Picture, ...], *, simulated: bool) -> str:
    """Return the pictures as JSON that may stand inside a script element."""
    drawn = [{"view": VIEWS[type(picture)], **_fields(picture)} for picture in pictures]
    page = {"pictures": drawn, "gpu_colours": GPU_COLOURS, "simulated": simulated}
    text = json.dumps(page, separators=(",", ":"), allow_nan=False)
    return text.translate(_UNSAFE)


def _fields(value: DataclassInstance) -> dict[str, JSON]:
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _plain(value: object) -> JSON:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [_number(item) for item in value.astype(np.float64).tolist()]
    if isinstance(value, str):
        return readable(value)
    return _number(value) if isinstance(value, float) else _part(value)


def _part(value: object) -> JSON:
    match value:
        case Slice():
            return {**_fields(value), "colour": colour_of(value.name)}
        case Shares():
            named: list[JSON] = [
                {"name": readable(name), "colour": colour_of(name, place), "share": _plain(share)}
                for place, (name, share) in enumerate(value.by_name)
            ]
            return {"edges_s": _plain(value.edges_s), "parts": named}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _fields(value)
        case _:
            return plain(value)


def _number(value: float) -> float | int | None:
    short = float(f"{value:.{_DIGITS}g}")  # which may be infinite where the value was not
    if not math.isfinite(short):
        return None
    return int(short) if short.is_integer() and abs(short) < 2**53 else short
