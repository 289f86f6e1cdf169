"""Figures of a running measurement for other programs: Prometheus, OpenTelemetry, JSON Lines, or a sink of one's own.

::

    with EnergyMeter() as meter:
        export(meter, [PrometheusEndpoint(9750)])
        ...

Nothing is sent anywhere unless it is asked for, and nothing here can delay what is measured or change its report.
"""

from energy_plugins.report.exporters.exporter import Exporter
from energy_plugins.report.exporters.feed import export, export_as_asked
from energy_plugins.report.exporters.figures import GpuFigures, RunFigures
from energy_plugins.report.exporters.json_lines import JsonLines
from energy_plugins.report.exporters.open_telemetry import OpenTelemetryMetrics
from energy_plugins.report.exporters.prometheus import PrometheusEndpoint

__all__ = [
    "Exporter",
    "GpuFigures",
    "JsonLines",
    "OpenTelemetryMetrics",
    "PrometheusEndpoint",
    "RunFigures",
    "export",
    "export_as_asked",
]
