"""A comparison as text and as JSON."""

from __future__ import annotations

import textwrap

from energy_plugins.measure.aligned import aligned
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.quantity import quantity
from energy_plugins.report.comparison.compare import CONFIDENCE, Comparison, Finding, Metric

WIDTH = 100
SIMULATED = "SIMULATED: joules of simulated GPUs, no measurement of hardware"
_WORDS = {Metric.ENERGY: ("less", "more"), Metric.TIME: ("faster", "slower"), Metric.POWER: ("less", "more")}
_LEAST = 1e-6
"""What is less is rounding."""
_UNITS = {Metric.ENERGY: "J", Metric.TIME: "s", Metric.POWER: "W"}


def text_table(comparison: Comparison) -> str:
    """Return a page of text: the sides, the differences with their intervals, and what limits them."""
    banner = [f" {SIMULATED} ".center(WIDTH, "=")] if comparison.simulated else []
    sides = [("side", "runs", *(heading(comparison, metric) for metric in Metric))]
    sides += [
        (side.label, str(len(side.runs)), *(quantity(side.means[metric], _UNITS[metric]) for metric in Metric))
        for side in comparison.sides
    ]
    rows = [("against " + comparison.sides[0].label, "", "difference", "95 % interval", "")]
    rows += [
        (one.label, one.metric.value, signed(one.relative), interval(one), verdict(one)) for one in comparison.findings
    ]
    lines = [*banner, *aligned(sides, "<>>>>"), "", *aligned(rows, "<<>><"), ""]
    for note in notes(comparison):
        lines += textwrap.wrap(note, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(line.rstrip() for line in lines)


def heading(comparison: Comparison, metric: Metric) -> str:
    """Return what a column of means is called."""
    return metric.value if metric is Metric.POWER else f"{metric.value} per {comparison.unit.value}"


def verdict(finding: Finding) -> str:
    """Say whether a difference is shown, in a few words."""
    if finding.low is None:
        return "no difference shown: nothing was repeated"
    if not finding.shown:
        return "no difference shown"
    return f"{_WORDS[finding.metric][finding.relative > 0]}: difference shown"


def interval(finding: Finding) -> str:
    """Return the interval of a difference as text, a dash if there is none."""
    if finding.low is None or finding.high is None:
        return "-"
    return f"{_per_cent(finding.low)} .. {_per_cent(finding.high)} %"


def signed(fraction: float) -> str:
    """Return a relative difference in per cent, with its sign."""
    return f"{_per_cent(fraction)} %"


def _per_cent(fraction: float) -> str:
    """Return it with one digit behind the point, and of what is too small for that the first that is not 0."""
    return f"{100 * fraction:+.1f}" if abs(fraction) >= 0.0005 or abs(fraction) < _LEAST else f"{100 * fraction:+.1g}"


def notes(comparison: Comparison) -> list[str]:
    """Return in sentences what the differences are corrected for, what widens them, and what else to know."""
    found = [f"{one.label}: {text}" for one in comparison.findings if one.metric is Metric.ENERGY for text in _how(one)]
    if any(not one.shown and one.low is not None for one in comparison.findings):
        found.append('"no difference shown" is no proof of none: it may lie anywhere in the interval')
    if len(comparison.sides) > 2:
        found.append("the intervals of all sides hold together with 95 %, so each is a little wider")
    return [*found, *comparison.notes]


def _how(finding: Finding) -> list[str]:
    said = []
    if finding.corrected_for:
        names = ", ".join(finding.corrected_for)
        said.append(f"corrected for {names}; uncorrected, energy differs by {signed(finding.raw)}")
    if finding.places_confounded:
        said.append(
            "the sides did not run on the same GPUs, and identical nodes may differ by up to 10 % either way: the "
            "interval allows for that; run both on one node, or one program on all (--reference), to do better"
        )
    return said


def as_json(comparison: Comparison) -> dict[str, JSON]:
    """Return a comparison as JSON has it; energies are joules, times seconds, differences fractions."""
    return {
        "schema": "energy-plugins/comparison",
        "version": 1,
        "simulated": comparison.simulated,
        "unit": comparison.unit.value,
        "confidence": CONFIDENCE,
        "sides": [
            {
                "label": side.label,
                "energy_j": side.means[Metric.ENERGY],
                "time_s": side.means[Metric.TIME],
                "power_w": side.means[Metric.POWER],
                "runs": [
                    {
                        "folder": str(run.folder),
                        "run_id": run.run_id,
                        "energy_j": run.energy_j,
                        "duration_s": run.duration_s,
                        "samples": run.samples,
                        "tokens": run.tokens,
                        "steps": run.steps,
                        "place": run.place,
                        "round": run.round,
                        "start_c": run.start_c,
                    }
                    for run in side.runs
                ],
            }
            for side in comparison.sides
        ],
        "differences": [
            {
                "side": one.label,
                "against": one.base,
                "metric": one.metric.value,
                "difference": one.relative,
                "low": one.low,
                "high": one.high,
                "shown": one.shown,
                "uncorrected": one.raw,
                "corrected_for": list(one.corrected_for),
                "places_confounded": one.places_confounded,
            }
            for one in comparison.findings
        ],
        "notes": notes(comparison),
    }
