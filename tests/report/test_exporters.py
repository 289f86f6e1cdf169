"""Figures for other programs: what they say, that no sink delays a run, and that none of them loses it a joule."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_plugins.config import ReportConfig
from energy_plugins.errors import ExportError
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.report.exporters import (
    GpuFigures,
    JsonLines,
    OpenTelemetryMetrics,
    PrometheusEndpoint,
    RunFigures,
    export,
    export_as_asked,
)
from energy_plugins.report.exporters.metrics import OF_GPUS, OF_RUNS, Snapshot
from energy_plugins.testing import Simulation

prometheus = pytest.importorskip("prometheus_client.parser", reason="needs the extra exporters")
otel = pytest.importorskip("opentelemetry.sdk.metrics.export", reason="needs the extra exporters")


def gpu(number: int = 0, energy_j: float | None = 5.0, **others: Any) -> GpuFigures:
    values = {"power_w": 300.0, "limit_w": 700.0, **others}
    return GpuFigures(
        uuid=f"GPU-{number}", index=number, name="H200 (SIMULATED)", driver="580.1", energy_j=energy_j, **values
    )


def figures(*gpus: GpuFigures, **others: Any) -> RunFigures:
    values: dict[str, Any] = {
        "run_id": "abc",
        "name": "run",
        "node": "here",
        "rank": 0,
        "world_size": 1,
        "simulated": True,
        "started": "2026-11-22T10:00:00+00:00",
        "measured_s": 10.0,
        "steps": 4,
        "step_s": 8.0,
        "step_j": 2400.0,
        "samples": 64,
        "tokens": None,
        "data_wait_j": 3.0,
        "stall_j": 2.0,
    }
    return RunFigures(gpus=gpus or (gpu(),), **{**values, **others})


def scraped(port: int, **headers: str) -> str:
    """Return what Prometheus would be told."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - ours
        return str(answer.read().decode())


