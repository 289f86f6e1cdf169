"""How often something may happen."""

from __future__ import annotations


class Bucket:
    """Tokens that come back at a steady rate; as many as it holds may be taken at once."""

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._filled_s = now_s

    def take(self, now_s: float) -> float:
        """Take a token if there is one and return 0; else return how many seconds it is until there is."""
        self._tokens = min(self._tokens + (now_s - self._filled_s) * self._per_s, self._burst)
        self._filled_s = now_s
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._per_s
        self._tokens -= 1.0
        return 0.0

    def full(self, now_s: float) -> bool:
        """Whether it holds all it can: it may be forgotten."""
        return self._tokens + (now_s - self._filled_s) * self._per_s >= self._burst
