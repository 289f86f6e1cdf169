"""A comparison as a piece of HTML, and as a page of its own: no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from energy_plugins.measure.quantity import quantity
from energy_plugins.report.comparison.compare import Comparison, Finding, Metric
from energy_plugins.report.comparison.text import SIMULATED, heading, interval, notes, signed, verdict

_UNITS = {Metric.ENERGY: "J", Metric.TIME: "s", Metric.POWER: "W"}
_HALF = 100
"""Half the width of the picture of an interval, in its own units."""
_STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem }
.comparison .scroll { overflow-x: auto }
.comparison table { border-collapse: collapse; margin: 1rem 0 }
.comparison th, .comparison td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #8886 }
.comparison .number { text-align: right; font-variant-numeric: tabular-nums }
.comparison .simulated { border: 2px solid; padding: .5rem; font-weight: bold }
.comparison svg { width: 12rem; height: 1.5rem }
"""


def html_section(comparison: Comparison) -> str:
    """Return a ``<section>`` with the sides, the differences drawn as intervals, and what limits them."""
    banner = f'<p class="simulated">{escape(SIMULATED)}</p>' if comparison.simulated else ""
    sides = _table(
        ["side", "runs", *(heading(comparison, metric) for metric in Metric)],
        (
            _text(side.label)
            + _number(str(len(side.runs)))
            + "".join(_number(quantity(side.means[metric], _UNITS[metric])) for metric in Metric)
            for side in comparison.sides
        ),
    )
    scale = max(max(abs(one.low or 0.0), abs(one.high or 0.0), abs(one.relative)) for one in comparison.findings)
    differences = _table(
        [f"against {comparison.sides[0].label}", "", "difference", "95 % interval", "", ""],
        (
            _text(one.label)
            + _text(one.metric.value)
            + _number(signed(one.relative))
            + _number(interval(one))
            + f"<td>{_picture(one, scale or 1.0)}</td>"
            + _text(verdict(one))
            for one in comparison.findings
        ),
    )
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(comparison))
    return f'<section class="comparison"><h2>Comparison</h2>{banner}{sides}{differences}<ul>{said}</ul></section>'


def html_page(comparison: Comparison) -> str:
    """Return a whole page that holds nothing but the section."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Comparison of energy</title>'
        f"<style>{_STYLE}</style></head><body>{html_section(comparison)}</body></html>\n"
    )


def _table(headings: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in headings)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _number(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>'


def _picture(finding: Finding, scale: float) -> str:
    """Return the interval as a line around a dot, over a line at 0."""
    low, high = (_HALF * (one if one is not None else finding.relative) / scale for one in (finding.low, finding.high))
    described = escape(f"{finding.label}, {finding.metric.value}: {signed(finding.relative)}, {interval(finding)}")
    return (
        f'<svg viewBox="{-_HALF - 5} -10 {2 * _HALF + 10} 20" role="img" aria-label="{described}" '
        'stroke="currentColor" fill="currentColor"><line x1="0" x2="0" y1="-9" y2="9" stroke-dasharray="2"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="0" y2="0" stroke-width="3"/>'
        f'<circle cx="{_HALF * finding.relative / scale:.1f}" cy="0" r="4"/></svg>'
    )