def samples_in(text: str) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """Return the labels and values of each name, as Prometheus' own parser reads them."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in prometheus.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@contextmanager
def serving() -> Iterator[PrometheusEndpoint]:
    endpoint = PrometheusEndpoint(0)
    try:
        yield endpoint
    finally:
        endpoint.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class Sink:
    """A sink that does as it is told."""

    def __init__(self, misbehave: Any = lambda: None) -> None:
        self.misbehave = misbehave
        self.taken: list[RunFigures] = []
        self.closed = threading.Event()

    def publish(self, one: RunFigures) -> None:
        self.taken.append(one)
        self.misbehave()

    def close(self) -> None:
        self.closed.set()


def measured(sinks: list[Any], seconds: float = 0.6, period_s: float = 0.05) -> tuple[EnergyMeter, float]:
    """Measure steps beside sinks; return the meter and how long its end took."""
    meter = EnergyMeter().start()
    export(meter, sinks, period_s=period_s)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        with meter.step(samples=2):
            time.sleep(0.02)
    began_s = time.monotonic()
    meter.stop()
    return meter, time.monotonic() - began_s


class TestFeed:
    def test_a_sink_gets_the_newest_and_last_of_all_what_the_report_says(self, simulation: Simulation) -> None:
        sink = Sink()
        meter, _ = measured([sink], seconds=2.5)
        report = meter.report()
        assert sink.closed.is_set()
        assert [one.complete for one in sink.taken] == [False] * (len(sink.taken) - 1) + [True]
        during, last = sink.taken[-2], sink.taken[-1]
        assert 0 < (during.energy_j or 0) < (last.energy_j or 0)
        assert (last.energy_j, last.measured_s, last.steps) == (report.total_j, report.duration_s, report.work.steps)
        assert (last.run_id, last.samples, last.simulated) == (report.run_id, report.work.samples, True)
        assert during.gpus[0].power_w == pytest.approx(last.gpus[0].power_w, rel=0.1)

    def test_a_sink_that_hangs_delays_nothing_and_starves_no_other(self, simulation: Simulation) -> None:
        release = threading.Event()
        hangs, other = Sink(lambda: release.wait(30)), Sink()
        meter, stop_s = measured([hangs, other])
        release.set()
        assert stop_s < 2.5  # 0.3 s for the last samples, 1 s for the sink
        assert len(hangs.taken) == 1
        assert len(other.taken) > 3
        assert other.closed.is_set()
        assert meter.report().complete
        assert hangs.closed.wait(5)

    def test_a_sink_that_raises_is_warned_of_once_and_tried_again(self, simulation: Simulation) -> None:
        def fail() -> None:
            raise LookupError("no such place")

        broken, other = Sink(fail), Sink()
        with pytest.warns(RuntimeWarning, match="Sink does not take the figures: no such place") as said:
            meter, _ = measured([broken, other])
        assert len(said) == 1
        assert len(broken.taken) > 3
        assert broken.closed.is_set()
        assert other.taken[-1].energy_j == meter.report().total_j

    def test_nothing_can_be_fed_before_a_meter_runs(self) -> None:
        with pytest.raises(Exception, match="start the meter first"):
            export(EnergyMeter(), [Sink()])


class TestMetrics:
    @given(st.lists(st.none() | st.floats(0, 1e6), min_size=1))
    def test_a_counter_never_falls_and_is_never_taken_back(self, energies: list[float | None]) -> None:
        snapshot, before = Snapshot(), None
        for energy_j in energies:
            snapshot.take(figures(gpu(energy_j=energy_j)))
            now = snapshot.of_gpus.get(("gpu.energy", "GPU-0"))
            known = [one for one in (before, energy_j) if one is not None]
            assert now == (max(known) if known else None)
            before = now

    def test_what_is_not_known_is_left_out_rather_than_zero(self) -> None:
        snapshot = Snapshot()
        snapshot.take(figures(gpu(energy_j=None, power_w=None, limit_w=None)))
        assert snapshot.of_gpus == {}
        assert not {"run.energy", "tokens"} & snapshot.of_runs.keys()


class TestPrometheus:
    def test_names_units_and_labels_are_as_its_conventions_ask(self) -> None:
        with serving() as endpoint:
            endpoint.publish(figures(gpu(0, 5.0), gpu(3, 7.0, limit_w=None), name='a "b"\n\\c'))
            found = samples_in(scraped(endpoint.port))
        first, second = {"gpu": "0", "uuid": "GPU-0"}, {"gpu": "3", "uuid": "GPU-3"}
        assert found["energy_plugins_gpu_energy_joules_total"] == [(first, 5.0), (second, 7.0)]
        assert found["energy_plugins_gpu_power_watts"] == [(first, 300.0), (second, 300.0)]
        assert found["energy_plugins_gpu_power_limit_watts"] == [(first, 700.0)]
        assert found["energy_plugins_run_energy_joules_total"] == [({}, 12.0)]
        assert found["energy_plugins_run_start_time_seconds"] == [({}, 1795341600.0)]
        assert found["energy_plugins_samples_total"] == [({}, 64.0)]
        assert "energy_plugins_tokens_total" not in found
        ((about, _),) = found["energy_plugins_run_info"]
        assert (about["run"], about["run_id"], about["simulated"]) == ('a "b"\n\\c', "abc", "true")
        for name in found:
            assert name.endswith(("_total", "_watts", "_info", "_start_time_seconds"))

    def test_open_metrics_are_served_to_who_asks_for_them(self) -> None:
        with serving() as endpoint:
            endpoint.publish(figures())
            text = scraped(endpoint.port, Accept="application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        assert "energy_plugins_gpu_energy_joules_total" in text

    def test_before_the_first_figures_there_is_nothing_rather_than_zero(self) -> None:
        with serving() as endpoint:
            assert scraped(endpoint.port) == ""

    def test_this_machine_alone_may_ask_unless_told_otherwise(self) -> None:
        with serving() as endpoint:
            assert endpoint._server.server_address[0] == "127.0.0.1"
        everyone = PrometheusEndpoint(0, "0.0.0.0")  # noqa: S104 - what is asked for
        assert everyone._server.server_address[0] == "0.0.0.0"  # noqa: S104 - the same
        everyone.close()

    @pytest.mark.parametrize("address", ["192.0.2.1", "no such host", "a..b", "::1::"])
    def test_an_address_of_no_one_is_an_error_that_names_it(self, address: str) -> None:
        with pytest.raises(ExportError, match=f"of {address} cannot be served"):
            PrometheusEndpoint(0, address)

    def test_a_port_in_use_is_an_error_that_names_it_and_the_remedy(self) -> None:
        with serving() as endpoint, pytest.raises(ExportError, match=f"port {endpoint.port} .*prometheus_port"):
            PrometheusEndpoint(endpoint.port)

    def test_a_port_is_free_again_at_once_though_a_client_says_nothing(self) -> None:
        port = free_port()
        for _ in range(3):
            endpoint = PrometheusEndpoint(port)
            endpoint.publish(figures())
            with socket.create_connection(("127.0.0.1", port)) as silent:
                assert "energy_plugins_run_info" in scraped(port)
                began_s = time.monotonic()
                endpoint.close()
                assert time.monotonic() - began_s < 1
                silent.close()

    def test_a_call_that_cannot_be_taken_keeps_no_processor_busy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a process has all the files open that it may have, a call waits, and is taken later."""
        tries, accept = [], socket.socket.accept

        def counted(one: socket.socket) -> tuple[socket.socket, Any]:
            tries.append(one)
            return accept(one)

        monkeypatch.setattr(socket.socket, "accept", counted)
        with serving() as endpoint:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with socket.socket() as waiting:
                waiting.settimeout(10)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                try:
                    waiting.connect(("127.0.0.1", endpoint.port))
                    time.sleep(1)
                    assert 1 <= len(tries) <= 10
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                waiting.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert b"200 OK" in waiting.recv(1 << 16)

    def test_a_forked_child_does_not_keep_the_port(self) -> None:
        endpoint = PrometheusEndpoint(0)
        (awake, release), (told, tell) = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is the point
            child = os.fork()
        if child == 0:
            os.close(release)
            os.close(tell)
            os.read(awake, 1)
            os._exit(0)
        os.close(awake)
        os.close(tell)
        try:
            assert os.read(told, 1) == b""  # the child has begun, and closed its end
            os.close(told)
            assert scraped(endpoint.port) == ""
            endpoint.close()
            PrometheusEndpoint(endpoint.port).close()
        finally:
            os.close(release)
            os.waitpid(child, 0)

    def test_a_scrape_calls_no_driver(self, simulated: Any) -> None:
        """Of which each call would take virtual time, which otherwise stands still."""
        simulation = simulated(virtual=True, start_s=10)
        with EnergyMeter() as meter, serving() as endpoint:
            export(meter, [endpoint], period_s=0.01)
            simulation.advance(5)
            while "gpu_energy_joules_total{" not in scraped(endpoint.port):
                time.sleep(0.01)
            before_ns = simulation.clock.now_ns()
            for _ in range(20):
                scraped(endpoint.port)
            assert simulation.clock.now_ns() == before_ns
            visible_gpus()
            assert simulation.clock.now_ns() > before_ns


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def published(sink: JsonLines, one: RunFigures) -> bool:
    """Publish, and tell whether there was room."""
    try:
        sink.publish(one)
    except ExportError:
        return False
    return True


