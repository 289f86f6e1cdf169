"""How a training goes, by the keys under which every framework logs it."""

from __future__ import annotations

import math

from energy_plugins.measure.progress import Progress

TOTALS = ("energy/total_j", "energy/avg_power_w")
"""Of the whole training, so worth saying once more at its end."""


def figures(progress: Progress | None, earlier_j: float = 0.0) -> dict[str, float]:
    """Return ``progress`` by key, with what earlier runs of the training drew; what is not known is left out."""
    if progress is None:
        return {}
    known: dict[str, float | None] = {
        "energy/total_j": progress.total_j + earlier_j,
        "energy/avg_power_w": progress.avg_power_w,
    }
    for index, uuid in enumerate(progress.gpu_j):
        known[f"energy/gpu{index}/total_j"] = progress.gpu_j[uuid]
        known[f"energy/gpu{index}/power_w"] = progress.gpu_power_w.get(uuid)
    if progress.steps:
        known |= {
            "energy/step_j": progress.step_j,
            "energy/data_wait_j": progress.data_wait_j,
            "energy/stall_j": progress.stall_j,
            "energy/samples_per_j": progress.samples_per_j,
            "energy/tokens_per_j": progress.tokens_per_j,
        }
    return {key: value for key, value in known.items() if value is not None and math.isfinite(value)}
