"""All ranks of a training side by side: parts merged into one, without counting anything twice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, Self

from energy_plugins.measure.json_section import Section, plain, read_fields
from energy_plugins.measure.rank_part import GpuPart, RankPart
from energy_plugins.measure.report_parts import Part

_SIGMAS: Final = 3.0
"""A difference of two means is more than noise from this many of its standard errors on,"""
_SHARE: Final = 0.02
"""and from this share of the backward phase on."""
_MOST_NAMED: Final = 20


@dataclass(frozen=True, kw_only=True)
class RankRow(Part):
    """One rank's part, and what it waited for the others."""

    part: RankPart
    counted: bool
    """Whether joules of its GPUs are in the sums; not where another rank's part has the same GPUs."""
    peer_wait_s: float | None = None
    peer_wait_j: float | None = None

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        return cls(**read_fields(cls, section, "part"), part=RankPart.read(section.section("part")))


@dataclass(frozen=True, kw_only=True)
class Ranks(Part):
    """A training on many GPUs. Sums are of the ranks that are there; None where there is nothing to add up."""

    world_size: int
    rows: tuple[RankRow, ...]
    """By rank."""
    absent: tuple[int, ...] = ()
    """Ranks of which nothing is known."""
    gpus: int = 0
    """GPUs in the sums, each once."""
    duration_s: float = 0.0
    """Of the rank that took longest."""
    complete: bool = False
    """Whether all ranks are here, with their last word."""
    total_j: float | None = None
    error_bound_j: float | None = None
    """95 % bound; GPUs err independently of each other, so it is the root of the sum of squares."""
    coverage: float = 0.0
    """Mean over the GPUs; a rank that is absent counts as one of which nothing was seen."""
    steps: int = 0
    """Of all ranks together: training that goes in lockstep on 8 ranks makes 8 at a time."""
    samples: int | None = None
    tokens: int | None = None
    stall_j: float | None = None
    data_wait_j: float | None = None
    peer_wait_j: float | None = None
    """Drawn while spinning in a collective until the slowest rank arrived."""
    stragglers: tuple[int, ...] = ()
    """Ranks that the others waited for, if that was more than noise."""
    cpu_j: float | None = None
    dram_j: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    """Name of what is None -> why."""
    notes: tuple[str, ...] = ()
    """What was left out so that nothing counts twice, and whatever else limits the sums."""

    @property
    def whole(self) -> bool:
        """Whether each rank told its end, and of each GPU somebody the joules; if not, more was drawn than the sums."""
        users = [(row.part.machine, gpu) for row in self.rows for gpu in row.part.gpus]
        told = {(machine, gpu.uuid) for machine, gpu in users if gpu.energy_j is not None}
        silent = [row for row in self.rows if row.part.energy_j is None and not row.part.gpus]
        return self.complete and not silent and all((machine, gpu.uuid) in told for machine, gpu in users)

    @property
    def nodes(self) -> int:
        """On how many machines the ranks ran."""
        return len({row.part.machine for row in self.rows})

    @classmethod
    def merge(cls, parts: Iterable[RankPart], world_size: int) -> Self:
        """Return all parts as one. Their order does not matter; of a rank's parts the one that reaches furthest counts.

        Waiting is not seen as a gap: a GPU spins inside the collective, which is part of backward. So what a rank
        waited is by how much its mean backward phase is longer than that of the rank with the shortest, times its
        steps, and the joules are those seconds at its mean power in backward.
        """
        best, strangers = _furthest(parts, world_size)
        present = [best[rank] for rank in sorted(best)]
        absent = tuple(rank for rank in range(world_size) if rank not in best)
        counted, notes = _once(present)
        notes += [f"a part of rank {rank}, of {world_size} ranks, was left out" for rank in sorted(strangers)]
        notes += _choices(present)
        notes += [
            f"rank {part.who.rank} has {part.gpus_left_out} GPUs more than it could tell of; they are in the sum"
            for part in present
            if part.gpus_left_out
        ]
        missing: dict[str, str] = {}
        waits, stragglers = _waits(present, missing)
        owners = [part for part in present if part.who.rank in counted]
        rows = tuple(
            RankRow(
                part=part,
                counted=part.who.rank in counted,
                peer_wait_s=waits.get(part.who.rank, (None, None))[0],
                peer_wait_j=waits.get(part.who.rank, (None, None))[1],
            )
            for part in present
        )
        energy_j = [(gpu.energy_j, gpu.error_bound_j) for gpus in counted.values() for gpu in gpus]
        energy_j += [_rest(part) for part in owners if part.gpus_left_out]
        known_j = [joules for joules, _ in energy_j if joules is not None]
        if not known_j:
            missing["total_j"] = "no rank measured a GPU"
        gpus, seen, unseen = _cover(present, counted, len(absent))
        waited_j = [row.peer_wait_j for row in rows if row.counted and row.peer_wait_j is not None]
        if not waited_j:
            missing.setdefault("peer_wait_j", "no rank that counts marked its backward phases")
        return cls(
            world_size=world_size,
            rows=rows,
            absent=absent,
            gpus=gpus,
            duration_s=max((part.duration_s for part in present), default=0.0),
            complete=not absent and all(part.complete for part in present),
            total_j=math.fsum(known_j) if known_j else None,
            error_bound_j=math.sqrt(math.fsum((bound_j or 0.0) ** 2 for _, bound_j in energy_j)) if known_j else None,
            coverage=seen / (gpus + unseen) if gpus + unseen else 0.0,
            steps=sum(part.steps for part in present),
            samples=_count(present, "samples", missing),
            tokens=_count(present, "tokens", missing),
            stall_j=_sum(owners, "stall_j", missing),
            data_wait_j=_sum(owners, "data_wait_j", missing),
            peer_wait_j=math.fsum(waited_j) if waited_j else None,
            stragglers=stragglers,
            cpu_j=_by_machine(present, "cpu_j", missing),
            dram_j=_by_machine(present, "dram_j", missing),
            missing=missing,
            notes=tuple(notes),
        )

    @classmethod
    def read(cls, section: Section) -> Self:
        """Read it from JSON; raises ReportError."""
        rows = tuple(RankRow.read(row) for row in section.sections("rows"))
        return cls(**read_fields(cls, section, "rows"), rows=rows)

    def shortcomings(self) -> tuple[str, ...]:
        """Return what a reader of the sums has to be warned of."""
        said = []
        if self.absent:
            said.append(
                f"nothing is known of {named(self.absent)} of {self.world_size}; the joules are in no sum of all ranks"
            )
        if unfinished := [row.part.who.rank for row in self.rows if not row.part.complete]:
            said.append(f"{named(unfinished)} never told the end: the sums hold what was settled of it before")
        return tuple(said)


