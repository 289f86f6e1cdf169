"""The block ``co2_eq_emissions`` of a Hugging Face model card, put into a card that is otherwise left as it is.

Its keys are those of https://huggingface.co/docs/hub/model-cards-co2; emissions are in grams of CO2 equivalent.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from energy_plugins import __version__
from energy_plugins.errors import ReportError
from energy_plugins.measure.report_files import folder_errors, write_atomically
from energy_plugins.report.carbon.footprint import Footprint
from energy_plugins.report.carbon.text import stamp

if TYPE_CHECKING:
    from energy_plugins.measure.report import Report

KEY: Final = "co2_eq_emissions"
_FRONT = re.compile(r"\A(\ufeff?\s*---[ \t]*(\r\n|\r|\n))(.*?)^(---[ \t]*(?:\r\n|\r|\n|\Z))", re.DOTALL | re.MULTILINE)
"""What is between two lines of three dashes at the top, as huggingface_hub reads it."""


def block(report: Report, footprint: Footprint, *, training_type: str = "", note: str = "") -> dict[str, Any]:
    """Return what stands under ``co2_eq_emissions``; ``note`` is said with the source.

    Raises:
        ReportError: no grams are known, because the place is not or the energy was not measured.
    """
    found = footprint.location
    if found is None:
        raise ReportError(
            f"a model card is to have grams, and there are none: {footprint.reason or 'no location-based'}"
        )
    counted = "GPUs" if footprint.host_j is None else "GPUs, CPU and DRAM"
    simulated = "SIMULATED: " if footprint.simulated else ""
    least = "" if footprint.whole else "at least; "
    source = (
        f"{simulated}energy-plugins {__version__}: {least}measured energy of {counted}, PUE {footprint.pue:g}, "
        f"{found.g_per_kwh:.4g} g/kWh {found.intensity.basis} ({stamp(found.intensity)})"
    )
    source = f"{source}; {note}" if note else source
    values = {
        "emissions": float(f"{found.grams:.4g}"),
        "source": source,
        "training_type": training_type,
        "geographical_location": found.intensity.place,
        "hardware_used": _hardware(report),
    }
    return {key: value for key, value in values.items() if value != ""}


def write_into(card: Path, values: dict[str, Any]) -> None:
    """Put the block into a card, in the place of one that is there; every other byte stays as it is.

    A card without metadata gets some, and a card that does not exist is made.

    Raises:
        ReportError: the card cannot be read or written, or its metadata are no YAML mapping; it is as it was.
    """
    with folder_errors("cannot read the model card", card):
        place = card.resolve()
        content = place.read_bytes() if place.exists() else b""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(f"the model card {card} is no UTF-8: {error}") from error
    write_atomically(place, with_block(text, values, str(card)))


def with_block(text: str, values: dict[str, Any], source: str) -> str:
    """Return the text of a card with the block in it. Raises ReportError; ``source`` names the card in it."""
    front = _FRONT.match(text)
    if front is None:
        newline = "\r\n" if "\r\n" in text else "\n"
        return f"---{newline}{_dumped(values, newline)}---{newline}{text}"
    opening, newline, meta, _ = front.groups()
    begin, end = _span(meta, source)
    new = meta[:begin] + _dumped(values, newline) + meta[end:]
    # As text, in which a metric that is no number equals itself.
    if yaml.safe_dump(_loaded(new, source)) != yaml.safe_dump({**_loaded(meta, source), KEY: values}):
        raise ReportError(f"{source}: the metadata would not be the same but for {KEY}: put it in by hand")
    return text[: len(opening)] + new + text[len(opening) + len(meta) :]


def _span(meta: str, source: str) -> tuple[int, int]:
    """Return where the lines of the block are, an empty span at the end if there is none."""
    try:
        root = yaml.compose(meta, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ReportError(f"{source}: the metadata are no YAML: {error}") from error
    if root is None:
        return len(meta), len(meta)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ReportError(f"{source}: the metadata are no YAML mapping with a key on each line")
    for key, value in root.value:
        if key.value == KEY:
            return key.start_mark.index, _end_of_line(meta, _last(value).end_mark.index)
    return len(meta), len(meta)


def _last(node: yaml.Node) -> yaml.Node:
    """Return the last part of a value that is written out: the end of the whole is where the next key begins."""
    while node.value and isinstance(node, yaml.CollectionNode) and not node.flow_style:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _end_of_line(meta: str, end: int) -> int:
    """Return where the line ends on which ``meta[:end]`` has its last character."""
    newline = re.compile(r"\r\n|\r|\n").search(meta, len(meta[:end].rstrip()))
    return len(meta) if newline is None else newline.end()


def _loaded(meta: str, source: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(meta) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ReportError(f"{source}: the metadata are no YAML mapping: {error}") from error


def _dumped(values: dict[str, Any], newline: str) -> str:
    text = yaml.safe_dump({KEY: values}, sort_keys=False, allow_unicode=True, width=10_000)
    return str(text).replace("\n", newline)


def _hardware(report: Report) -> str:
    """Return the models of the GPUs and how many of each."""
    models = Counter(device.name for device in report.devices)
    if report.ranks is not None and len(models) == 1:
        models = Counter(dict.fromkeys(models, report.ranks.gpus))
    return ", ".join(f"{count} x {name}" for name, count in sorted(models.items()))
