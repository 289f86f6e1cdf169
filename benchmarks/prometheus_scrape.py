"""What a scrape by Prometheus takes while a run on eight GPUs goes, and whether it asks the driver anything.

A scrape is a whole HTTP request from this machine, connecting and reading included, as Prometheus makes it. Beside it,
what handing over the figures takes, which is done once a second. The GPUs are simulated; a scrape never gets to them.

    python benchmarks/prometheus_scrape.py [--scrapes 500]
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import sys
import time

import numpy as np
from _common import Bar, finish, gpu_names, progress

from energy_plugins import EnergyMeter
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.report.exporters import PrometheusEndpoint, export
from energy_plugins.report.exporters.figures import figures_of
from energy_plugins.testing import simulated_gpus

_GPUS = 8
_PUBLISHED = 200
_HEADERS = {"Accept": "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "Accept-Encoding": "gzip"}
"""As Prometheus asks."""


def scrape(port: int) -> tuple[float, str]:
    """Scrape once; return the milliseconds that it took, and the text."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics", headers=_HEADERS)
    body = connection.getresponse().read()
    connection.close()
    return (time.perf_counter() - began) * 1e3, gzip.decompress(body).decode()


def main() -> int:
    """Scrape, write the result, print the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrapes", type=int, default=500)
    count = parser.parse_args().scrapes
    # Virtual time stands still but for what driver calls cost, so that one made in a scrape would be seen.
    with simulated_gpus(count=_GPUS, virtual=True, start_s=10) as simulation, EnergyMeter("scraped") as meter:
        gpus, clock = gpu_names(), current_drivers().clock
        endpoint = PrometheusEndpoint(0)
        export(meter, [endpoint], period_s=0.1)
        for _ in range(50):
            with meter.step(samples=32):
                simulation.advance(0.1)
        while f'energy_joules_total{{gpu="{_GPUS - 1}"' not in scrape(endpoint.port)[1]:
            time.sleep(0.05)
        before_ns = clock.now_ns()
        took_ms, cpu_ms = [], []
        for _ in progress("scrapes", count):
            cpu_began = time.process_time()
            took_ms.append(scrape(endpoint.port)[0])
            cpu_ms.append((time.process_time() - cpu_began) * 1e3)
        driver_ns = clock.now_ns() - before_ns
        published_ms = []
        assert meter.run is not None
        for _ in range(_PUBLISHED):
            began = time.perf_counter()
            endpoint.publish(figures_of(meter.run))
            published_ms.append((time.perf_counter() - began) * 1e3)
        lines = len(scrape(endpoint.port)[1].splitlines())
    median_ms, p95_ms = np.percentile(took_ms, (50, 95)).tolist()
    figures = {
        "scrape": {
            "gpus": _GPUS,
            "lines": lines,
            "median_ms": median_ms,
            "p95_ms": p95_ms,
            "cpu_of_both_ends_median_ms": float(np.median(cpu_ms)),
            "driver_s": driver_ns * 1e-9,
        },
        "publish": {"median_ms": float(np.median(published_ms))},
    }
    bars = [
        Bar("a scrape of 8 GPUs, median, ms", median_ms, at_most=2.0, show=".2f"),
        Bar("time that driver calls took in all scrapes, s", driver_ns * 1e-9, at_most=0.0, show=".3f"),
    ]
    raw = {"scrapes": {"took_ms": took_ms, "cpu_ms": cpu_ms}, "publish": {"took_ms": published_ms}}
    return finish("prometheus_scrape", gpus=gpus, figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
