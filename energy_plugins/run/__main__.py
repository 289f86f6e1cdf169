"""``python -m energy_plugins.run [--energy-config FILE] [energy flags] (SCRIPT | -m MODULE) [arguments]``."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from energy_plugins.config import effective, to_environment
from energy_plugins.errors import ConfigError
from energy_plugins.report.carbon.grid import placed

_USAGE = """\
usage: python -m energy_plugins.run [--energy-config FILE] [--energy-SECTION-KEY VALUE ...] (SCRIPT | -m MODULE) [...]

Runs a Python program as python itself would, and measures the training in it: a loop that uses accelerate, a
transformers Trainer or a Lightning Trainer; where there is none of them, the whole process.
`energy-plugins config --help` lists the flags.
"""


def main(words: Sequence[str]) -> None:
    """Run a program and measure it. What it raises, and its exit code, are the program's own."""
    count = _flags(words)
    flags, program = words[:count], words[count:]
    if program[:1] in (["-h"], ["--help"]):
        sys.stdout.write(_USAGE)
        return
    is_module = program[:1] == ["-m"]
    program = program[1:] if is_module else program
    if not program or (program[0].startswith("-") and not is_module):
        _refuse(f"{program[0]}: no such option" if program else "there is no program to run")
    try:
        config = effective(flags=flags).config
        placed(config.report.country, config.report.carbon_intensity_g_per_kwh)  # no country of that name: say so now
    except ConfigError as error:
        _refuse(str(error))
    os.environ.update(to_environment(config))  # for what the program starts, and the plugins in it
    if config.measure.enabled or config.micro_batch.enabled:
        from energy_plugins.run.frameworks import measure_frameworks  # noqa: PLC0415 - nothing is imported in vain

        measure_frameworks()
    if not config.measure.enabled:
        _run(program, is_module=is_module)
        return
    from energy_plugins.run.process import Process  # noqa: PLC0415

    process = Process(config, list(program))
    process.start()
    try:
        _run(program, is_module=is_module)
    finally:
        process.finish()


def _flags(words: Sequence[str]) -> int:
    """Return how many words at the beginning are flags of ours and their values."""
    count = 0
    while count < len(words) and words[count].startswith(("--energy-", "--energy_")):
        count += 1 if "=" in words[count] else 2
    return min(count, len(words))


def _run(program: Sequence[str], *, is_module: bool) -> None:
    sys.argv = list(program)
    if is_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        return
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(program[0]).resolve().parent)
    runpy.run_path(program[0], run_name="__main__")


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(f"energy_plugins.run: {reason}\n\n{_USAGE}")
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
