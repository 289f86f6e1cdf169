"""Figures quoted in the documents are those of the committed results.

A quoted figure is followed by a comment ``<!-- results/FILE.json KEY.PATH FORMAT -->``. KEY.PATH may also name a figure
that is worked out here from the result. A placeholder may stand for a figure while a document is written; it fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
LINKING = (*DOCUMENTS, "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
PLACEHOLDER = "<<?>>"

QUOTE = re.compile(r"(<<\?>>|[-+]?[\d.]+%?) <!-- results/(\w+\.json) (.+?) (\S+) -->")
MARKED = re.compile(r"<!-- results/")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
NAMED_FILE = re.compile(
    r"`(?:python )?((?:benchmarks|csrc|docs|energy_plugins|examples|requirements|scripts|tests)/[\w./]+)"
)


def sampler_share(result: Any, load: str) -> float:
    """Return the CPU time of the sampling thread over the time that the load ran."""
    run = result["loads"][load]
    return float(run["observer"]["thread_cpu_s"] / run["duration_s"])


def expected_j(result: Any) -> list[float]:
    """Return what the counter makes of each window: between its refreshes and the window's ends the GPU idled."""
    idle = [row["total_j"] / row["seconds"] for row in result["totals"] if row["kind"] == "idle"]
    idle_w = sum(idle) / len(idle)
    return [row["counter_j"] - (row["lead_s"] + row["tail_s"]) * idle_w for row in result["totals"]]


def worst_total(result: Any) -> float:
    """Return the largest relative difference between a window's total and what the counter made of it."""
    totals = zip(result["totals"], expected_j(result), strict=True)
    return max(abs(float(row["total_j"]) / joules - 1) for row, joules in totals)


def totals_within_bound(result: Any) -> int:
    """Return how many windows' totals differ from the counter's by no more than their bound."""
    totals = zip(result["totals"], expected_j(result), strict=True)
    return sum(abs(row["total_j"] - joules) <= row["error_bound_j"] for row, joules in totals)


def upper_end_plain(result: Any, load: str) -> float:
    """Return the upper 95 % end of a load's cost with the host's drift left in and no step left out."""
    rows, parts = result["raw"][f"{load}_steps"], result["loads"][load]["parts"]
    took, marked = np.array(rows["took_us"])[60:], np.array(rows["marked"], bool)[60:]
    took, marked = took[1:], marked[1:]  # the steps that the script compares
    on, off = took[marked], took[~marked]
    shares = [(on.mean() - off.mean()) / took.mean()]
    errors = [np.sqrt(on.var() / len(on) + off.var() / len(off)) / took.mean()]
    for name in parts.keys() - {"marks"}:
        shares.append(parts[name]["share"])
        errors.append(parts[name]["error"])
    return float(sum(shares) + 1.96 * np.sqrt(np.square(errors).sum()))


def worst_as_recorded(result: Any) -> float:
    """Return the largest difference by the reference that the run itself recorded."""
    return max(abs(float(row["total_j"]) / float(row["expected_j"]) - 1) for row in result["totals"])


def within_bound_as_recorded(result: Any) -> int:
    """Return how many windows are within their bound by that reference."""
    return sum(abs(row["total_j"] - row["expected_j"]) <= row["error_bound_j"] for row in result["totals"])


def counter_reads_ms(result: Any) -> NDArray[np.float64]:
    """Return how long the reads of the counter took beside both loads (ms)."""
    tables = [result["raw"][f"{load}_counter_reads"] for load in ("gpu_bound", "launch_bound")]
    return np.concatenate([np.subtract(table["end_ms"], table["start_ms"]) for table in tables])


def marks_without_event(result: Any) -> int:
    """Return how many marks should have had an event, as the run's only warning says."""
    (warning,) = result["memory"]["warnings"]
    assert "had no CUDA event" in warning
    return int(warning.split()[0])


