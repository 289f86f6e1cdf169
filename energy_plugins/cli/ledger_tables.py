"""What `energy-plugins ledger` prints: totals and runs as tables, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from energy_plugins.measure.aligned import aligned
from energy_plugins.measure.quantity import duration, percent, quantity
from energy_plugins.report.ledger.runs import Run
from energy_plugins.report.ledger.totals import Price, Total
from energy_plugins.units import j_to_kwh, j_to_wh

_MOST_NAME = 40
"""Characters of a name in a table."""
_NOTE = "Joules are those of the GPUs, each counted once; NVIDIA's sensors are good to about 5 %."


def totals_table(by: str, groups: Sequence[Total], whole: Total, price: Price) -> list[str]:
    """Return totals as lines: a row for each group and one for all."""
    if not groups:
        return ["the ledger has no such run"]
    charges = price != Price()
    head = [
        by,
        "jobs",
        "not finished",
        "energy",
        "of that not finished",
        "jobs per kWh",
        *(["charge"] if charges else []),
    ]
    rows = [_total_cells(one.group or "(not known)", one, price, charges=charges) for one in groups]
    rows.append(_total_cells("all", whole, price, charges=charges))
    lines = [line.rstrip() for line in aligned([head, *rows], "<" + ">" * (len(head) - 1))]
    notes = [_NOTE]
    if whole.unmeasured:
        notes.append(
            f"Of {whole.unmeasured:,} jobs nothing was measured: they are counted, and drew what is not known."
        )
    return [*lines, "", *notes]


def totals_json(by: str, groups: Sequence[Total], whole: Total, price: Price) -> list[str]:
    """Return totals as lines of JSON, that of all runs last, its group null."""
    return [
        json.dumps(
            {
                "by": by,
                **asdict(one),
                "group": one.group if one is not whole else None,
                "energy_kwh": j_to_kwh(one.energy_j),
                "jobs_per_kwh": one.jobs_per_kwh,
                "charge": price.of(one.energy_j, one.jobs) if price != Price() else None,
            }
        )
        for one in (*groups, whole)
    ]


def runs_table(runs: Sequence[Run], of: int) -> list[str]:
    """Return runs as lines, a row for each."""
    if not runs:
        return ["the ledger has no such run"]
    head = ["started (UTC)", "name", "project", "model", "user", "GPUs", "ranks", "status", "duration", "energy"]
    rows = [
        [
            run.started[:19].replace("T", " "),
            _short(run.name),
            _short(run.project) or "-",
            _short(run.model) or "-",
            _short(run.user),
            str(len(run.gpus)),
            str(run.ranks) if run.ranks == run.world_size else f"{run.ranks} of {run.world_size}",
            run.status.value,
            duration(run.duration_s),
            "-" if run.energy_j is None else _energy(run.energy_j),
        ]
        for run in runs
    ]
    lines = [line.rstrip() for line in aligned([head, *rows], "<<<<<>><>>")]
    return [*lines, *([f"... and {of - len(runs):,} runs before these: --limit"] if of > len(runs) else [])]


def _total_cells(group: str, total: Total, price: Price, *, charges: bool) -> list[str]:
    rate = total.jobs_per_kwh
    return [
        _short(group),
        f"{total.jobs:,}",
        f"{total.not_finished:,}",
        _energy(total.energy_j),
        percent(total.wasted_j / total.energy_j) if total.energy_j > 0 else "-",
        "-" if rate is None else f"{rate:,.3g}" if rate < 1000 else f"{rate:,.0f}",
        *([f"{price.of(total.energy_j, total.jobs):,.2f}"] if charges else []),
    ]


def _energy(energy_j: float) -> str:
    return quantity(j_to_wh(energy_j), "Wh")


def _short(text: str) -> str:
    return text if len(text) <= _MOST_NAME else f"{text[: _MOST_NAME - 3]}..."
