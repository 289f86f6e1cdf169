"""``energy-plugins hierarchy``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click

from energy_plugins.cli.hierarchy_view import View, view_of
from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.tune.memory_hierarchy import MemoryHierarchy
from energy_plugins.tune.working_set import WorkingSet


@click.command("hierarchy")
@click.argument("where", metavar="MODULE:FUNCTION")
@click.option("--device", metavar="NAME", help="cpu, cuda or cuda:1; else the first GPU, or the CPU.")
@click.option("--precision", metavar="NAME", help="Of autocast: bf16 or fp16; by default none.")
@click.option("--sizes", metavar="N,N,...", help="Micro-batches to show; by default powers of two up to the memory.")
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw a picture, too.")
def command(  # noqa: PLR0913 - its options
    where: str, *, device: str | None, precision: str | None, sizes: str | None, as_json: bool, png: Path | None
) -> None:
    """Show in which level of memory a model's working sets live at each micro-batch.

    FUNCTION takes nothing and returns a model (torch.nn.Module), an example batch as a loader yields it, and an
    optimizer if there is one. A batch that is a mapping is passed as keywords. MODULE is found as `python -m` finds it,
    or is the path of a file. The model is traced on tensors without data, so it need not fit on this machine.

    \b
    What the sets are, in bytes:
      layer       what the largest operation of the forward pass reads and writes
      forward     that, and all parameters
      backward    parameters, gradients, and what is kept between the passes
      gradients   as they are accumulated
      optimizer   parameters, gradients and its state
      all at once the most that a step of several micro-batches has allocated

    \b
    Examples:
      energy-plugins hierarchy train:model_and_batch
      energy-plugins hierarchy train.py:model_and_batch --precision bf16 --device cuda --png sets.png
      energy-plugins hierarchy train:model_and_batch --sizes 8,32,128 --json | jq '.micro_batches[].sets.layer'

    Exit codes: 0 shown, 1 the model cannot be had or traced, 2 wrong use.
    """
    chosen = _sizes(sizes)
    draw = _drawing() if png else None
    on = device or _first_device()
    hierarchy = MemoryHierarchy.detect(on)
    model, batch, optimizer = _made_by(_function(where), where)
    working_set = WorkingSet.of(model, batch, optimizer, precision, device=on)
    view = view_of(hierarchy, working_set, chosen)
    click.echo(json.dumps(view.as_json(), indent=1) if as_json else "\n".join(view.text()))
    if png and draw:
        try:
            draw(view, png)
        except OSError as error:
            raise click.ClickException(f"cannot write {png}: {error.strerror}; name another file") from error
        click.echo(f"{png} is written", err=True)


def _sizes(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1:
        raise click.BadParameter(f"{text!r} is no list of numbers above 0, such as 8,32,128", param_hint="--sizes")
    return sizes


def _drawing() -> Callable[[View, Path], None]:
    try:
        from energy_plugins.cli.hierarchy_png import draw  # noqa: PLC0415 - needs what may not be installed
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"--png needs {error.name}, which is not installed: pip install 'energy-plugins[report]'"
        ) from error
    return draw


def _first_device() -> str:
    try:
        return "cuda" if visible_gpus() else "cpu"
    except DeviceError:
        return "cpu"


def _function(where: str) -> Callable[[], object]:
    """Return the function that is named."""
    name, colon, function = where.rpartition(":")
    if not colon or not name or not function:
        raise click.BadParameter(f"{where!r} names no function: write MODULE:FUNCTION, such as train:model_and_batch")
    found = getattr(_module(name), function, None)
    if not callable(found):
        raise click.ClickException(f"{name} has no function {function}")
    made: Callable[[], object] = found
    return made


def _module(name: str) -> ModuleType:
    """Import a module by its name or its file, as a program in this folder would."""
    sys.path.insert(0, str(Path(name).resolve().parent) if name.endswith(".py") else os.getcwd())  # noqa: PTH109
    try:
        return importlib.import_module(Path(name).stem if name.endswith(".py") else name)
    except Exception as error:
        raise click.ClickException(f"cannot import {name}: {type(error).__name__}: {error}") from error


def _made_by(function: Callable[[], object], where: str) -> tuple[object, object, object]:
    """Return a model, a batch and an optimizer or None."""
    try:
        made = function()
    except Exception as error:
        raise click.ClickException(f"{where} failed: {type(error).__name__}: {error}") from error
    match made:
        case (model, batch):
            return model, batch, None
        case (model, batch, optimizer):
            return model, batch, optimizer
        case _:
            raise click.ClickException(
                f"{where} returned a {type(made).__name__}, but must return (model, batch) or (model, batch, optimizer)"
            )