def _furthest(parts: Iterable[RankPart], world_size: int) -> tuple[dict[int, RankPart], set[int]]:
    best: dict[int, RankPart] = {}
    strangers = set()
    for part in parts:
        rank = part.who.rank
        if rank >= world_size:
            strangers.add(rank)
        elif rank not in best or _reach(part) > _reach(best[rank]):
            best[rank] = part
    return best, strangers


def _reach(part: RankPart) -> tuple[bool, float, str]:
    # The text only decides between parts that reach equally far, so that their order does not.
    return part.complete, part.duration_s, json.dumps(plain(asdict(part)), sort_keys=True)


def _once(present: Sequence[RankPart]) -> tuple[dict[int, list[GpuPart]], list[str]]:
    """Return by rank the GPUs that count there, each in the part that saw most of it; ranks without any are left out.

    A rank that measured no GPU at all is there, with none.
    """
    users: dict[tuple[str, str], list[tuple[RankPart, GpuPart]]] = {}
    for part in present:
        for gpu in part.gpus:
            users.setdefault((part.machine, gpu.uuid), []).append((part, gpu))
    counted: dict[int, list[GpuPart]] = {part.who.rank: [] for part in present if not part.gpus or part.gpus_left_out}
    notes = []
    for (_, uuid), found in users.items():
        part, gpu = max(
            found,
            key=lambda one: (one[1].energy_j is not None, one[0].coverage * one[0].duration_s, -one[0].who.rank),
        )
        counted.setdefault(part.who.rank, []).append(gpu)
        if len(ranks := sorted({one.who.rank for one, _ in found})) > 1:
            notes.append(f"{named(ranks)} share {uuid} of {part.node}: it counts once, as rank {part.who.rank} saw it")
    return counted, notes


def _choices(present: Sequence[RankPart]) -> list[str]:
    ranks: dict[str, list[int]] = {}
    for part in present:
        if part.who.gpu_choice:
            ranks.setdefault(part.who.gpu_choice, []).append(part.who.rank)
    return [f"{named(those)}: {how}" for how, those in ranks.items()]


