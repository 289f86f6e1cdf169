"""The command ``energy-plugins`` and its list of verbs.

A verb is a module of this package with a click command called ``command``. It is imported when it is called: asking for
help or for `doctor` must not wait for what another verb needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module

import click

from energy_plugins import __version__
from energy_plugins.errors import EnergyError

NAME = "energy-plugins"

_VERBS = {
    "doctor": "Say what can be measured on this machine, what cannot, why, and what to do.",
    "run": "Measure any command and its children.",
    "report": "Show the report in a folder.",
    "compare": "Compare runs, or commands that are run in turn, and say which differences are real.",
    "ledger": "Say what all runs so far cost, by project, model, user, month or GPU.",
    "sweep": "Say what a hyperparameter sweep drew, and what it found for that.",
    "watch": "Show power and joules of the GPUs as they are now.",
    "config": "Show the configuration that counts, and where each value came from.",
    "powerd": "Help install the helper that sets power limits for users.",
    "hierarchy": "Show in which level of memory a model works at each micro-batch.",
    "demo": "Train a small network and show where the joules went.",
}


class Verbs(click.Group):
    """Finds verbs by name, and says what this package raises on purpose in one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the verbs."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return a verb; None if there is none of that name."""
        if cmd_name not in _VERBS:
            return None
        verb: click.Command = import_module(f"energy_plugins.cli.{cmd_name}").command
        return verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Call the verb."""
        warnings.showwarning = _say_warning
        try:
            return super().invoke(ctx)
        except EnergyError as error:
            raise click.ClickException(str(error)) from error


def _say_warning(message: Warning | str, *_where: object, **_how: object) -> None:
    """Say a warning as a user reads it; where in the code it was raised is of no use to them."""
    click.echo(f"{NAME}: {str(message).removeprefix('energy: ')}", err=True)


@click.group(
    NAME,
    cls=Verbs,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name=NAME)
def cli() -> None:
    """Measure the energy of training: how many joules, where they went, and how sure that is.

    \b
    Begin with:
      energy-plugins doctor                  what can be measured here?
      energy-plugins run -- python train.py  measure any program
      energy-plugins demo                    see it at work, without a GPU too

    Each verb explains itself: energy-plugins VERB --help.

    Exit codes, unless a verb says otherwise: 0 done, 1 failed, 2 wrong use.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with ``arguments``, by default the process's own, and exit."""
    cli.main(args=arguments, prog_name=NAME)
