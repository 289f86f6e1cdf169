"""Parts of a search space of Ray Tune's, for spaces that are made where Ray need not be installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import tune


def choice(values: Sequence[int]) -> object:
    """Return the domain of these values."""
    return tune.choice(list(values))


def quotient(whole: int, key: str) -> object:
    """Return the domain whose only value is ``whole`` divided by what was drawn for ``key``."""

    def divided(config: dict[str, Any]) -> int:
        return whole // int(config[key])

    return tune.sample_from(divided)
