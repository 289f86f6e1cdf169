"""``energy-plugins powerd``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from energy_plugins import powerd
from energy_plugins.powerd.config import DEFAULT_PATH

CODE = Path(powerd.__file__).resolve().parent


@click.command("powerd")
@click.option("--check", is_flag=True, help="Say what the helper would refuse and grant here, and what is wrong.")
@click.option("--unit", is_flag=True, help="Print the systemd unit for this installation.")
@click.option("--example", is_flag=True, help="Print a configuration to begin with.")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    metavar="FILE",
    help="The site's configuration.",
)
@click.pass_context
def command(ctx: click.Context, /, path: Path, *, check: bool, unit: bool, example: bool) -> None:
    """Help an administrator install the helper that sets power limits for users.

    Nothing is changed by any of it.

    \b
    Examples:
      energy-plugins powerd --example | sudo tee /etc/energy-plugins/powerd.toml
      energy-plugins powerd --unit    | sudo tee /etc/systemd/system/energy-powerd.service
      sudo energy-plugins powerd --check

    Exit codes: 0 nothing is wrong, 1 the helper would not start or not serve, 2 wrong use.
    """
    if check + unit + example != 1:
        raise click.UsageError("one of --check, --unit and --example is needed")
    if unit:
        text = (CODE / "energy-powerd.service").read_text(encoding="utf-8")
        click.echo(text.replace("@PYTHON@", sys.executable).replace("@CODE@", str(CODE)), nl=False)
    elif example:
        click.echo((CODE / "powerd.toml").read_text(encoding="utf-8"), nl=False)
    else:
        # The helper itself says it, started as it would be: so it speaks of the very code that root would run.
        helper = [sys.executable, "-I", "-S", str(CODE), "--check", "--config", str(path.absolute())]
        ctx.exit(subprocess.run(helper, env={}, check=False).returncode)
