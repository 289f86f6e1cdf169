"""Metrics for OpenTelemetry: read by its SDK from the figures published last, and sent where OTEL_* variables say."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from energy_plugins import __version__
from energy_plugins.errors import ExportError
from energy_plugins.report.exporters.figures import RunFigures
from energy_plugins.report.exporters.metrics import OF_GPUS, OF_RUNS, UNITS, Metric, Snapshot

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExporter
    from opentelemetry.sdk.resources import Resource

_INTERVAL_VARIABLE: Final = "OTEL_METRIC_EXPORT_INTERVAL"
_INTERVAL_MS: Final = 60_000.0
"""The specification's default (OpenTelemetry Environment Variable Specification, "Periodic exporting MetricReader")."""
_OTLP_LOGGER: Final = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
_INSTALL: Final = "pip install 'energy-plugins[exporters]'"


class OpenTelemetryMetrics:
    """Sends metrics by OTLP over HTTP, every OTEL_METRIC_EXPORT_INTERVAL milliseconds and at the end of a run.

    Where to is OTEL_EXPORTER_OTLP_ENDPOINT's business: a collector on this machine, if it is not set. It has a
    provider of its own: that of a program that uses OpenTelemetry itself is left alone. The SDK's periodic reader is
    not used, for it begins a thread in each forked child, and workers of a DataLoader would send the same metrics.

    Args:
        exporter: another way out than OTLP.
        interval_s: other than OTEL_METRIC_EXPORT_INTERVAL.

    Raises:
        ExportError: the SDK or the OTLP exporter is not installed, or a variable of theirs is no sense to them.
    """

    def __init__(self, exporter: MetricExporter | None = None, *, interval_s: float | None = None) -> None:
        try:
            import opentelemetry.sdk.metrics.export  # noqa: F401, PLC0415 - an extra
        except ImportError as error:
            raise ExportError(f"figures for OpenTelemetry need opentelemetry-sdk: {_INSTALL}") from error
        self._exporter = _otlp() if exporter is None else exporter
        self._interval_s = _interval_s() if interval_s is None else interval_s
        self._snapshot = Snapshot()
        self._begun: tuple[MeterProvider, InMemoryMetricReader] | None = None
        self._sent_s: float | None = None

    def publish(self, figures: RunFigures) -> None:
        """Send these if it is time to, or if they are the last. Raises ExportError if they could not be sent."""
        self._snapshot.take(figures)
        now_s = time.monotonic()
        if self._sent_s is None or figures.complete or now_s - self._sent_s >= self._interval_s:
            self._sent_s = now_s
            self._send(figures)

    def close(self) -> None:
        """Close the way out."""
        if self._begun is not None:
            self._begun[0].shutdown()
        self._exporter.shutdown()

    def _send(self, figures: RunFigures) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult  # noqa: PLC0415 - an extra

        if self._begun is None:
            self._begun = self._begin(figures)
        with _quiet():
            data = self._begun[1].get_metrics_data()
            sent = data is None or self._exporter.export(data) is MetricExportResult.SUCCESS
        if not sent:
            endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
            raise ExportError(
                f"no collector takes metrics at {endpoint}; start one there, or say where it is by "
                "OTEL_EXPORTER_OTLP_ENDPOINT"
            )

    def _begin(self, figures: RunFigures) -> tuple[MeterProvider, InMemoryMetricReader]:
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count over these.
        about = Resource(
            {
                "service.name": "energy-plugins",
                "service.instance.id": figures.run_id,
                "host.name": figures.node,
                "energy_plugins.run": figures.name,
                "energy_plugins.rank": figures.rank,
                "energy_plugins.simulated": figures.simulated,
            }
        ).merge(_named())
        reader = InMemoryMetricReader(
            preferred_temporality=self._exporter._preferred_temporality,  # noqa: SLF001 - as the SDK's own reader does
            preferred_aggregation=self._exporter._preferred_aggregation,  # noqa: SLF001 - the same
        )
        provider = MeterProvider([reader], about, shutdown_on_exit=False)
        meter = provider.get_meter("energy_plugins", __version__)
        for of_gpu in OF_GPUS:
            _observe(meter, of_gpu, self._of_gpus(of_gpu.name))
        for of_run in OF_RUNS:
            _observe(meter, of_run, self._of_run(of_run.name))
        return provider, reader

    def _of_gpus(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation  # noqa: PLC0415 - an extra

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            figures, values = self._snapshot.figures, self._snapshot.of_gpus
            for gpu in figures.gpus if figures is not None else ():
                if (value := values.get((name, gpu.uuid))) is not None:
                    yield Observation(value, {"hw.id": gpu.uuid, "hw.name": gpu.name, "gpu": gpu.index})

        return observe

    def _of_run(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation  # noqa: PLC0415 - an extra

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            if (value := self._snapshot.of_runs.get(name)) is not None:
                yield Observation(value)

        return observe


def _observe(
    meter: Meter,
    metric: Metric[Any],
    callback: Callable[[CallbackOptions], Iterable[Observation]],
) -> None:
    make = meter.create_observable_counter if metric.counts else meter.create_observable_gauge
    make(metric.dotted_name, [callback], UNITS[metric.unit], metric.help)


def _otlp() -> MetricExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 - an extra
            OTLPMetricExporter,
        )
    except ImportError as error:
        raise ExportError(
            f"sending figures to a collector needs opentelemetry-exporter-otlp-proto-http: {_INSTALL}"
        ) from error
    try:
        return OTLPMetricExporter()
    except (ValueError, OSError) as error:
        raise ExportError(f"a variable OTEL_EXPORTER_OTLP_* makes no sense: {error}") from error


def _named() -> Resource:
    """Return what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of this process."""
    from opentelemetry.sdk.resources import OTELResourceDetector  # noqa: PLC0415 - an extra

    return OTELResourceDetector().detect()


def _interval_s() -> float:
    text = os.environ.get(_INTERVAL_VARIABLE) or str(_INTERVAL_MS)
    try:
        interval_s = float(text) * 1e-3
    except ValueError as error:
        raise ExportError(f"{_INTERVAL_VARIABLE} is {text!r}; expected milliseconds") from error
    if not interval_s > 0:
        raise ExportError(f"{_INTERVAL_VARIABLE} is {text!r}; expected more than 0 milliseconds")
    return interval_s


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the OTLP exporter logs of each try of this thread's out of the training's output: we say it once."""
    logger, thread = logging.getLogger(_OTLP_LOGGER), threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)
