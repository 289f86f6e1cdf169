"""Commands run in turn, each measured as ``energy-plugins run`` measures it."""

from __future__ import annotations

import os
import random
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from energy_plugins.cli import child

if TYPE_CHECKING:
    import signal

    from energy_plugins.measure.json_section import JSON

_SIGNALLED = 128


@dataclass(frozen=True)
class Turn:
    """One run of one command."""

    round: int
    """From 1 on."""
    label: str


def turns(names: Sequence[str], repeats: int) -> list[Turn]:
    """Return every command once a round, in an order drawn anew for each round.

    What drifts slowly (the temperature of the room, other people's load) then befalls all of them alike.
    """
    drawn = random.SystemRandom()
    return [Turn(number, label) for number in range(1, repeats + 1) for label in drawn.sample(names, len(names))]


def run_all(commands: Mapping[str, Sequence[str]], repeats: int, output: Path) -> list[Path]:
    """Run each command ``repeats`` times, and return the folders of their reports, one for each command.

    What the commands print goes to the error output. Ctrl-C reaches the command that runs and ends the rest.

    Raises:
        click.ClickException: a command cannot be run, or not be measured; what was measured before stays.
        click.exceptions.Exit: a command failed, or was ended by a signal.
    """
    mask = child.hold_signals()
    for words in commands.values():
        try:
            child.find_command(words[0])
        except child.CommandError as error:
            raise click.ClickException(str(error)) from error
    series, plan, began_s = uuid.uuid4().hex, turns(list(commands), repeats), time.monotonic()
    with _prints_on_errors():
        for done, turn in enumerate(plan):
            _say_progress(turn, repeats, done, len(plan), time.monotonic() - began_s, commands[turn.label])
            folder = output / turn.label / f"round-{turn.round}"
            code = _measure(commands[turn.label], turn.label, folder, mask)
            if code:
                click.echo(f"{turn.label} ended with exit code {code} in round {turn.round}", err=True)
                click.echo(f"so there is no comparison; what was measured until then is in {output}", err=True)
                raise click.exceptions.Exit(code if code > _SIGNALLED else 1)
            _note(folder, series, turn)
    return [output / label for label in commands]


def _measure(words: Sequence[str], label: str, folder: Path, mask: set[signal.Signals]) -> int:
    """Run a command in a process of `energy-plugins run` and return its exit code."""
    ours = [sys.executable, "-m", "energy_plugins", "run", "--quiet", "--name", label, "--output", str(folder), "--"]
    came = child.held_signal()
    return _SIGNALLED + came if came is not None else child.wait(child.start([*ours, *words], mask))


def _note(folder: Path, series: str, turn: Turn) -> None:
    """Write into the report in which round it was made. Raises click.ClickException if nothing was measured."""
    from energy_plugins.measure.report import Report, write_header  # noqa: PLC0415 - signals are held first
    from energy_plugins.report.comparison.runs import SERIES  # noqa: PLC0415

    report = Report.load(folder)
    if report.total_j is None:
        why = report.missing.get("total_j", "no reason was recorded")
        raise click.ClickException(f"{turn.label} was run, but its energy was not measured: {why}")
    said: dict[str, JSON] = {"series": series, "round": turn.round, "side": turn.label}
    write_header(folder, replace(report, config={**report.config, SERIES: said}))


def _say_progress(  # noqa: PLR0913, PLR0917 - all that is said
    turn: Turn, repeats: int, done: int, count: int, passed_s: float, words: Sequence[str]
) -> None:
    from energy_plugins.measure.quantity import duration  # noqa: PLC0415

    left = f", about {duration(passed_s / done * (count - done))} left" if done else ""
    what = " ".join(words)
    click.echo(f"round {turn.round} of {repeats}, run {done + 1} of {count}{left}: {turn.label}: {what:.60}", err=True)


@contextmanager
def _prints_on_errors() -> Iterator[None]:
    """Have what this process and its children print on the standard output appear on the error output."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