def _rest(part: RankPart) -> tuple[float | None, float | None]:
    """Return joules and bound of the GPUs that a part could not tell of."""
    if part.energy_j is None:
        return None, None
    told_j = math.fsum(gpu.energy_j for gpu in part.gpus if gpu.energy_j is not None)
    told_j2 = math.fsum((gpu.error_bound_j or 0.0) ** 2 for gpu in part.gpus)
    bound_j = None if part.error_bound_j is None else math.sqrt(max(part.error_bound_j**2 - told_j2, 0.0))
    return max(part.energy_j - told_j, 0.0), bound_j


def _cover(
    present: Sequence[RankPart], counted: Mapping[int, Sequence[GpuPart]], absent: int
) -> tuple[int, float, int]:
    """Return how many GPUs count, how much of them was seen, and of how many nothing was."""
    gpus, seen, unseen = 0, 0.0, absent
    for part in present:
        own = len(counted.get(part.who.rank, ())) + part.gpus_left_out
        gpus += own
        seen += own * part.coverage
        unseen += not part.gpus and not part.gpus_left_out
    return gpus, seen, unseen


def _waits(
    present: Sequence[RankPart], missing: dict[str, str]
) -> tuple[dict[int, tuple[float, float | None]], tuple[int, ...]]:
    """Return seconds and joules that each rank waited, and the ranks that it waited for."""
    marked = {part.who.rank: (part, part.backward) for part in present if part.backward is not None}
    if len(marked) < 2:
        missing["peer_wait_j"] = (
            "one process has no peers" if len(present) < 2 else "fewer than two ranks marked their backward phases"
        )
        return {}, ()
    _, least = min(marked.values(), key=lambda one: one[1].seconds)
    waits: dict[int, tuple[float, float | None]] = {}
    on_time: list[int] = []
    late: list[int] = []
    for rank, (part, backward) in marked.items():
        longer_s = backward.seconds - least.seconds
        share = longer_s / backward.seconds if backward.seconds > 0 else 0.0
        waits[rank] = (
            longer_s * part.steps,
            None if backward.energy_j is None else share * backward.energy_j * part.steps,
        )
        noise_s = max(_SIGMAS * math.hypot(backward.spread_s, least.spread_s), _SHARE * least.seconds)
        (on_time if longer_s > noise_s else late).append(rank)
    if all(joules is None for _, joules in waits.values()):
        missing["peer_wait_j"] = "no backward phase was measured"
    return waits, tuple(late) if len(late) <= len(on_time) else ()


def _count(present: Sequence[RankPart], name: str, missing: dict[str, str]) -> int | None:
    counts: list[int | None] = [getattr(part, name) for part in present]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or not counts:
        silent = [part.who.rank for part in present if getattr(part, name) is None]
        missing[name] = f"{named(silent)} did not say" if known else "no rank said"
        return None
    return sum(known)


def _sum(parts: Sequence[RankPart], name: str, missing: dict[str, str]) -> float | None:
    """Add up what is known, of GPUs that each count once."""
    known: list[float] = [value for part in parts if (value := getattr(part, name)) is not None]
    if not known:
        missing[name] = "no rank has it"
        return None
    return math.fsum(known)


def _by_machine(present: Sequence[RankPart], name: str, missing: dict[str, str]) -> float | None:
    """Add up what belongs to whole machines, of each one the longest measurement; None if one of them has none."""
    machines: dict[str, list[RankPart]] = {}
    for part in present:
        machines.setdefault(part.machine, []).append(part)
    joules, without = [], []
    for parts in machines.values():
        known = [part for part in parts if getattr(part, name) is not None]
        if known:
            joules.append(getattr(max(known, key=lambda part: (part.duration_s, -part.who.rank)), name))
        else:
            without.append(parts[0].node)
    if without or not machines:
        missing[name] = f"not measured on {', '.join(sorted(without)[:_MOST_NAMED]) or 'any node'}"
        return None
    return math.fsum(joules)


def named(ranks: Sequence[int]) -> str:
    """Return ranks as people name them, a few of them if they are many."""
    shown = ", ".join(map(str, ranks[:_MOST_NAMED])) + (", ..." if len(ranks) > _MOST_NAMED else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"
