"""How a running measurement goes, as logs show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from energy_plugins.measure.forecast import Spent
from energy_plugins.measure.live import Live


@dataclass(frozen=True)
class Progress:
    """A running measurement: totals so far, and means over the steps resolved since the last look; a second or so late.

    Energies in joules, powers in watts; None where nothing is known yet.
    """

    total_j: float
    avg_power_w: float | None
    steps: int
    step_j: float | None
    samples_per_j: float | None
    tokens_per_j: float | None
    data_wait_j: float | None
    stall_j: float | None
    gpu_j: Mapping[str, float]
    gpu_power_w: Mapping[str, float]
    spent: Spent
    """What was spent until the end of the last step that is resolved."""

    @classmethod
    def between(cls, now: Live, before: Live | None, uuids: tuple[str, ...], start_ns: int) -> Self | None:
        """Return what is known at ``now``, with means since ``before``; None before any time has passed."""
        elapsed_s = (now.t_ns - start_ns) * 1e-9
        if elapsed_s <= 0:
            return None
        before = before or Live(start_ns, (), ())
        steps, joules = now.steps - before.steps, now.step_j - before.step_j
        samples, tokens = now.samples - before.samples, now.tokens - before.tokens
        total_j = sum(now.gpu_j)
        return cls(
            total_j=total_j,
            avg_power_w=total_j / elapsed_s,
            steps=steps,
            step_j=joules / steps if steps else None,
            samples_per_j=samples / joules if samples and joules > 0 else None,
            tokens_per_j=tokens / joules if tokens and joules > 0 else None,
            data_wait_j=(now.data_wait_j - before.data_wait_j) / steps if steps else None,
            stall_j=(now.stall_j - before.stall_j) / steps if steps else None,
            gpu_j=dict(zip(uuids, now.gpu_j, strict=True)),
            gpu_power_w=dict(zip(uuids, now.gpu_power_w, strict=True)),
            spent=Spent(
                t_s=(now.stepped_ns - start_ns) * 1e-9 if now.steps else 0.0,
                energy_j=now.stepped_j,
                steps=now.steps,
                step_s=now.step_s,
                step_j=now.step_j,
            ),
        )
