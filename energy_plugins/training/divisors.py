"""The ways to cut an effective batch into equal parts."""

from __future__ import annotations

from energy_plugins.errors import BatchError


def divisors(effective_batch: int, most: int | None = None) -> tuple[int, ...]:
    """Return the micro-batches that an effective batch can be cut into, of at most ``most`` samples each, in order.

    Raises:
        BatchError: the effective batch is no positive number of samples, or no micro-batch is as small as that.
    """
    if isinstance(effective_batch, bool) or effective_batch < 1:
        raise BatchError(f"an effective batch of {effective_batch!r} cannot be cut: give 1 sample or more")
    sizes = [size for size in range(1, effective_batch + 1) if effective_batch % size == 0]
    fitting = tuple(size for size in sizes if most is None or size <= most)
    if not fitting:
        raise BatchError(f"no micro-batch of {effective_batch} samples fits: not even {sizes[0]} (most={most})")
    return fitting
