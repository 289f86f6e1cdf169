"""``energy-launch``: ``accelerate launch`` that also measures; the script stays as it is.

It takes every option of ``accelerate launch``, the flags of this package, and a section ``energy_config:`` in
accelerate's own configuration file. What is to be measured travels to the processes as variables, and each of them runs
the script through `energy_plugins.run`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from energy_plugins.config import EnergyConfig, add_flags, effective, flags_of, to_environment
from energy_plugins.errors import ConfigError

SECTION = "energy_config"
"""In accelerate's file."""


def main(words: Sequence[str] | None = None) -> None:
    """Launch a training."""
    try:
        from accelerate.commands.config.config_args import default_config_file  # noqa: PLC0415 - seconds
        from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415
    except ModuleNotFoundError:
        _refuse("accelerate is missing: pip install energy-plugins[accelerate]")
    parser = launch_command_parser()
    add_flags(parser)
    parsed = parser.parse_args(words)
    by_default = Path(default_config_file)
    file = Path(parsed.config_file) if parsed.config_file else by_default if by_default.is_file() else None
    _refuse_what_cannot_be(parsed)
    try:
        config = _config(file, flags_of(parsed))
    except ConfigError as error:
        _refuse(str(error))
    with TemporaryDirectory(prefix="energy-launch-") as folder:
        if file is not None:
            parsed.config_file = str(_without_section(file, Path(folder)))
        if config.measure.enabled:
            os.environ.update(to_environment(config))
            _through_run(parsed)
        launch_command(parsed)


def _config(file: Path | None, flags: Sequence[str]) -> EnergyConfig:
    """Return what counts. A file of ours that a flag names is above the section in accelerate's."""
    names_file = any(flag.startswith("--energy-config=") for flag in flags)
    if file is None or names_file:
        return effective(flags=flags).config
    return effective(file, flags=flags, section=SECTION).config


def _without_section(file: Path, folder: Path) -> Path:
    """Return accelerate's file, or if it has a section of ours a copy that has none: accelerate refuses what is new."""
    import yaml  # noqa: PLC0415

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (OSError, yaml.YAMLError):
        return file  # accelerate says what is wrong with it
    if not isinstance(content, dict) or SECTION not in content:
        return file
    del content[SECTION]
    copy = folder / f"{file.stem}.yaml"
    copy.write_text(yaml.safe_dump(content), encoding="utf-8")
    return copy


def _through_run(parsed: argparse.Namespace) -> None:
    """Have the processes run `energy_plugins.run` with the script, and so unchanged."""
    script = ["-m", parsed.training_script] if parsed.module else [parsed.training_script]
    parsed.training_script_args = [*script, *parsed.training_script_args]
    parsed.training_script = "energy_plugins.run"
    parsed.module = True


def _refuse_what_cannot_be(parsed: argparse.Namespace) -> None:
    if parsed.no_python:
        _refuse("--no_python starts programs that are not Python: measure those with energy-plugins run")
    if parsed.tpu:
        _refuse("TPUs are not measured: use accelerate launch")


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(f"energy-launch: {reason}\n")
    raise SystemExit(2)


if __name__ == "__main__":
    main()
