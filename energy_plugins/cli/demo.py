"""``energy-plugins demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option("--quick", is_flag=True, help="About ten seconds instead of a minute.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("energy-reports"),
    show_default=True,
    help="Where reports, logs and checkpoints go.",
)
def command(folder: Path, *, quick: bool) -> None:
    """Train a small network on real images and show where the joules went.

    With an NVIDIA GPU it trains there. Without one a simulated GPU stands in, and everything says SIMULATED. It needs
    Lightning and scikit-learn.

    \b
    Example:
      energy-plugins demo --quick

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """
    try:
        from energy_plugins.demo import demo  # noqa: PLC0415 - takes seconds, and needs what may not be installed
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise click.ClickException(
            f"the demo needs {package}, which is not installed: pip install 'energy-plugins[lightning]' scikit-learn"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make {folder}: {error.strerror}; name a folder with --folder") from error
    click.echo("loading a small data set and training on it; this takes up to a minute and a half", err=True)
    demo(folder, quick=quick)
