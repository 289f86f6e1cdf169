"""How long `energy-plugins doctor` takes, and a meter from its import to its first sample.

Both in processes of their own, as users have them: doctor with the interpreter's start, the meter in an interpreter
that has numpy already; and with our modules compiled, as pip leaves them. Beside them, what the driver takes that both
ask. On the visible GPUs; without any on eight simulated ones, whose driver answers sooner than a real one and takes
less, so that the figures are then those of our own code.

    python benchmarks/cli_start.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from _common import Bar, finish, gpu_names, progress

from energy_plugins.errors import DeviceError
from energy_plugins.testing import simulated_gpus

_ROUNDS = 21
_SIMULATED_GPUS = 8
_DOCTOR = [sys.executable, "-m", "energy_plugins", "doctor", "--json"]

# The first sample is no event for users, so this looks where the collector keeps it.
_FIRST_SAMPLE = """
import json, time
import numpy

def rss_mib():
    status = open("/proc/self/status").read()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

before_mib, began_s = rss_mib(), time.perf_counter()
import energy_plugins
meter = energy_plugins.EnergyMeter()
imported_s = time.perf_counter()
meter.start()
started_s = time.perf_counter()
tracks = meter.run._collector.tracks
while not all(track.builder.last_w > 0 for track in tracks):
    time.sleep(0.0002)
first_s = time.perf_counter()
print(json.dumps({
    "import_ms": (imported_s - began_s) * 1e3,
    "start_ms": (started_s - imported_s) * 1e3,
    "first_sample_ms": (first_s - began_s) * 1e3,
    "rss_mib": rss_mib() - before_mib,
}))
meter.stop()
"""

# What any program pays that asks the driver: its library, started, and its Python binding.
_DRIVER_ALONE = """
import ctypes, json, os
import numpy

def rss_mib():
    status = open("/proc/self/status").read()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

before_mib = rss_mib()
import pynvml
assert ctypes.CDLL(os.environ.get("ENERGY_NVML_LIBRARY", "libnvidia-ml.so.1")).nvmlInit_v2() == 0
print(json.dumps({"rss_mib": rss_mib() - before_mib}))
"""


@contextmanager
def some_gpus() -> Iterator[list[str]]:
    """Give the names of the real GPUs, or else of simulated ones."""
    try:
        real = gpu_names()
    except DeviceError:
        real = []
    if real:
        yield real
        return
    with simulated_gpus(count=_SIMULATED_GPUS):
        yield gpu_names()


@contextmanager
def compiled_modules() -> Iterator[None]:
    """Let the processes started inside the block keep what they compile, in a folder of its own."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def doctor() -> dict[str, float]:
    """Call doctor once; return its seconds and its exit code."""
    began_s = time.perf_counter()
    done = subprocess.run(_DOCTOR, capture_output=True, check=False)
    return {"seconds": time.perf_counter() - began_s, "exit_code": done.returncode}


def in_a_fresh_interpreter(program: str) -> dict[str, float]:
    """Run a program once; return its figures, in milliseconds and MiB."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Turn rows into columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def main() -> int:
    """Measure in turns, write the result, print the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds")
    rounds = _ROUNDS // 4 if parser.parse_args().quick else _ROUNDS
    with some_gpus() as gpus, compiled_modules():
        doctor(), in_a_fresh_interpreter(_FIRST_SAMPLE)  # compiles; files into memory
        turns = [
            (doctor(), in_a_fresh_interpreter(_FIRST_SAMPLE), in_a_fresh_interpreter(_DRIVER_ALONE))
            for _ in progress("rounds", rounds)
        ]
    names = ("doctor", "meter", "driver_alone")
    measured = {name: columns([turn[place] for turn in turns]) for place, name in enumerate(names)}
    assert set(measured["doctor"]["exit_code"]) == {0}
    medians = {
        name: {key: statistics.median(values) for key, values in table.items()} for name, table in measured.items()
    }
    bars = [
        Bar("energy-plugins doctor, s", medians["doctor"]["seconds"], at_most=1.0, show=".2f"),
        Bar(
            "import energy_plugins, start a meter, to the first sample, ms",
            medians["meter"]["first_sample_ms"],
            at_most=150,
            show=".0f",
        ),
        Bar("memory of it beyond an interpreter with numpy, MiB", medians["meter"]["rss_mib"], at_most=25, show=".1f"),
    ]
    name = "cli_start" if any("SIMULATED" in gpu for gpu in gpus) else "h200_cli_start"
    return finish(name, gpus=gpus, figures={"medians": medians}, bars=bars, raw=measured)


if __name__ == "__main__":
    sys.exit(main())
