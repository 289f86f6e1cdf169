"""What monitoring systems are told, and how it is called there: one list for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, TypeVar

from energy_plugins.report.exporters.figures import GpuFigures, RunFigures

_T = TypeVar("_T")

UNITS: Final = {"joules": "J", "watts": "W", "seconds": "s", "": "1"}
"""Units as Prometheus spells them (prometheus.io/docs/practices/naming) -> in UCUM, as OpenTelemetry does."""


@dataclass(frozen=True)
class Metric(Generic[_T]):
    """One figure of a GPU or of the run; ``read`` returns None where it is not known."""

    name: str
    """Dotted."""
    unit: str
    counts: bool
    """Whether it only rises, from zero at the start of each run."""
    help: str
    read: Callable[[_T], float | None]

    @property
    def prometheus_name(self) -> str:
        """``energy_plugins_gpu_energy_joules``; a counter gets ``_total`` appended."""
        return "_".join(filter(None, ("energy_plugins", *self.name.split("."), self.unit)))

    @property
    def dotted_name(self) -> str:
        """``energy_plugins.gpu.energy``, for OpenTelemetry."""
        return f"energy_plugins.{self.name}"


OF_GPUS: Final = (
    Metric[GpuFigures](
        "gpu.energy", "joules", True, "Energy the GPU drew since the run began.", lambda gpu: gpu.energy_j
    ),
    Metric[GpuFigures]("gpu.power", "watts", False, "Power the GPU draws.", lambda gpu: gpu.power_w),
    Metric[GpuFigures]("gpu.power_limit", "watts", False, "Power limit in force.", lambda gpu: gpu.limit_w),
)

OF_RUNS: Final = (
    Metric[RunFigures](
        "run.energy", "joules", True, "Energy its GPUs drew since the run began.", lambda run: run.energy_j
    ),
    Metric[RunFigures](
        "run.start_time", "seconds", False, "When the run began, Unix time.",
        lambda run: datetime.fromisoformat(run.started).timestamp(),
    ),
    Metric[RunFigures](
        "run.measured", "seconds", True, "How much of the run is known: these figures are a second or so late.",
        lambda run: run.measured_s,
    ),
    Metric[RunFigures]("steps", "", True, "Training steps.", lambda run: run.steps),
    Metric[RunFigures]("step.duration", "seconds", True, "Time that training steps took.", lambda run: run.step_s),
    Metric[RunFigures]("step.energy", "joules", True, "Energy drawn in training steps.", lambda run: run.step_j),
    Metric[RunFigures]("data_wait.energy", "joules", True, "Energy drawn awaiting data.", lambda run: run.data_wait_j),
    Metric[RunFigures]("stall.energy", "joules", True, "Energy drawn with no work queued.", lambda run: run.stall_j),
    Metric[RunFigures]("samples", "", True, "Samples trained on.", lambda run: run.samples),
    Metric[RunFigures]("tokens", "", True, "Tokens trained on.", lambda run: run.tokens),
)  # fmt: skip


class Snapshot:
    """The figures published last, as values of metrics.

    A counter never falls, or monitoring would take it for a new one and count all of it again: late figures are a
    preview, which may be corrected downwards by a little.
    """

    def __init__(self) -> None:
        self.figures: RunFigures | None = None
        self.of_runs: dict[str, float] = {}
        """By `Metric.name`; what is not known is left out."""
        self.of_gpus: dict[tuple[str, str], float] = {}
        """By `Metric.name` and UUID."""

    def take(self, figures: RunFigures) -> None:
        """Take newer figures."""
        of_runs = {one.name: _value(one, figures, self.of_runs.get(one.name)) for one in OF_RUNS}
        of_gpus = {
            (one.name, gpu.uuid): _value(one, gpu, self.of_gpus.get((one.name, gpu.uuid)))
            for one in OF_GPUS
            for gpu in figures.gpus
        }
        # A reader on another thread sees whole mappings, old or new.
        self.of_runs = {key: value for key, value in of_runs.items() if value is not None}
        self.of_gpus = {key: value for key, value in of_gpus.items() if value is not None}
        self.figures = figures


def _value(metric: Metric[_T], figures: _T, before: float | None) -> float | None:
    value = metric.read(figures)
    if not metric.counts or before is None:
        return value
    return before if value is None else max(value, before)
