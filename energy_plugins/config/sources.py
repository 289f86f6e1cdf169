"""Where values come from, and which of them counts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from energy_plugins.config.file import read_file
from energy_plugins.config.given import Given, unknown
from energy_plugins.config.schema import (
    ASKED_FOR,
    FILE_FLAG,
    FILE_VARIABLE,
    KEYS,
    SECTIONS,
    EnergyConfig,
    Key,
    MicroBatchConfig,
    PowerLimitConfig,
)
from energy_plugins.config.values import Value, as_text
from energy_plugins.errors import ConfigError

_PREFIX = "ENERGY_"
VARIABLES: Mapping[str, Key] = MappingProxyType({key.variable: key for key in KEYS.values()})
"""The keys by the names of their variables."""
OTHER_VARIABLES = frozenset(
    {
        "ENERGY_CONTROL_JOURNAL",
        "ENERGY_POWERD_SOCKET",
        "ENERGY_CUDA_LIBRARY",
        "ENERGY_EVENT_SOURCES_ROOT",
        "ENERGY_INSIDE_RUN",
        "ENERGY_NVML_LIBRARY",
        "ENERGY_POWERCAP_ROOT",
        "ENERGY_SIM_STATE",
    }
)
"""What this package reads from the environment besides its configuration."""
_FLAGS = {key.flag: key for key in KEYS.values()}


@dataclass(frozen=True)
class Effective:
    """The configuration that counts.

    Attributes:
        config: the values.
        origins: where each came from, by its key's dotted name: ``default``, ``energy.yaml line 3``,
        ``environment ENERGY_MEASURE_ACTIVITY``, ``flag --energy-measure-activity``.
    """

    config: EnergyConfig
    origins: Mapping[str, str]


def effective(
    file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    *,
    section: str | None = None,
    arguments: Mapping[str, object] = MappingProxyType({}),
) -> Effective:
    """Return the configuration that counts, and where each value came from.

    The later of these overrides the earlier: default, file, environment, flags, arguments.

    Args:
        file: a YAML file; if not given, the one of the flag ``--energy-config``, or of the variable ``ENERGY_CONFIG``.
        environ: the variables; the process's own if not given. An empty one is not given.
        flags: words of a command line, all of them flags of this package and their values.
        section: which top-level section of ``file`` holds the configuration, where it is another program's file; a
            file without it is not given.
        arguments: what was given in code, by dotted names such as ``measure.activity``; None is not given.

    Raises:
        ConfigError: a file that cannot be read, a key that does not exist, or a value that is not allowed.
    """
    environ = os.environ if environ is None else environ
    pairs = tuple(_pairs(flags))
    by_file = read_file(file, section) if file is not None else None
    named = dict(pairs).get(FILE_FLAG) or environ.get(FILE_VARIABLE)
    if by_file is None and named:
        by_file = read_file(named)
    return merged(by_file or (), from_environment(environ), _from_flags(pairs), _from_arguments(arguments))


def merged(*layers: Iterable[Given]) -> Effective:
    """Return the configuration that layers make, a later one above those before it."""
    found = {given.key.dotted: given for layer in layers for given in layer}
    for section, asked in ASKED_FOR.items():
        asking = [given for given in found.values() if given.key.section == section and given.value is not None]
        if asking and asked.dotted not in found:
            found[asked.dotted] = Given(asked, True, asking[0].origin)
    values: dict[str, dict[str, Value | None]] = {section: {} for section in SECTIONS}
    for given in found.values():
        values[given.key.section][given.key.name] = given.value
    origins = {dotted: found[dotted].origin if dotted in found else "default" for dotted in KEYS}
    sections = {section: holder(**values[section]) for section, holder in SECTIONS.items()}  # type: ignore[arg-type] # checked
    return Effective(EnergyConfig(**sections), MappingProxyType(origins))  # type: ignore[arg-type] # the same


def limit_asked(**arguments: object) -> PowerLimitConfig:
    """Return the section ``power_limit`` where code asks for a limit: what it does not give is taken from elsewhere.

    Raises ConfigError.
    """
    return _asked("power_limit", arguments).power_limit


def micro_batch_asked(**arguments: object) -> MicroBatchConfig:
    """Return the section ``micro_batch`` where code asks for a micro-batch, as `limit_asked`. Raises ConfigError."""
    return _asked("micro_batch", arguments).micro_batch


def _asked(section: str, arguments: Mapping[str, object]) -> EnergyConfig:
    given = {f"{section}.{name}": value for name, value in arguments.items()}
    return effective(arguments={ASKED_FOR[section].dotted: True, **given}).config


def to_environment(config: EnergyConfig) -> dict[str, str]:
    """Return the variables that give a child process this configuration, whatever else its environment says.

    ``effective(environ={**os.environ, **to_environment(config)}).config`` is ``config``, if that came of `effective`
    in the same environment. ``ENERGY_CONFIG`` is emptied: a file that was read must not be read again.
    """
    values = {key.variable: as_text(value) for key, value in config.values() if value is not None}
    return {FILE_VARIABLE: "", **values}


def from_environment(environ: Mapping[str, str]) -> Iterator[Given]:
    """Yield what variables give. Raises ConfigError."""
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in OTHER_VARIABLES or name == FILE_VARIABLE:
            continue
        origin = f"environment {name}"
        if name not in VARIABLES:
            if _is_ours(name):
                raise unknown(name, "environment: the variable", [*VARIABLES, FILE_VARIABLE])
            continue
        if environ[name]:
            yield Given.of(VARIABLES[name], environ[name], origin)


def _is_ours(name: str) -> bool:
    """Tell a misspelt variable of ours from one of another program's, which is none of our business."""
    sections = tuple(f"{_PREFIX}{section.upper()}_" for section in SECTIONS)
    return name.startswith(sections) or bool(get_close_matches(name, [*VARIABLES, FILE_VARIABLE], n=1, cutoff=0.8))


def _from_flags(pairs: Iterable[tuple[str, str]]) -> Iterator[Given]:
    for name, text in pairs:
        if name in _FLAGS:
            yield Given.of(_FLAGS[name], text, f"flag {name}")


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield flags with their values, which follow as the next word or behind "="."""
    rest = iter(words)
    for word in rest:
        spelt, equals, text = word.partition("=")
        name = spelt.replace("_", "-")
        origin = f"flag {spelt}"
        if name not in _FLAGS and name != FILE_FLAG:
            raise unknown(name, "flags:", [*_FLAGS, FILE_FLAG])
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                expected = _FLAGS[name].kind.expected if name in _FLAGS else "a YAML file"
                raise ConfigError(f"{origin}: its value is missing; expected {expected}")
        yield name, text


def _from_arguments(arguments: Mapping[str, object]) -> Iterator[Given]:
    for dotted, value in arguments.items():
        if dotted not in KEYS:
            raise unknown(dotted, "arguments: the key", KEYS)
        if value is not None:
            yield Given.of(KEYS[dotted], value, f"argument {dotted}")