class TestJsonLines:
    def test_each_line_is_whole_and_says_what_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "figures.jsonl"
        for _ in range(2):
            sink = JsonLines(path)
            sink.publish(figures())
            sink.close()
        first, second = lines_of(path)
        assert first == second
        assert (first["schema"], first["version"], first["energy_j"]) == ("energy-plugins/figures", 1, 5.0)
        assert (first["tokens"], first["gpus"][0]["uuid"]) == (None, "GPU-0")

    def test_a_full_pipe_delays_nothing_tears_no_line_and_is_filled_again_later(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        sink = JsonLines(path)
        wide = figures(*(gpu(number) for number in range(64)))  # longer than a pipe takes at once
        began_s = time.monotonic()
        full = sum(not published(sink, wide) for _ in range(100))
        assert time.monotonic() - began_s < 5
        assert full > 50
        text = b""
        for _ in range(3):
            text += os.read(reader, 1 << 20)
            sink.publish(wide)
        text += os.read(reader, 1 << 20)
        sink.close()
        text += os.read(reader, 1 << 20)
        os.close(reader)
        assert text.endswith(b"\n")
        assert {len(json.loads(line)["gpus"]) for line in text.splitlines()} == {64}

    def test_a_reader_may_come_late_go_and_come_back(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        sink = JsonLines(path)
        with pytest.raises(ExportError, match="nobody reads"):
            sink.publish(figures())
        for _ in range(2):
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            sink.publish(figures())
            assert json.loads(os.read(reader, 1 << 16))["steps"] == 4
            os.close(reader)
            with pytest.raises(OSError, match="pipe"):
                sink.publish(figures())
        sink.close()

    def test_a_full_disk_is_an_error_each_time_and_no_more(self) -> None:
        sink = JsonLines("/dev/full")
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                sink.publish(figures())
        sink.close()

    def test_a_path_that_cannot_be_written_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "not" / "there"):
            with pytest.raises(ExportError, match=f"{path} cannot be written to .*report.json_lines"):
                JsonLines(path)


class TestOpenTelemetry:
    def test_metrics_have_names_units_and_attributes(self) -> None:
        sent: list[Any] = []

        class Keeping(otel.MetricExporter):  # type: ignore[misc, name-defined] # from importorskip
            def export(self, metrics_data: Any, timeout_millis: float = 10_000, **_: Any) -> Any:
                sent.append(metrics_data)
                return otel.MetricExportResult.SUCCESS

            def force_flush(self, timeout_millis: float = 10_000) -> bool:
                return True

            def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
                sent.append(None)

        sink = OpenTelemetryMetrics(Keeping(), interval_s=3600)
        sink.publish(figures(gpu(0, 5.0), gpu(1, 6.0)))
        sink.publish(figures(gpu(0, 7.0), gpu(1, 8.0)))  # not yet
        sink.publish(figures(gpu(0, 9.0), gpu(1, 10.0), complete=True))
        sink.close()
        first, last, closed = sent
        assert closed is None
        (resource,) = last.resource_metrics
        attributes = resource.resource.attributes
        assert (attributes["service.name"], attributes["energy_plugins.simulated"]) == ("energy-plugins", True)
        metrics = {one.name: one for one in resource.scope_metrics[0].metrics}
        known = {one.dotted_name for one in (*OF_GPUS, *OF_RUNS)} - {"energy_plugins.tokens"}
        assert metrics.keys() == known
        energy = metrics["energy_plugins.gpu.energy"]
        assert (energy.unit, energy.data.is_monotonic) == ("J", True)
        assert {point.attributes["hw.id"]: point.value for point in energy.data.data_points} == {
            "GPU-0": 9.0,
            "GPU-1": 10.0,
        }
        early = {one.name: one for one in first.resource_metrics[0].scope_metrics[0].metrics}
        assert early["energy_plugins.run.energy"].data.data_points[0].value == 11.0

    def test_a_collector_gets_them_by_otlp(self, monkeypatch: pytest.MonkeyPatch, simulation: Simulation) -> None:
        bodies: list[bytes] = []
        with collector(bodies) as port:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
            meter = EnergyMeter().start()
            export_as_asked(meter, ReportConfig(opentelemetry=True))
            meter.stop()
        assert any(b"energy_plugins.gpu.energy" in body for body in bodies)

    def test_a_socket_that_never_answers_delays_nothing(
        self, monkeypatch: pytest.MonkeyPatch, simulation: Simulation
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20")
            other = Sink()
            meter, stop_s = measured([OpenTelemetryMetrics(), other])
        assert stop_s < 2.5
        assert len(other.taken) > 3
        assert meter.report().complete

    def test_nobody_there_is_warned_of_once_and_nothing_is_logged(
        self,
        monkeypatch: pytest.MonkeyPatch,
        simulation: Simulation,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
        with pytest.warns(RuntimeWarning, match="no collector takes metrics at .*OTEL_EXPORTER_OTLP_ENDPOINT") as said:
            measured([OpenTelemetryMetrics(interval_s=0.05)])
        assert len(said) == 1
        assert "opentelemetry" not in caplog.text

    @pytest.mark.parametrize("text", ["soon", "0", "-5"])
    def test_an_interval_that_is_none_is_an_error(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", text)
        with pytest.raises(ExportError, match=f"OTEL_METRIC_EXPORT_INTERVAL is '{text}'"):
            OpenTelemetryMetrics()


@contextmanager
def collector(bodies: list[bytes]) -> Iterator[int]:
    """Give the port of a collector that takes whatever it is sent."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class TestAsked:
    def test_a_port_in_use_is_a_warning_and_nothing_is_lost(self, simulation: Simulation, tmp_path: Path) -> None:
        lines = tmp_path / "figures.jsonl"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with EnergyMeter() as meter:
                with pytest.warns(RuntimeWarning, match=f"port {port} of 127.0.0.1 .* in use.*set report.prometheus"):
                    export_as_asked(meter, ReportConfig(prometheus_port=port, json_lines=str(lines)))
                time.sleep(0.3)
        assert meter.report().complete
        assert lines_of(lines)[-1]["energy_j"] == meter.report().total_j

    def test_ranks_of_a_machine_have_ports_of_their_own(self, simulation: Simulation) -> None:
        port = next(port for port in iter(free_port, None) if is_free(port + 1))
        with EnergyMeter() as meter:
            export_as_asked(meter, ReportConfig(prometheus_port=port), local_rank=1)
            assert not is_free(port + 1)
            assert is_free(port)
            scraped(port + 1)

    @pytest.mark.parametrize(
        ("missing", "asked", "named"),
        [
            ("prometheus_client", {"prometheus_port": 9750}, "prometheus_client"),
            ("opentelemetry.sdk.metrics.export", {"opentelemetry": True}, "opentelemetry-sdk"),
            (
                "opentelemetry.exporter.otlp.proto.http.metric_exporter",
                {"opentelemetry": True},
                "opentelemetry-exporter-otlp-proto-http",
            ),
        ],
    )
    def test_a_package_that_is_missing_is_a_warning_that_names_it(
        self,
        simulation: Simulation,
        monkeypatch: pytest.MonkeyPatch,
        missing: str,
        asked: dict[str, Any],
        named: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, missing, None)
        with EnergyMeter() as meter, pytest.warns(RuntimeWarning, match=rf"need.* {named}: pip install"):
            export_as_asked(meter, ReportConfig(**asked))
        assert meter.report().complete
