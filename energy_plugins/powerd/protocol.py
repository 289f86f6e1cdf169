"""The language of the socket: a JSON object a line, an answer to each; whatever is not exactly that is refused.

Asked: ``{"op": "take", "gpu": "GPU-..."}``, ``{"op": "set", "gpu": "GPU-...", "limit_w": 450}``, ``{"op": "renew"}``,
``{"op": "release", "gpu": "GPU-..."}``, ``{"op": "ask", "gpu": "GPU-..."}``; with an optional ``"id"``, a number that
the answer repeats.
Answered: ``{"ok": true, ...}`` or ``{"ok": false, "error": CODE, "why": SENTENCE}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from energy_plugins.powerd.config import UUID

MOST_BYTES = 1024
"""Of a line, with its end. The longest that makes sense is a quarter of it."""
_MOST_W = 1e5
_MOST_ID = 2**53


class Op(Enum):
    """What may be asked."""

    ASK = "ask"
    """Whether `TAKE` would be allowed, with the present limit and the range."""
    TAKE = "take"
    """A lease of a GPU; nothing is set yet."""
    SET = "set"
    RENEW = "renew"
    """The heartbeat: for all leases of the connection."""
    RELEASE = "release"


class Code(Enum):
    """Why something was not done."""

    MALFORMED = "malformed"
    REFUSED = "refused"
    OWNED = "owned"
    """Another client has the GPU."""
    FOREIGN = "foreign"
    """Others changed the limit while it was leased; theirs stays."""
    TOO_OFTEN = "too_often"
    NO_LEASE = "no_lease"
    JOURNAL = "journal"
    """What was found could not be written down, so nothing was changed."""
    DRIVER = "driver"
    FULL = "full"
    """Too many connections."""


@dataclass(frozen=True)
class Request:
    """A message that is well formed."""

    op: Op
    gpu: str = ""
    limit_w: float = 0.0
    id: int | None = None


class Malformed(Exception):  # noqa: N818 - an answer, not a failure
    """A message is not one of this language; says in what."""


_FIELDS: Mapping[Op, frozenset[str]] = {
    Op.ASK: frozenset({"op", "gpu"}),
    Op.TAKE: frozenset({"op", "gpu"}),
    Op.SET: frozenset({"op", "gpu", "limit_w"}),
    Op.RENEW: frozenset({"op"}),
    Op.RELEASE: frozenset({"op", "gpu"}),
}


def read(line: bytes) -> Request:
    """Return what a line asks. Raises Malformed."""
    try:
        # Decoded here: json.loads would guess at other encodings.
        values = json.loads(line.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise Malformed("no JSON object")
    try:
        op = Op(values.get("op"))
    except (ValueError, TypeError):
        raise Malformed("op is none of ask, take, set, renew, release") from None
    number = values.pop("id", None)
    if values.keys() != _FIELDS[op]:
        raise Malformed(f"{op.value} has the fields {', '.join(sorted(_FIELDS[op]))}")
    gpu = _gpu(values["gpu"]) if "gpu" in values else ""
    limit_w = _watts(values["limit_w"]) if "limit_w" in values else 0.0
    return Request(op, gpu, limit_w, _id(number))


def accepted(request: Request, **figures: object) -> bytes:
    """Return the line that says it was done."""
    return _line({"ok": True, **_echo(request.id), **figures})


def declined(code: Code, why: str, number: int | None = None, **figures: object) -> bytes:
    """Return the line that says it was not done, and why."""
    return _line({"ok": False, **_echo(number), "error": code.value, "why": why, **figures})


def _line(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, allow_nan=False).encode("ascii") + b"\n"


def _echo(number: int | None) -> dict[str, int]:
    return {} if number is None else {"id": number}


def _gpu(value: object) -> str:
    if not isinstance(value, str) or not UUID.fullmatch(value):
        raise Malformed("gpu is not the UUID of a GPU")
    return value


def _watts(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_W:
        raise Malformed("limit_w is no power of a GPU")
    return float(value)


def _id(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_ID:
        raise Malformed("id is no whole number from 0 to 2^53")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands there twice")
    return values
