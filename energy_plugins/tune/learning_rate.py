"""How the learning rate goes with a larger effective batch: rules with a name and a source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from energy_plugins.errors import ConfigError

RuleName = Literal["linear", "sqrt", "none"]


@dataclass(frozen=True)
class LearningRateRule:
    """A rule: with k times the effective batch the learning rate is ``k ** exponent`` times as large."""

    name: RuleName
    exponent: float
    source: str
    advice: str
    """What goes with it."""

    def factor(self, growth: float) -> float:
        """Return by what to multiply the learning rate if the effective batch grows ``growth`` times."""
        return math.pow(growth, self.exponent)


RULES: dict[str, LearningRateRule] = {
    rule.name: rule
    for rule in (
        LearningRateRule(
            "linear",
            1.0,
            "Goyal et al. 2017, arXiv:1706.02677",
            "for SGD with momentum; warm up over the first epochs",
        ),
        LearningRateRule(
            "sqrt",
            0.5,
            "Krizhevsky 2014, arXiv:1404.5997; Malladi et al. 2022, arXiv:2205.10287",
            "for Adam and its kin; 1 - beta grows with the batch, too",
        ),
        LearningRateRule("none", 0.0, "no scaling", "the learning rate stays as it is"),
    )
}

_LIKE_SGD = ("sgd", "momentum", "nesterov")


def rule_of(name: str) -> LearningRateRule:
    """Return the rule of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in RULES:
        raise ConfigError(f"learning_rate_rule is {name!r}, but must be one of {', '.join(map(repr, RULES))}")
    return RULES[name]


def rule_to_try(optimizer: str | None) -> LearningRateRule:
    """Return the rule for an optimizer by the name of its class: linear for kinds of SGD, else the more careful one."""
    likes_linear = optimizer is not None and any(word in optimizer.lower() for word in _LIKE_SGD)
    return RULES["linear" if likes_linear else "sqrt"]
