"""A configuration file: YAML read with suspicion, each value with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy_plugins.config.given import Given, unknown
from energy_plugins.config.schema import ASKED_FOR, KEYS, SECTIONS, Key
from energy_plugins.config.values import shown
from energy_plugins.errors import ConfigError

if TYPE_CHECKING:
    Node = Any
    """A node of PyYAML, which has no types."""

_MOST_BYTES = 1 << 18
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("str", "int", "float", "bool", "timestamp")}
_NULL = _TAG + "null"


def read_file(path: str | Path, section: str | None = None) -> tuple[Given, ...] | None:
    """Return what a YAML file gives, or one top-level section of it; None if it has no such section.

    Raises:
        ConfigError: the file cannot be read, is no YAML, has unknown or repeated keys, or values that are not allowed.
    """
    root = _compose(path, _text(path))
    entries = [] if root is None else list(_entries(path, "the file", root, only=section))
    if section is not None:
        if not entries:
            return None
        ((_, node),) = entries
        entries = [] if node.tag == _NULL else list(_entries(path, section, node))
    return tuple(given for name, node in entries for given in _section(path, name, node))


def _text(path: str | Path) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}; expected a YAML file") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: larger than {_MOST_BYTES >> 10} KiB; expected a YAML file of a few lines")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError(f"{path} line {line}: the byte 0x{byte:02x} is not UTF-8; expected text in UTF-8") from error


def _compose(path: str | Path, text: str) -> Node | None:
    import yaml  # noqa: PLC0415 - 25 ms that only those with a file need

    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context
        raise ConfigError(f"{path} line {mark.line + 1}: {problem}; expected YAML") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path} line {line}: the character {error.character:#x}; expected YAML") from error
    except (ValueError, OverflowError) as error:  # of an escape beyond Unicode, or a version of endless digits
        raise ConfigError(f"{path}: {error}; expected YAML") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; expected sections with keys, no more") from error


def _where(path: str | Path, node: Node) -> str:
    return f"{path} line {node.start_mark.line + 1}"


def _entries(path: str | Path, what: str, mapping: Node, only: str | None = None) -> Iterator[tuple[Node, Node]]:
    """Yield the keys of a mapping with their values, those of one name if it is given; each may stand there once."""
    if mapping.id != "mapping":
        raise ConfigError(f"{_where(path, mapping)}: {what} is {_shown(mapping)}; expected keys with values")
    seen: dict[str, Node] = {}
    for key, value in mapping.value:
        if only is not None and key.value != only:
            continue
        if key.id != "scalar":
            raise ConfigError(f"{_where(path, key)}: a key is {_shown(key)}; expected a word")
        if key.value in seen:
            first = seen[key.value].start_mark.line + 1
            raise ConfigError(
                f"{_where(path, key)}: {key.value} stands there twice, first in line {first}; expected once"
            )
        seen[key.value] = key
        yield key, value


def _section(path: str | Path, name: Node, node: Node) -> Iterator[Given]:
    section = name.value
    if section not in SECTIONS:
        raise unknown(section, f"{_where(path, name)}: the key", [*SECTIONS, *KEYS])
    entries = [] if node.tag == _NULL else list(_entries(path, section, node))
    asked = ASKED_FOR.get(section)
    if asked is not None and not any(word.value == asked.name for word, _ in entries):
        yield Given(asked, True, _where(path, name))
    for word, value in entries:
        dotted = f"{section}.{word.value}"
        if dotted not in KEYS:
            raise unknown(dotted, f"{_where(path, word)}: the key", KEYS)
        yield _given(KEYS[dotted], value, _where(path, value))


def _given(key: Key, node: Node, origin: str) -> Given:
    if node.tag == _NULL and key.default is None:
        return Given(key, None, origin)
    if node.id == "sequence":
        return Given.of(key, [_scalar(key, item, origin) for item in node.value], origin)
    return Given.of(key, _scalar(key, node, origin), origin)


def _scalar(key: Key, node: Node, origin: str) -> str:
    """Return a value as it is written, so that it means what it means in a variable."""
    if node.id != "scalar" or node.tag not in _PLAIN:
        raise ConfigError(f"{origin}: {key.dotted} is {_shown(node)}; expected {key.kind.expected}")
    return str(node.value)


def _shown(node: Node) -> str:
    match node.id:
        case "mapping":
            return "keys with values"
        case "sequence":
            return "a list"
        case _ if node.tag == _NULL:
            return "empty"
        case _ if node.tag in _PLAIN:
            return shown(node.value)
        case _:
            return f"{node.tag} {shown(node.value)}"
