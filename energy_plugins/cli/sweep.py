"""``energy-plugins sweep``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group("sweep")
def command() -> None:
    """Say what a hyperparameter sweep drew, and what it found for that.

    \b
    Example:
      energy-plugins sweep report sqlite:///study.db digits

    Exit codes: 0 done, 1 there is no such study, or it cannot be read, 2 wrong use.
    """


@command.command("report")
@click.argument("storage")
@click.argument("study")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write it as one HTML page, with pictures."
)
@click.option("--json", "as_json", is_flag=True, help="The same and every trial, as JSON.")
def report_command(storage: str, study: str, *, html: Path | None, as_json: bool) -> None:
    """Show the trials of STUDY that no other beats in metric and energy, and where the joules went.

    STORAGE is a URL such as sqlite:///study.db, a file (SQLite or a journal of Optuna's), or grpc://host:port.

    \b
    Examples:
      energy-plugins sweep report sqlite:///study.db digits
      energy-plugins sweep report study.log digits --json
      energy-plugins sweep report sqlite:///study.db digits --html sweep.html

    Exit codes: 0 done, 1 there is no such study, or it cannot be read, 2 wrong use.
    """
    try:
        from energy_plugins.optuna.sweeps import read_sweep  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    from energy_plugins.report.sweep_text import sweep_lines, sweep_values  # noqa: PLC0415 - with it

    if html is not None and as_json:
        raise click.UsageError("--html writes a file instead of a table: leave --json out")
    sweep = read_sweep(storage, study)
    if html is not None:
        from energy_plugins.report.sweep_html import write_sweep_html  # noqa: PLC0415 - an extra, too

        click.echo(write_sweep_html(sweep, html))
        return
    if as_json:
        click.echo(json.dumps(sweep_values(sweep), indent=1, default=str))
    else:
        click.echo("\n".join(sweep_lines(sweep)))
