"""What importing a framework's plugin costs beyond the framework itself, which a script imports anyway.

Each round is an interpreter of its own that has imported the framework as scripts do; our modules are compiled.

    python benchmarks/import_cost.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import numpy as np
from _common import Bar, bootstrap, finish, progress

_PLUGINS = {
    "energy_plugins.transformers": "from transformers import Trainer, TrainingArguments",
    "energy_plugins.lightning": "from lightning.pytorch import Trainer",
}
_AT_MOST_MS = {"energy_plugins.transformers": 30.0}

_PROBE = """
import gc, json, time
{framework}
gc.collect()  # or the framework's garbage is ours to collect
began = time.perf_counter()
import {plugin}
print(json.dumps((time.perf_counter() - began) * 1e3))
"""


def took_ms(plugin: str) -> float:
    """Return how long one import took."""
    code = _PROBE.format(framework=_PLUGINS[plugin], plugin=plugin)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(ended.stdout.splitlines()[-1]))


def main() -> int:
    """Import, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for plugin in _PLUGINS:
        took_ms(plugin)  # compiles
    seen: dict[str, list[float]] = {plugin: [] for plugin in _PLUGINS}
    for _ in progress("rounds", rounds):
        for plugin, took in seen.items():
            took.append(took_ms(plugin))
    figures = {
        plugin: {
            "median_ms": statistics.median(took),
            "interval_95": bootstrap([np.array([one]) for one in took], lambda kept: float(np.median(kept))),
        }
        for plugin, took in seen.items()
    }
    bars = [
        Bar(f"import of {plugin} beyond its framework, median, ms", statistics.median(seen[plugin]), at_most=most_ms,
            show=".1f")
        for plugin, most_ms in _AT_MOST_MS.items()
    ]  # fmt: skip
    raw = {"imports_ms": {plugin: np.array(took) for plugin, took in seen.items()}}
    return finish("import_cost", gpus=[], figures={"imports": figures}, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
