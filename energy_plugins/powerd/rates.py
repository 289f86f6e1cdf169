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


class Buckets:
    """A bucket for each user; one that is full is as good as none, and forgotten."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: dict[int, Bucket] = {}

    def take(self, uid: int, now_s: float) -> float:
        """Take a token of a user's, as `Bucket.take`."""
        return self._buckets.setdefault(uid, Bucket(self._per_s, self._burst, now_s)).take(now_s)

    def tidy(self, now_s: float) -> None:
        """Forget whoever has asked for nothing lately."""
        for uid in [uid for uid, bucket in self._buckets.items() if bucket.full(now_s)]:
            del self._buckets[uid]
