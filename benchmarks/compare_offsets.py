"""SIMULATED: how often a comparison of runs on unequal nodes shows a difference that is none, or misses one of 3 %.

    python benchmarks/compare_offsets.py         a few minutes; exits with 1 if a bar is missed

Nodes are drawn with offsets of up to 10 % either way. A run's energy is that of its side, times the offset of its node,
a drift of the round that it was made in, what its start temperature adds, and noise of 1 %. Each comparison has 5 runs
of either side; `DESIGNS` says on which nodes. Reports go through the same code as those that are read from folders.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from _common import Bar, Kind, finish, print_table, progress, wilson

from energy_plugins.measure.columns import Columns
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import STATE_COLUMNS, DeviceInfo, Work
from energy_plugins.report.comparison.compare import Comparison, Metric, compare
from energy_plugins.report.comparison.runs import SERIES, Run, run_of
from energy_plugins.report.comparison.student import t_quantile

COMPARISONS = 1000
REPEATS = 5
NODES = 8
MOST_OFFSET = 0.10
NOISE = 0.01
DRIFT = 0.01
"""Standard deviation of what befalls a whole round."""
WARMTH_C = 3.0
"""Standard deviation of start temperatures."""
MOST_SLOPE = 0.003
"""Per degree."""
EFFECT = 0.03

Rng: TypeAlias = np.random.Generator


@dataclass(frozen=True)
class Plan:
    """On which node each run of each side is made, and in which rounds if in any."""

    nodes: tuple[Sequence[int], Sequence[int]]
    in_rounds: bool
    reference: Sequence[int] = ()
    """On which node each run of the reference is made."""


def one_node(_rng: Rng) -> Plan:
    """What the A/B runner does."""
    return Plan(([0] * REPEATS, [0] * REPEATS), in_rounds=True)


def a_node_a_round(rng: Rng) -> Plan:
    """Rounds wherever a cluster puts them."""
    nodes = rng.integers(NODES, size=REPEATS).tolist()
    return Plan((nodes, nodes), in_rounds=True)


def two_nodes(_rng: Rng) -> Plan:
    """Both sides on both nodes, unequally often, and one side after the other."""
    return Plan(([0, 0, 0, 1, 1], [0, 0, 1, 1, 1]), in_rounds=False)


def any_nodes(rng: Rng) -> Plan:
    """Each run wherever a cluster puts it, on one of four nodes."""
    first, second = rng.integers(4, size=(2, REPEATS)).tolist()
    return Plan((first, second), in_rounds=False)


def apart(_rng: Rng) -> Plan:
    """Each side on a node of its own, which no comparison can make up for."""
    return Plan(([0] * REPEATS, [1] * REPEATS), in_rounds=False)


def any_known_nodes(rng: Rng) -> Plan:
    """The same with two runs of another program on each of the nodes."""
    return replace(any_nodes(rng), reference=[0, 0, 1, 1, 2, 2, 3, 3])


def known_apart(rng: Rng) -> Plan:
    """Each side on a node of its own, with as many runs of another program on each."""
    return replace(apart(rng), reference=[0] * REPEATS + [1] * REPEATS)


DESIGNS: Mapping[str, Callable[[Rng], Plan]] = {
    "interleaved, one node": one_node,
    "interleaved, a node a round": a_node_a_round,
    "both sides on two nodes": two_nodes,
    "each run on any of four nodes": any_nodes,
    "each side on its own node": apart,
    "each run on any of four nodes, two reference runs on each": any_known_nodes,
    "each side on its own node, five reference runs on each": known_apart,
}
FIND = (
    "interleaved, one node",
    "interleaved, a node a round",
    "each run on any of four nodes, two reference runs on each",
)


def draw(rng: Rng, plan: Plan, effect: float) -> tuple[list[Run], list[Run], list[Run]]:
    """Return the runs of both sides of one comparison, B drawing ``effect`` more than A, and of the reference."""
    offsets = rng.uniform(-MOST_OFFSET, MOST_OFFSET, NODES)
    ambient_c = rng.uniform(35.0, 45.0, NODES)
    slope = rng.uniform(0.0, MOST_SLOPE)
    drift = rng.normal(0.0, DRIFT, REPEATS)
    draws_more = (0.0, math.log1p(effect), math.log(0.7))
    sides: tuple[list[Run], list[Run], list[Run]] = ([], [], [])
    for number, nodes in enumerate((*plan.nodes, plan.reference)):
        for turn, node in enumerate(nodes):
            start_c = float(round(ambient_c[node] + rng.normal(0.0, WARMTH_C)))
            more = slope * (start_c - 40.0) + rng.normal(0.0, NOISE) + draws_more[number]
            more += drift[turn] if plan.in_rounds else 0.0
            report = made(
                f"{number}-{turn}",
                node,
                10_000.0 * (1 + float(offsets[node])) * math.exp(more),
                start_c,
                {SERIES: {"series": "s", "round": turn}} if plan.in_rounds else {},
            )
            run = run_of(report, Path(report.run_id))
            assert isinstance(run, Run)
            sides[number].append(run)
    return sides


def made(
    run_id: str, node: int, energy_j: float, start_c: float, config: Mapping[str, Mapping[str, str | int]]
) -> Report:
    """Return the report of a run of a minute."""
    uuid = f"GPU-{node}"
    state = {name: np.zeros(1, code) for name, code in STATE_COLUMNS.items()}
    return Report(
        run_id=run_id,
        name="SIMULATED",
        node=f"node-{node}",
        started="2026-11-22T08:00:00.000+00:00",
        duration_s=60.0,
        complete=True,
        simulated=True,
        total_j=energy_j,
        gpu_j={uuid: energy_j},
        devices=(DeviceInfo(uuid=uuid, name="NVIDIA H200 (SIMULATED)", index=0, driver="580"),),
        state={uuid: Columns.of({**state, "temperature_c": np.array([start_c])})},
        work=Work(steps=100, samples=6400),
        config=config,
    )


def shown(comparison: Comparison) -> bool:
    """Tell whether a difference of energy is shown."""
    (energy,) = (one for one in comparison.findings if one.metric is Metric.ENERGY)
    return energy.shown


def shown_by_t_test(a: Sequence[Run], b: Sequence[Run]) -> bool:
    """Tell the same by a t test that knows of no node, round or temperature."""
    first, second = (np.log([run.energy_j for run in runs]) for runs in (a, b))
    error = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / REPEATS)
    return bool(abs(second.mean() - first.mean()) > t_quantile(0.95, 2 * REPEATS - 2) * error)


def shares(name: str, seed: int) -> dict[str, float]:
    """Return the shares of comparisons in which a difference is shown."""
    rng, counts = np.random.default_rng(seed), dict.fromkeys(("false", "found", "false_by_t_test"), 0)
    for _ in progress(name, COMPARISONS):
        plan = DESIGNS[name](rng)
        a, b, known = draw(rng, plan, 0.0)
        counts["false"] += shown(compare({"A": a, "B": b}, reference=known))
        counts["false_by_t_test"] += shown_by_t_test(a, b)
        a, b, known = draw(rng, plan, EFFECT)
        counts["found"] += shown(compare({"A": a, "B": b}, reference=known))
    return {key: count / COMPARISONS for key, count in counts.items()}


def main() -> int:
    """Compare, print, write, and return 1 if a bar is missed."""
    found = {name: shares(name, seed) for seed, name in enumerate(DESIGNS)}
    print_table(
        [
            ("SIMULATED", "false", "3 % found", "false by a t test"),
            *(
                (name, *(f"{one[key]:.1%}" for key in ("false", "found", "false_by_t_test")))
                for name, one in found.items()
            ),
        ]
    )
    bars = [
        *(Bar(f"false differences, {name}", one["false"], at_most=0.05) for name, one in found.items()),
        *(Bar(f"3 % found, {name}", found[name]["found"], at_least=0.8) for name in FIND),
    ]
    figures = {
        "assumed": {
            "comparisons": COMPARISONS,
            "repeats": REPEATS,
            "most_offset": MOST_OFFSET,
            "noise": NOISE,
            "drift_of_a_round": DRIFT,
            "start_temperature_spread_c": WARMTH_C,
            "most_slope_per_c": MOST_SLOPE,
            "effect": EFFECT,
        },
        "found": [one["found"] for one in found.values()],
        "by_t_test": [one["false_by_t_test"] for one in found.values()],
        "designs": {
            name: {**one, "false_95": wilson(round(one["false"] * COMPARISONS), COMPARISONS)}
            for name, one in found.items()
        },
    }
    return finish(
        "compare_offsets", gpus=["NVIDIA H200 (SIMULATED)"], figures=figures, bars=bars, raw={}, kind=Kind.SIMULATED
    )


if __name__ == "__main__":
    sys.exit(main())
