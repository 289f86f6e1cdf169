"""The HTML page of a long run: how long writing it takes, in how much memory, its size, and how soon it answers.

The run is made up: a million steps of 250 ms, 69 hours with 12.5 million power samples a GPU. The page is written by a
process of its own, from the folder on disk, and opened by a browser without a window.

    python benchmarks/html_report.py [--steps 1000000] [--gpus 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _browser import browser, no_browser_because
from _common import Bar, Kind, finish, progress, say
from _made_report import Made, made_report

_ROUNDS = 5
_WRITE = """
import json, sys, time
from pathlib import Path
began_s = time.perf_counter()
from energy_plugins import Report
path = Report.load(sys.argv[1]).to_html(sys.argv[2])
# Not getrusage: that counts what the process which started this one had in memory.
status = Path("/proc/self/status").read_text()
print(json.dumps({
    "seconds": time.perf_counter() - began_s,
    "peak_mib": int(status.partition("VmHWM:")[2].split()[0]) / 1024,
    "size_mb": path.stat().st_size / 1e6,
}))
"""
# A key's answer is on the screen when the second frame after it begins.
_PRESS = """
() => new Promise((answered) => {
    const box = document.querySelector("#chart-power");
    box.focus();
    const began = performance.now();
    box.dispatchEvent(new KeyboardEvent("keydown", {key: "+", bubbles: true}));
    requestAnimationFrame(() => requestAnimationFrame(() => answered(performance.now() - began)));
})
"""


def main() -> int:
    """Make the run, write its page and open it, several times each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--gpus", type=int, default=1)
    arguments = parser.parse_args()
    if reason := no_browser_because():
        say(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as place:
        folder, page = Path(place) / "run", Path(place) / "run.html"
        say(f"making a run of {arguments.steps:,} steps on {arguments.gpus} GPUs")
        made_report(Made(steps=arguments.steps, step_s=0.25, gpus=arguments.gpus, ranks=8)).save(folder)
        size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        written = [_write(folder, page) for _ in progress("writing", _ROUNDS)]
        opened = [_open(page) for _ in progress("opening", _ROUNDS)]
    figures = {name: statistics.median(row[name] for row in written) for name in written[0]}
    figures |= {name: statistics.median(row[name] for row in opened) for name in opened[0]}
    worst = {name: max(row[name] for row in [*written, *opened] if name in row) for name in figures}
    name = "html_report" if arguments.steps >= 1_000_000 and arguments.gpus == 1 else "html_report_other"
    return finish(
        name,
        gpus=[f"SIMULATED, {arguments.gpus}"],
        figures={"steps": arguments.steps, "folder_mb": size_mb, "median": figures, "worst": worst},
        bars=[
            Bar("written in (s), worst", worst["seconds"], at_most=10.0, show=".2f"),
            Bar("peak memory (MiB), worst", worst["peak_mib"], at_most=1024.0, show=".0f"),
            Bar("size (MB)", worst["size_mb"], at_most=6.0, show=".2f"),
            Bar("drawn, and a key answered, after (s), worst", worst["interactive_s"], at_most=2.0, show=".2f"),
        ],
        raw={"written": _columns(written), "opened": _columns(opened)},
        kind=Kind.SIMULATED,
    )


def _write(folder: Path, page: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, str(folder), str(page)], stdout=subprocess.PIPE, text=True, check=True
    )
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def _open(page: Path) -> dict[str, float]:
    """Open the page in a browser that was just started; times are since navigation began."""
    with browser() as started:
        tab = started.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-drawn]", state="attached")
        ready_s = float(tab.evaluate("performance.getEntriesByName('drawn')[0].startTime")) / 1000
        key_s = float(tab.evaluate(_PRESS)) / 1000
        return {"ready_s": ready_s, "key_s": key_s, "interactive_s": ready_s + key_s}


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


if __name__ == "__main__":
    sys.exit(main())