WORKED_OUT: Mapping[str, Callable[[Any], float]] = {
    "import_rounds.count": lambda result: len(result["raw"]["imports_ms"]["energy_plugins.transformers"]),
    "rounds.count": lambda result: len(result["raw"]["rounds_ms"]["nothing"]),
    "aliasing.fewest": lambda result: min(bar["value"] for bar in result["bars"] if "aliasing" in bar["what"]),
    "ranks.worst": lambda result: max(abs(run["off"]) for run in result["trainings"].values()),
    "ranks.worst_rank": lambda result: max(
        abs(rank["energy_j"] / rank["counter_j"] - 1) for run in result["trainings"].values() for rank in run["ranks"]
    ),
    "starts.count": lambda result: len(result["raw"]["meter"]["first_sample_ms"]),
    "cost.sampler_share": lambda result: result["cost"]["observer"]["thread_cpu_s"] / result["cost"]["duration_s"],
    "sampler_share.gpu_bound": lambda result: sampler_share(result, "gpu_bound"),
    "sampler_share.launch_bound": lambda result: sampler_share(result, "launch_bound"),
    "counter_windows.count": lambda result: len(result["totals"]),
    "upper_95_plain.gpu_bound": lambda result: upper_end_plain(result, "gpu_bound"),
    "upper_95_plain.launch_bound": lambda result: upper_end_plain(result, "launch_bound"),
    "counter_windows.worst": worst_total,
    "counter_windows.worst_as_recorded": worst_as_recorded,
    "counter_windows.within_bound_as_recorded": within_bound_as_recorded,
    "counter_windows.within_bound": totals_within_bound,
    "counter_reads.count": lambda result: len(counter_reads_ms(result)),
    "counter_reads.median_ms": lambda result: float(np.median(counter_reads_ms(result))),
    "counter_reads.longest_ms": lambda result: float(counter_reads_ms(result).max()),
    "memory.steps_per_s": lambda result: result["memory"]["steps"] / result["memory"]["seconds"],
    "memory.marks_without_event": lambda result: marks_without_event(result) / (2 * result["memory"]["steps"]),
    "other_tool.saving": lambda result: (
        1 - result["other_tool"]["sample_j"] / result["sample_j"][str(result["setting"]["batch"])]
    ),
    "mixed.against_counter": lambda result: (
        result["mixed"]["total_j"] / result["mixed"]["duration_s"] / result["mixed"]["power_w_between_refreshes"] - 1
    ),
}
"""Figures that no result holds as such."""


@dataclass(frozen=True)
class Quote:
    """A figure as a document has it, and where it comes from."""

    document: str
    figure: str
    file: str
    path: str
    format: str

    def __str__(self) -> str:
        return f"{self.document}: {self.file} {self.path}"


def value_at(result: object, path: str) -> float:
    """Return the number at a dotted path of keys and list positions, or the one worked out by that name."""
    if path in WORKED_OUT:
        return WORKED_OUT[path](result)
    for key in path.split("."):
        match result:
            case dict():
                result = result[key]
            case list():
                result = result[int(key)]
    assert isinstance(result, int | float)
    return result


def there(name: str) -> bool:
    """Return whether there is a file or folder of that name; sources may be named without their endings."""
    path = ROOT / name
    return path.exists() or any(path.parent.glob(f"{path.name}.*"))


def quotes_in(document: str) -> list[Quote]:
    return [Quote(document, *found) for found in QUOTE.findall((ROOT / document).read_text())]


QUOTES = [quote for document in DOCUMENTS for quote in quotes_in(document)]


@pytest.mark.parametrize("quote", QUOTES, ids=str)
def test_quotes_the_result(quote: Quote) -> None:
    result = json.loads((RESULTS / quote.file).read_text())
    assert quote.figure == format(value_at(result, quote.path), quote.format)


def test_figures_of_simulated_steps_are_those_of_their_rows() -> None:
    plans = json.loads((RESULTS / "sensor_plans.json").read_text())["with_counter"]
    with np.load(RESULTS / "sensor_plans_steps.npz") as rows:
        for name, plan in plans.items():
            slug, figures = name.replace(",", "").replace(" ", "_"), plan["steps"]
            error, bound = (rows[f"{slug}_{column}"] * 5e-4 for column in ("error", "bound"))
            held = np.unpackbits(rows[f"{slug}_held"])[: len(error)]
            assert figures["count"] == len(error) == len(bound) == len(rows["length"])
            assert figures["coverage"] == pytest.approx(held.mean(), abs=1e-6)
            assert figures["median_bound"] == pytest.approx(np.median(bound), abs=5e-4)
            assert figures["p95"] == pytest.approx(np.percentile(np.abs(error), 95), abs=5e-4)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_marked_figure_is_a_quote(document: str) -> None:
    text = (ROOT / document).read_text()
    assert len(quotes_in(document)) == len(MARKED.findall(text))
    assert PLACEHOLDER not in text


@pytest.mark.parametrize("document", LINKING)
def test_what_it_points_to_is_there(document: str) -> None:
    path = ROOT / document
    text = path.read_text()
    missing = [link for link in LINK.findall(text) if not (path.parent / link).exists()]
    missing += [name for name in NAMED_FILE.findall(text) if not there(name)]
    assert missing == []


@pytest.mark.parametrize(
    ("framework", "distribution"),
    [("Lightning", "lightning"), ("transformers", "transformers"), ("accelerate", "accelerate")],
)
def test_the_versions_that_it_states_are_those_that_are_tested(framework: str, distribution: str) -> None:
    stated = re.search(rf"^\| {framework}.*\| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert stated is not None
    for version, file in zip(stated.groups(), ("oldest.txt", "dev.txt"), strict=True):
        assert f"{distribution}=={version}\n" in (ROOT / "requirements" / file).read_text()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    result = json.loads(path.read_text())

    assert {"date", "hardware", "versions", "commit", "raw"} <= result.keys()
    simulated = any("SIMULATED" in gpu for gpu in result["hardware"]["gpus"])
    assert ("SIMULATED" in result["label"]) == simulated
