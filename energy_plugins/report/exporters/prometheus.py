"""An endpoint for Prometheus: a scrape renders the figures that were published last, and asks no driver."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Final

from energy_plugins import __version__
from energy_plugins.errors import ExportError
from energy_plugins.report.exporters.figures import RunFigures
from energy_plugins.report.exporters.forked import keep_from_children
from energy_plugins.report.exporters.metrics import OF_GPUS, OF_RUNS, Snapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

LOCAL: Final = "127.0.0.1"
_PATIENCE_S: Final = 5.0
"""How long a client that has connected may say nothing."""
_BREATH_S: Final = 0.2
"""Between tries to take a call that cannot be taken."""
_CLOSING_S: Final = 0.7
"""How long a call that is just being taken may hold up the end."""


class PrometheusEndpoint:
    """Serves ``http://ADDRESS:PORT/metrics`` until it is closed; every path is as good.

    Args:
        port: to listen at, 0 for any that is free.
        address: who may ask: this machine only, unless another of its addresses is given ("0.0.0.0" for all).

    Raises:
        ExportError: the port is in use, the address is none of this machine, or prometheus_client is not installed.
    """

    def __init__(self, port: int, address: str = LOCAL) -> None:
        try:
            from prometheus_client import CollectorRegistry, MetricsHandler  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ExportError(
                "figures for Prometheus need prometheus_client: pip install 'energy-plugins[exporters]'"
            ) from error
        self._snapshot = Snapshot()
        registry = CollectorRegistry()
        registry.register(_Rendering(self._snapshot))
        handler = type("_Handler", (MetricsHandler,), {"registry": registry, "timeout": _PATIENCE_S})
        try:
            self._server = _Server((address, port), handler)
        except (OSError, OverflowError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ExportError(
                f"port {port} of {address} cannot be served for Prometheus ({reason}): another process, or another "
                f"training, may have it; set report.prometheus_port (--prometheus-port) to one that is free"
            ) from error
        self._wake, self._woken = socket.socketpair()
        keep_from_children(self)
        self._thread = threading.Thread(target=self._serve, name="energy-prometheus", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self._server.server_address[1])

    def publish(self, figures: RunFigures) -> None:
        """Show these from the next scrape on."""
        self._snapshot.take(figures)

    def close(self) -> None:
        """Free the port."""
        with suppress(OSError):
            self._wake.send(b"x")
        self._thread.join(_CLOSING_S)

    def let_go(self) -> None:
        """Leave the port to the parent."""
        for one in (self._server.socket, self._wake, self._woken):
            with suppress(OSError):
                os.close(one.detach())

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._server.socket, self._woken], [], [])
            if self._woken in ready:
                break
            self._server.handle_request()
        for one in (self._server.socket, self._wake, self._woken):
            one.close()


class _Server(ThreadingMixIn, TCPServer):
    """Not http.server's, which asks the name server what this machine is called."""

    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = False  # or two trainings would share a port, and each scrape get either's figures
    timeout = 0.5  # of a client that has gone between its call and our answer

    def __init__(self, address: tuple[str, int], handler: type[BaseRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, object]:
        """Take a call; where no more files can be opened it stays there, and must not keep a processor busy."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_BREATH_S)
            raise

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that goes away while it is answered is no matter of ours."""


class _Rendering:
    """What prometheus_client asks for the metrics at each scrape."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Family]:
        from prometheus_client.core import (  # noqa: PLC0415 - an extra
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        snapshot = self._snapshot
        figures, of_runs, of_gpus = snapshot.figures, snapshot.of_runs, snapshot.of_gpus
        if figures is None:
            return
        run = InfoMetricFamily("energy_plugins_run", "The run that this process measures.")
        run.add_metric([], _about(figures))
        yield run
        gpus = InfoMetricFamily("energy_plugins_gpu", "The GPUs that it measures.", labels=["gpu", "uuid"])
        for gpu in figures.gpus:
            gpus.add_metric([str(gpu.index), gpu.uuid], {"name": gpu.name, "driver": gpu.driver})
        yield gpus
        for metric in OF_GPUS:
            make = CounterMetricFamily if metric.counts else GaugeMetricFamily
            family = make(metric.prometheus_name, metric.help, labels=["gpu", "uuid"])
            for gpu in figures.gpus:
                if (value := of_gpus.get((metric.name, gpu.uuid))) is not None:
                    family.add_metric([str(gpu.index), gpu.uuid], value)
            yield family
        for of_run in OF_RUNS:
            make = CounterMetricFamily if of_run.counts else GaugeMetricFamily
            family = make(of_run.prometheus_name, of_run.help)
            if (value := of_runs.get(of_run.name)) is not None:
                family.add_metric([], value)
            yield family


def _about(figures: RunFigures) -> dict[str, str]:
    return {
        "run_id": figures.run_id,
        "run": figures.name,
        "node": figures.node,
        "rank": str(figures.rank),
        "world_size": str(figures.world_size),
        "simulated": str(figures.simulated).lower(),
        "version": __version__,
    }
