"""``energy-plugins config``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from energy_plugins.config import KEYS, Effective, effective
from energy_plugins.config.values import as_text
from energy_plugins.errors import ConfigError


def _with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each key."""
    for key in reversed(list(KEYS.values())):
        option = click.option(key.flag, key.argument, metavar=key.kind.placeholder, help=key.help)
        function = option(function)
    return function


# A flag that there is not is answered with the nearest one that there is, by the same words as anywhere else.
@click.command("config", context_settings={"ignore_unknown_options": True})
@click.option("--energy-config", "file", type=click.Path(path_type=Path), metavar="FILE", help="A YAML file to read.")
@click.option("--json", "as_json", is_flag=True, help="Values and origins as JSON.")
@_with_flags
@click.argument("others", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.pass_context
def command(
    ctx: click.Context, /, file: Path | None, others: Sequence[str], *, as_json: bool, **given: str | None
) -> None:
    """Show the configuration that counts here, and where each value came from.

    The later of these overrides the earlier: the default, the file (--energy-config, or the variable ENERGY_CONFIG),
    the environment (ENERGY_MEASURE_ACTIVITY=true), the flags below.

    \b
    Examples:
      energy-plugins config --energy-config energy.yaml
      ENERGY_MEASURE_ACTIVITY=1 energy-plugins config --json | jq .origins

    Exit codes: 0 shown, 2 a configuration that is wrong, or wrong use.
    """
    flags = [f"{key.flag}={given[key.argument]}" for key in KEYS.values() if given[key.argument] is not None]
    try:
        found = effective(file, flags=[*flags, *others])
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        ctx.exit(2)
    click.echo(json.dumps(_as_json(found), indent=1) if as_json else _table(found))


def _as_json(found: Effective) -> dict[str, object]:
    return {"config": asdict(found.config), "origins": dict(found.origins)}


def _table(found: Effective) -> str:
    shown = {key.dotted: "-" if value is None else as_text(value) for key, value in found.config.values()}
    wide, wider = max(map(len, shown)), max(map(len, shown.values()))
    return "\n".join(f"{key:{wide}}  {value:{wider}}  {found.origins[key]}" for key, value in shown.items())
