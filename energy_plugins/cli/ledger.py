"""``energy-plugins ledger``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from energy_plugins.cli.options import amount

if TYPE_CHECKING:
    from energy_plugins.report.ledger import Ledger
    from energy_plugins.report.ledger.runs import Run

_GROUPS = ("project", "model", "user", "month", "gpu")
_MOST_TROUBLES = 5
"""Sentences about files that were passed over."""
_F = TypeVar("_F", bound=Callable[..., Any])


def _which_runs(command: _F) -> _F:
    """Add the options that say which runs are meant."""
    for option in reversed(
        (
            click.option("--url", help="A database to read instead of this user's ledger, as SQLAlchemy takes it."),
            click.option("--project", help="Only runs of this project."),
            click.option("--user", help="Only runs of this user."),
            click.option(
                "--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m"]), help="Only runs from this day (UTC) on."
            ),
            click.option("--simulated", is_flag=True, help="Only runs on simulated GPUs, which are else left out."),
        )
    ):
        command = option(command)
    return command


@click.group("ledger", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Say what all runs so far cost, failed tries and sweeps included.

    Every run that is measured leaves a small file on its own node, which these verbs bring into this user's ledger, a
    file on this node; a run that was killed is in it with what it drew until its last heartbeat. Nothing is sent
    anywhere but by "import --url". ENERGY_REPORT_LEDGER=0 keeps runs out of it. Joules are those of GPUs.

    \b
    Examples:
      energy-plugins ledger                                 what each project cost so far
      energy-plugins ledger totals --by month --price-per-kwh 0.25
      energy-plugins ledger list --project vision --limit 50
      energy-plugins ledger export runs.csv
      energy-plugins ledger import --url postgresql://db.example/energy

    Exit codes: 0 done, 1 the ledger cannot be opened, read or written, 2 wrong use.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(totals_command)


@command.command("totals")
@click.option("--by", type=click.Choice(_GROUPS), default="project", show_default=True, help="What to put together.")
@amount("--price-per-kwh", "What a kilowatt-hour is charged, in whatever currency.")
@amount("--price-per-job", "What a job is charged, beside its energy.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each group, and one for all of them.")
@_which_runs
def totals_command(*, by: str, price_per_kwh: float, price_per_job: float, as_json: bool, **which: Any) -> None:  # noqa: ANN401 - options of `_which_runs`
    """Sum up what runs drew, failed and killed ones included.

    Each joule counts once: ranks that share a GPU, and runs measured inside others, are told apart. A job is a run, of
    runs inside each other the innermost.
    """
    from energy_plugins.cli.ledger_tables import totals_json, totals_table  # noqa: PLC0415 - after the check for SQLAlchemy
    from energy_plugins.report.ledger.totals import By, Price, overall, totals  # noqa: PLC0415 - the same

    runs = _runs(**which)
    groups, whole = totals(runs, By(by)), overall(runs)
    price = Price(price_per_kwh, price_per_job)
    lines = totals_json(by, groups, whole, price) if as_json else totals_table(by, groups, whole, price)
    _print(lines, runs, as_json=as_json)


@command.command("list")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, metavar="N", help="The latest N.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each run.")
@_which_runs
def list_command(*, limit: int, as_json: bool, **which: Any) -> None:  # noqa: ANN401 - options of `_which_runs`
    """List runs, the latest first, with what each drew."""
    from energy_plugins.cli.ledger_tables import runs_table  # noqa: PLC0415 - see above
    from energy_plugins.report.ledger.export import cells_of  # noqa: PLC0415 - see above

    runs = _runs(**which)
    latest = runs[::-1][:limit]
    lines = [json.dumps(cells_of(run)) for run in latest] if as_json else runs_table(latest, of=len(runs))
    _print(lines, runs, as_json=as_json)


@command.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_which_runs
def export_command(file: Path, **which: Any) -> None:  # noqa: ANN401 - options of `_which_runs`
    """Write runs to FILE, a .csv or (with pyarrow installed) a .parquet: a row for each run."""
    from energy_plugins.report.ledger.export import export  # noqa: PLC0415 - see above

    runs = _runs(**which)
    export(file, runs)
    click.echo(f"{len(runs):,} runs are in {file}")


@command.command("import")
@click.option("--url", help="The database to import into, as SQLAlchemy takes it; this user's ledger if not given.")
@click.option(
    "--spool", type=click.Path(path_type=Path, exists=True, file_okay=False), help="The spool, if not this user's."
)
@click.option("--remove", is_flag=True, help="Remove files of ended runs once they are imported.")
def import_command(url: str | None, spool: Path | None, *, remove: bool) -> None:
    """Bring the runs of this node's spool into a ledger, such as a team's PostgreSQL server.

    It may be done at any time and by many nodes at once: each run is in the ledger once. Passwords belong into
    ~/.pgpass or a service file of PostgreSQL, not into the URL, which other users of this node see.
    """
    with _ledger(url) as ledger:
        done = ledger.import_spool(spool, remove=remove)
        click.echo(f"{ledger}: {done.new:,} new runs, {done.updated:,} brought up to date")
    _tell(done.troubles)


def _ledger(url: str | None) -> Ledger:
    """Return the ledger. Raises LedgerError, also where SQLAlchemy is not installed."""
    from energy_plugins.report.ledger import Ledger  # noqa: PLC0415 - large, and an extra

    return Ledger(url)


def _runs(*, url: str | None, project: str | None, user: str | None, since: Any, simulated: bool) -> list[Run]:  # noqa: ANN401 - click's datetime
    """Return the runs that are meant; those of this node's spool are imported first, if the ledger is this user's."""
    with _ledger(url) as ledger:
        if url is None:
            _tell(ledger.import_spool().troubles)
        runs = ledger.runs()
    first = since.strftime("%Y-%m-%d") if since is not None else ""
    left_out = sum(run.simulated is not simulated for run in runs)
    if left_out and not simulated:
        click.echo(f"left out: {left_out:,} on simulated GPUs (--simulated shows them)", err=True)
    return [
        run
        for run in runs
        if run.simulated is simulated
        and project in {None, run.project}
        and user in {None, run.user}
        and run.started >= first
    ]


def _print(lines: list[str], runs: list[Run], *, as_json: bool) -> None:
    if any(run.simulated for run in runs) and not as_json:
        click.echo("SIMULATED: no measurement of hardware")
    for line in lines:
        click.echo(line)


def _tell(troubles: tuple[str, ...]) -> None:
    for text in troubles[:_MOST_TROUBLES]:
        click.echo(f"passed over: {text}", err=True)
    if len(troubles) > _MOST_TROUBLES:
        click.echo(f"passed over: {len(troubles) - _MOST_TROUBLES:,} files more", err=True)
