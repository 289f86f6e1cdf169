"""``energy-plugins compare``."""

from __future__ import annotations

import json
import shlex
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from energy_plugins.cli.interleave import run_all
from energy_plugins.cli.run import new_folder
from energy_plugins.errors import ReportError

_REPEATS = 5
_MOST = len(string.ascii_uppercase)


@click.command("compare")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[FOLDER]...")
@click.option("--run", "commands", multiple=True, metavar="CMD", help="A command to run and measure; give two or more.")
@click.option("--repeats", type=click.IntRange(min=1), metavar="N", help=f"How often to run each [{_REPEATS}].")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where reports of --run go [./energy-reports/TIME-compare].",
)
@click.option(
    "--unit",
    type=click.Choice(["sample", "token", "step", "run"]),
    help="What energy and time are divided by; needed where runs did different work.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Runs of one program on the nodes of the others, by which the nodes' offsets are known.",
)
@click.option("--json", "as_json", is_flag=True, help="The comparison as JSON.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write it as a page of HTML, too.")
def command(  # noqa: PLR0913, PLR0917 - an option each
    folders: tuple[Path, ...],
    commands: tuple[str, ...],
    repeats: int | None,
    output: Path | None,
    unit: str | None,
    reference: Path | None,
    html: Path | None,
    *,
    as_json: bool,
) -> None:
    """Compare runs: energy per unit of work, time and power, each with a 95 % interval, against the first FOLDER.

    Each FOLDER is that of a run, or holds those of repeated runs. Differences are corrected for the nodes that runs
    were made on, the rounds of interleaved ones and the temperature at which they began, as far as these are known.
    With --run the commands are measured here first, in turn and in random order, so that nothing befalls only one.

    \b
    Examples:
      energy-plugins compare energy/before energy/after
      energy-plugins compare --run 'python a.py' --run 'python b.py' --repeats 5
      energy-plugins compare on-node-1 on-node-2 --reference calibration
      energy-plugins compare small-batch large-batch --unit token --json | jq '.differences[]'

    Exit codes: 0 compared, 1 the runs cannot be compared or a command of --run failed, 2 wrong use; 128+N if signal N
    ended a command.
    """
    if commands:
        if unit not in {None, "run"}:
            raise click.UsageError("commands are measured as wholes and do not say what they did: leave --unit out")
        folders = _run(commands, folders, repeats, output)
    elif repeats is not None or output is not None:
        raise click.UsageError("--repeats and --output are about --run: give that as well")
    if len(folders) < 2:
        raise click.UsageError("a comparison needs two folders at least, or --run twice")
    from energy_plugins.report.comparison.compare import compare_folders  # noqa: PLC0415 - signals are held first
    from energy_plugins.report.comparison.html import html_page  # noqa: PLC0415
    from energy_plugins.report.comparison.same_work import WorkUnit  # noqa: PLC0415
    from energy_plugins.report.comparison.text import as_json as in_json  # noqa: PLC0415
    from energy_plugins.report.comparison.text import text_table  # noqa: PLC0415

    comparison = compare_folders(folders, None if unit is None else WorkUnit(unit), reference)
    click.echo(json.dumps(in_json(comparison), indent=1) if as_json else text_table(comparison))
    if html is not None:
        _write(html, html_page(comparison))


def _run(
    commands: Sequence[str], folders: Sequence[Path], repeats: int | None, output: Path | None
) -> tuple[Path, ...]:
    """Measure the commands and return where their reports are."""
    if folders:
        raise click.UsageError("give folders or --run, not both")
    if not 2 <= len(commands) <= _MOST:
        raise click.UsageError(f"--run is given {len(commands)} times: give it once for each side, 2 to {_MOST}")
    if output is not None and output.exists() and any(output.iterdir()):
        raise click.UsageError(f"{output} is not empty: choose another folder")
    words = _words(commands)
    folder = output or new_folder("compare")
    found = run_all(words, _REPEATS if repeats is None else repeats, folder)
    for label, path in zip(words, found, strict=True):
        click.echo(f"{label}: {' '.join(words[label])}: reports in {path}", err=True)
    return tuple(found)


def _words(commands: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the words of each command by its label: A, B and so on. Raises click.UsageError."""
    found = {}
    for label, text in zip(string.ascii_uppercase, commands, strict=False):
        try:
            found[label] = shlex.split(text)
        except ValueError as error:
            raise click.UsageError(f"--run {text!r} cannot be split into words: {error}") from error
        if not found[label]:
            raise click.UsageError("--run is empty: give a command")
    return found


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from error
