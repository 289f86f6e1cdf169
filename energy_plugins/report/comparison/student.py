"""Student's t distribution, for intervals from a handful of runs."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_HALVINGS = 100


@lru_cache
def t_quantile(confidence: float, degrees: float) -> float:
    """Return the half width, in standard errors, of a two-sided interval that holds with ``confidence``.

    ``degrees`` of freedom need not be whole. With ``t = sqrt(degrees) tan(a)`` the density becomes
    ``cos(a)**(degrees - 1)``, which is smooth: it is integrated by Gauss and Legendre's rule and inverted by halving.

    Raises:
        ValueError: if the confidence is not between 0 and 1, or the degrees of freedom are not above 0.
    """
    if not (0.0 < confidence < 1.0 and degrees > 0.0):
        raise ValueError(f"no t quantile for confidence {confidence} and {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _inside(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _inside(angle: float, degrees: float) -> float:
    """Return the probability of an angle between ``-angle`` and ``angle``."""
    at = angle / 2 * (_NODES + 1)
    area = angle / 2 * float(_WEIGHTS @ np.exp((degrees - 1) * np.log(np.cos(at))))
    log_whole = 0.5 * math.log(math.pi) + math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2) - math.log(2)
    return area / math.exp(log_whole)
