"""``energy-plugins run``."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from energy_plugins.cli import child
from energy_plugins.config import ReportConfig
from energy_plugins.errors import EnergyError, ReportError
from energy_plugins.training.exports import export_if_asked
from energy_plugins.training.folder import first_free

if TYPE_CHECKING:
    import signal

    from energy_plugins.measure.report import Report

REPORTS = Path("energy-reports")
_OWN_FAILURE = 125
"""As with env, nice and timeout (coreutils): apart from what the command itself may answer."""


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The report's folder [./energy-reports/TIME-CMD]."
)
@click.option("--name", help="What the report calls the run [CMD].")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON instead of a table.")
@click.option("--quiet", is_flag=True, help="Write the report's folder and print nothing.")
@click.option(
    "--prometheus-port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="Serve the figures to Prometheus on this machine while CMD runs.",
)
@click.argument("words", nargs=-1, required=True, metavar="-- CMD [ARGUMENTS]...")
@click.pass_context
def command(  # noqa: PLR0913 - an option each
    ctx: click.Context,
    words: tuple[str, ...],
    output: Path | None,
    name: str | None,
    prometheus_port: int | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure CMD and its children, from start to end, on the GPUs that CUDA_VISIBLE_DEVICES shows.

    CMD keeps the terminal, its input and its output. Ctrl-C reaches it; SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and
    SIGUSR2 sent to energy-plugins are passed on to it. However it ends, the report is written: a table on the error
    output, and a folder that also holds the command's text. Joules are those of the whole GPUs, whoever else uses them.
    What CMD leaves running in the background is not waited for.

    \b
    Examples:
      energy-plugins run -- python train.py --epochs 3
      energy-plugins run -o energy/baseline --name baseline -- torchrun --nproc-per-node 8 train.py

    Exit codes: CMD's own, 128+N if signal N ended it; 127 CMD was not found, 126 it cannot be run, 125 the report
    cannot be written, so CMD was not run; 2 wrong use.
    """
    mask = child.hold_signals()
    if output is not None and (output / "report.json").exists():
        raise click.UsageError(f"{output} holds a report already: choose another folder")
    if quiet:
        warnings.simplefilter("ignore")  # they stand in the report
    try:
        child.find_command(words[0])
        name = name or Path(words[0]).name
        folder = output or new_folder(name)
        code, report = _measure(words, folder, name, mask, ReportConfig(prometheus_port=prometheus_port))
    except child.CommandError as error:
        _say(f"energy-plugins run: {error}")
        ctx.exit(error.code)
    except EnergyError as error:
        _say(f"energy-plugins run: {error}; the command was not run")
        ctx.exit(_OWN_FAILURE)
    if as_json and not quiet:
        _say(json.dumps({"folder": str(folder), "exit_code": code, "report": report.header()}))
    elif not quiet:
        _say(f"\n{report}\n\nthe report is in {folder}")
    ctx.exit(code)


def _measure(
    words: Sequence[str], folder: Path, name: str, mask: set[signal.Signals], exports: ReportConfig
) -> tuple[int, Report]:
    """Run a command beside a meter and return its exit code and the report."""
    from energy_plugins.measure.meter import EnergyMeter  # noqa: PLC0415 - numpy's threads must find the signals held
    from energy_plugins.measure.spool import INSIDE_VARIABLE  # noqa: PLC0415 - the same

    meter = EnergyMeter(name, folder=folder, config={"command": list(words)}).start()
    if meter.run is not None:
        os.environ[INSIDE_VARIABLE] = meter.run.run_id  # what the command measures of itself is not to count twice
    export_if_asked(meter, exports, None)
    code = _OWN_FAILURE
    try:
        came = child.held_signal()
        code = 128 + came if came is not None else child.wait(child.start(words, mask))
    finally:
        meter.stop(failed=code != 0)
    return code, meter.report()


def new_folder(name: str) -> Path:
    """Make a folder of its own for a run that starts now. Raises ReportError."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60]
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{plain}"
    try:
        return first_free(REPORTS, chain([stem], (f"{stem}-{number}" for number in count(2))))
    except OSError as error:
        folder = error.filename or REPORTS
        raise ReportError(f"cannot make {folder}: {error.strerror}; name a folder with --output") from error


def _say(text: str) -> None:
    """Print on the error output, which the command may have closed behind its reader: its exit code comes first."""
    with suppress(OSError):
        click.echo(text, err=True)
