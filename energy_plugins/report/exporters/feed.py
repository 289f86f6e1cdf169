"""Feeds exporters with the figures of a run, each on a thread of its own, and keeps what they do from the training."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from energy_plugins.errors import EnergyError, ExportError
from energy_plugins.report.exporters.exporter import Exporter
from energy_plugins.report.exporters.figures import figures_of, last_figures_of
from energy_plugins.report.exporters.json_lines import JsonLines
from energy_plugins.report.exporters.open_telemetry import OpenTelemetryMetrics
from energy_plugins.report.exporters.prometheus import PrometheusEndpoint

if TYPE_CHECKING:
    from energy_plugins.config.schema import ReportConfig
    from energy_plugins.measure.meter import EnergyMeter
    from energy_plugins.measure.report import Report
    from energy_plugins.measure.run import Run

_PERIOD_S: Final = 1.0
_CLOSING_S: Final = 1.0
"""How long the end of a run waits for exporters to take its last figures."""


def export(meter: EnergyMeter, exporters: Sequence[Exporter], *, period_s: float = _PERIOD_S) -> None:
    """Feed ``exporters`` with the figures of ``meter``, which runs, until it is stopped; then close them.

    There is no queue: each takes what the collector has published last, so who is slow skips what came meanwhile. At
    the end each takes the last figures and closes; who takes longer than a second is left to itself.
    """
    run = meter.run
    if run is None:
        raise EnergyError("there is nothing to export: start the meter first")
    run.live()  # figures are made from now on
    feeds = [_Feed(one, meter, run, period_s) for one in exporters]
    for feed in feeds:
        feed.start()

    def close(report: Report | None) -> None:
        until_s = time.monotonic() + _CLOSING_S
        for feed in feeds:
            feed.finish(report)
        for feed in feeds:
            feed.join(max(until_s - time.monotonic(), 0.0))

    meter.after_stop(close)


class _Feed(threading.Thread):
    def __init__(self, exporter: Exporter, meter: EnergyMeter, run: Run, period_s: float) -> None:
        super().__init__(name=f"energy-export-{type(exporter).__name__}", daemon=True)
        self._exporter = exporter
        self._meter = meter
        self._run = run
        self._period_s = period_s
        self._finishing = threading.Event()
        self._report: Report | None = None
        self._warned = False

    def finish(self, report: Report | None) -> None:
        """Have the thread publish the last figures, and end."""
        self._report = report
        self._finishing.set()

    def run(self) -> None:
        while not self._finishing.wait(self._period_s):
            if self._meter.run is self._run:  # or it is ending, and its last figures are being made
                self._publish()
        self._publish()
        with self._kept_from_training():
            self._exporter.close()

    def _publish(self) -> None:
        with self._kept_from_training():
            report = self._report
            self._exporter.publish(figures_of(self._run) if report is None else last_figures_of(self._run, report))

    @contextmanager
    def _kept_from_training(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - an exporter may be anybody's
            if not self._warned:
                self._warned = True
                what = f"{type(self._exporter).__name__} does not take the figures"
                _warn(f"{what}: {str(error) or type(error).__name__}; it is tried again, and said only once")


def export_as_asked(meter: EnergyMeter, report: ReportConfig, local_rank: int = 0) -> None:
    """Feed what the configuration asks for with the figures of ``meter``; what cannot be opened is a warning.

    Of several processes on a machine, each serves Prometheus at a port of its own: the one asked for and its
    ``local_rank`` more.
    """
    exporters: list[Exporter] = []
    for opened in _asked(report, local_rank):
        try:
            exporters.append(opened())
        except ExportError as error:
            _warn(f"figures are not exported: {error}. Measuring goes on, and its report lacks nothing")
    if exporters:
        try:
            export(meter, exporters)
        except RuntimeError as error:  # no more threads
            _warn(f"figures are not exported: {error}")


def _asked(report: ReportConfig, local_rank: int) -> Iterator[Callable[[], Exporter]]:
    port, path = report.prometheus_port, report.json_lines
    if port is not None:
        yield lambda: PrometheusEndpoint(port + local_rank, report.prometheus_address)
    if path is not None:
        yield lambda: JsonLines(path)
    if report.opentelemetry:
        yield OpenTelemetryMetrics


def _warn(text: str) -> None:
    with suppress(RuntimeWarning):  # where warnings are errors, this one must still not end the training
        warnings.warn(f"energy: {text}", RuntimeWarning, stacklevel=4)
