"""The figures of a training on their way to other programs, if the configuration asks for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energy_plugins.config import ReportConfig
    from energy_plugins.measure.meter import EnergyMeter
    from energy_plugins.measure.rank_part import Rank


def export_if_asked(meter: EnergyMeter, report: ReportConfig, who: Rank | None) -> None:
    """Feed what ``report`` asks for until ``meter``, which runs, is stopped; ``who`` is None of a process alone."""
    if report.prometheus_port is None and report.json_lines is None and not report.opentelemetry:
        return
    from energy_plugins.report.exporters import export_as_asked  # noqa: PLC0415 - few trainings ask for it

    export_as_asked(meter, report, 0 if who is None else who.local_rank)
