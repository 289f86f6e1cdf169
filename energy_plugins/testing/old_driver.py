"""A simulated driver library in which some symbols are really not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def without_symbols(library: Path, symbols: Sequence[str], target: Path) -> Path:
    """Copy ``library`` to ``target`` without ``symbols``, and return it.

    Their names are changed in the table of names (ELF's ``.dynstr``, which comes before any text of the program), so
    that looking one up by its hash finds another name and fails, as in a driver that never had it.

    Raises:
        ValueError: the library has no such symbol.
    """
    image = library.read_bytes()
    for symbol in symbols:
        name = b"\0" + symbol.encode() + b"\0"
        if name not in image:
            raise ValueError(f"{library} has no symbol {symbol}")
        image = image.replace(name, name[:-2] + b"?\0", 1)
    target.write_bytes(image)
    return target
