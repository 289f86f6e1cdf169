"""``energy-plugins report``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from energy_plugins.cli.carbon_options import CarbonWishes, carbon_options
from energy_plugins.errors import ReportError
from energy_plugins.measure.columns import Columns
from energy_plugins.measure.rank_folders import completed_from_disk
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_files import header_path
from energy_plugins.report.carbon import text as carbon_text

_ROWS_A_TIME = 4096
"""Steps in memory at once, however long the run was."""
_COUNTS = frozenset({"samples", "tokens"})
"""Columns in which -1 stands for "nobody said"."""
_WIDTHS = {"index": 9, "samples": 9, "tokens": 9}
_WIDTH = 13
_FILE = click.Path(path_type=Path)

Row = Mapping[str, float | int | None]


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", is_flag=True, help="A row for each training step instead of the summary.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="With --steps: only the first N.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write it as one HTML page, pictures and advice included.")
@click.option("--png", type=_FILE, metavar="FOLDER", help="Write its main pictures as PNG files.")
@click.option("--json", "as_json", is_flag=True, help="The whole header as JSON; with --steps one line for each.")
@carbon_options
def command(  # noqa: PLR0913 - one parameter an option
    folder: Path,
    *,
    steps: bool,
    limit: int | None,
    as_json: bool,
    html: Path | None,
    png: Path | None,
    carbon: CarbonWishes,
) -> None:
    """Show the report in FOLDER: a table of what was drawn and where it went.

    The folder of a run that is still going, or that was killed, can be read too: it holds what was settled until then.
    Of a training on many GPUs it is that of rank 0, and what lies in the folders of the others is merged.
    Energies are joules, times are seconds since the run began; what was not measured is "-" (null in JSON).
    With a country or an intensity it says what was emitted; without one there are no grams, for a guess would be none.

    \b
    Examples:
      energy-plugins report energy-reports/20261122-081500-train
      energy-plugins report FOLDER --steps --limit 20
      energy-plugins report FOLDER --steps --json | jq .energy_j
      energy-plugins report FOLDER --html run.html --png pictures --country FR
      energy-plugins report FOLDER --country FR --pue 1.2 --price 0.25

    Exit codes: 0 shown, 1 there is no report that can be read, 2 wrong use.
    """
    if limit is not None and not steps:
        raise click.UsageError("--limit is about steps: give --steps as well")
    if (html or png) and (steps or as_json):
        raise click.UsageError("--html and --png write files instead of a table: leave --steps and --json out")
    if carbon.any_given and (steps or (png and not html)):
        raise click.UsageError("carbon and price stand below the table and on the page: leave --steps and --png out")
    if folder.is_dir() and not header_path(folder).exists():
        raise ReportError(f"{folder} holds no report.json: is it the folder of a run, half a minute after its start?")
    report = completed_from_disk(Report.load(folder), header_path(folder).parent)
    if html is not None or png is not None:
        _write(report, carbon, html, png)
        return
    if not steps:
        _show(report, carbon, as_json=as_json)
        return
    if not report.complete:
        click.echo(f"the run has not ended, or was killed: {report.steps.rows:,} steps are settled", err=True)
    elif report.steps.rows < report.work.steps:
        click.echo(f"only {report.steps.rows:,} of {report.work.steps:,} steps are left on the disk", err=True)
    rows = _rows(report.steps, limit)
    lines = _json_lines(rows) if as_json else _table(report.steps, rows)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()  # a reader that has gone, as head does, is noticed here and not at exit


def _write(report: Report, carbon: CarbonWishes, html: Path | None, png: Path | None) -> None:
    if html is not None:
        from energy_plugins.report.html import write_html  # noqa: PLC0415 - a table alone does not need it

        found = carbon.footprint(report)
        click.echo(write_html(report, html, found))
        if found is not None:
            carbon.write_card(report, found)
    for path in () if png is None else report.to_png(png):
        click.echo(path)


def _show(report: Report, carbon: CarbonWishes, *, as_json: bool) -> None:
    found = carbon.footprint(report)
    if as_json:
        more = {} if found is None else {"carbon": carbon_text.as_json(found)}
        click.echo(json.dumps({**report.header(), **more}, indent=1))
    else:
        click.echo(str(report) if found is None else f"{report}\n\n{carbon_text.text_block(found)}")
    if found is not None:
        carbon.write_card(report, found)


def _json_lines(rows: Iterator[Row]) -> Iterator[str]:
    return (json.dumps(row) for row in rows)


def _table(steps: Columns, rows: Iterator[Row]) -> Iterator[str]:
    widths = {name: _WIDTHS.get(name, max(_WIDTH, len(name))) for name in steps}
    yield "  ".join(f"{name:>{width}}" for name, width in widths.items())
    for row in rows:
        yield "  ".join(f"{_cell(row[name]):>{width}}" for name, width in widths.items())


def _cell(value: float | None) -> str:
    match value:
        case None:
            return "-"
        case int():
            return str(value)
        case _:
            return f"{value:.6g}"


def _rows(steps: Columns, limit: int | None) -> Iterator[Row]:
    """Yield the steps one by one, with None for what was not measured or not said."""
    end = steps.rows if limit is None else min(limit, steps.rows)
    for start in range(0, end, _ROWS_A_TIME):
        part = {name: column[start : min(start + _ROWS_A_TIME, end)].tolist() for name, column in steps.items()}
        for values in zip(*part.values(), strict=True):
            yield {name: _known(name, value) for name, value in zip(part, values, strict=True)}


def _known(name: str, value: float) -> float | int | None:
    return None if not math.isfinite(value) or (name in _COUNTS and value < 0) else value
