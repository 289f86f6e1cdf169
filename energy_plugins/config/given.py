"""What was given for a key, and where; and what to say about a key that there is not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from energy_plugins.config.schema import Key
from energy_plugins.config.values import Value, shown
from energy_plugins.errors import ConfigError


@dataclass(frozen=True)
class Given:
    """A value for a key, and where it was found, in words."""

    key: Key
    value: Value | None
    origin: str

    @classmethod
    def of(cls, key: Key, written: object, origin: str) -> Given:
        """Read a value. Raises ConfigError if it is not allowed."""
        try:
            return cls(key, key.kind.read(written), origin)
        except ValueError as error:
            message = f"{origin}: {key.dotted} is {shown(written)}; expected {key.kind.expected}"
            raise ConfigError(message) from error


def unknown(name: str, where: str, valid: Iterable[str]) -> ConfigError:
    """Return the error for a name that is none of the valid ones, with the one of them that is most like it."""
    (nearest,) = get_close_matches(name, list(valid), n=1, cutoff=0)
    return ConfigError(f"{where} {shown(name)} is not known; the nearest that is: {nearest}")
