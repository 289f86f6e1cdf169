"""Where the sets of a training step live at each micro-batch: as rows, as JSON, and as a picture in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from energy_plugins.measure.aligned import aligned
from energy_plugins.measure.quantity import binary
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy
from energy_plugins.tune.working_set import Part, WorkingSet

ALL = "all at once"
"""The name of what a whole step has allocated at its fullest, beside those of the parts."""
_LETTERS = {Part.LAYER: "l", ALL: "A", Part.FORWARD: "f", Part.BACKWARD: "b", Part.OPTIMIZER: "o"}
"""Of the sets in the picture, of those that lie on each other the first; the gradients are in two others."""
_WIDTH = 72
_MOST_ROWS = 24


@dataclass(frozen=True)
class View:
    """A hierarchy, a working set, and the micro-batches to look at."""

    hierarchy: MemoryHierarchy
    working_set: WorkingSet
    sizes: tuple[int, ...]

    def sets(self, size: int) -> Mapping[str, int | None]:
        """Return the bytes of every set at a micro-batch, by its name."""
        parts = {part.value: size_bytes for part, size_bytes in self.working_set.bytes_at(size).items()}
        return {**parts, ALL: self.working_set.peak_bytes(size)}

    def level_name(self, size_bytes: int) -> str | None:
        """Return the level that so many bytes live in, None if they fit nowhere."""
        level = self.hierarchy.level_of(size_bytes)
        return level.name if level else None

    def as_json(self) -> dict[str, object]:
        """Return all of it; what is not known, and the level of what fits nowhere, is None."""
        return {
            "schema": "energy-plugins/hierarchy",
            "version": 1,
            "device": self.hierarchy.device,
            "levels": [asdict(level) for level in self.hierarchy.levels],
            "micro_batches": [
                {
                    "size": size,
                    "sets": {
                        name: {
                            "bytes": size_bytes,
                            "level": None if size_bytes is None else self.level_name(size_bytes),
                        }
                        for name, size_bytes in self.sets(size).items()
                    },
                }
                for size in self.sizes
            ],
            "notes": list(self.notes),
        }

    @property
    def notes(self) -> Sequence[str]:
        """What should be known of both."""
        return (*self.hierarchy.notes, *self.working_set.notes)

    def text(self) -> Iterator[str]:
        """Yield the lines of the table and of the picture."""
        yield f"{self.hierarchy.device}: {', '.join(map(_described, self.hierarchy.levels)) or 'no level is known'}"
        yield ""
        yield from self._table()
        yield ""
        yield from self._picture()
        if self.notes:
            yield ""
            yield from (f"note: {note}" for note in self.notes)

    def _table(self) -> list[str]:
        names = [*self.sets(1)]
        head = ["micro-batch", *chain.from_iterable((name, "in") for name in names)]
        rows = [[str(size), *chain.from_iterable(map(self._cell, self.sets(size).values()))] for size in self.sizes]
        return [line.rstrip() for line in aligned([head, *rows], ">" + "><" * len(names))]

    def _cell(self, size_bytes: int | None) -> tuple[str, str]:
        if size_bytes is None:
            return "-", "-"
        return binary(size_bytes), self.level_name(size_bytes) or "none"

    def _picture(self) -> Iterator[str]:
        """Draw bytes to the right, on a logarithmic scale, and micro-batches downwards."""
        sets = {size: {name: found for name, found in self.sets(size).items() if found} for size in self.sizes}
        ends = [
            *(one for row in sets.values() for one in row.values()),
            *(one.size_bytes for one in self.hierarchy.levels),
        ]
        low, high = math.log(min(ends)), math.log(max(ends))

        def column(size_bytes: float) -> int:
            return round((math.log(size_bytes) - low) / max(high - low, 1.0) * (_WIDTH - 1))

        borders = {column(level.size_bytes): level.name for level in self.hierarchy.levels}
        margin = len("micro-batch")
        yield f"{'':{margin}}  {_placed(borders)}"
        for size, row in sets.items():
            marks = dict.fromkeys(borders, "|")
            marks |= {column(row[name]): letter for name, letter in reversed(_LETTERS.items()) if name in row}
            yield f"{size:>{margin}}  {_placed(marks)}"
        legend = ", ".join(f"{letter} {name}" for name, letter in _LETTERS.items())
        yield f"{'':{margin}}  from {binary(math.exp(low))} to {binary(math.exp(high))}, each | the end of a level"
        yield f"{'':{margin}}  {legend}"


def view_of(hierarchy: MemoryHierarchy, working_set: WorkingSet, sizes: Sequence[int] = ()) -> View:
    """Return a view of the given micro-batches, or of the powers of two up to the first that fits no more."""
    if not sizes:
        memory = max((level.size_bytes for level in hierarchy.levels), default=math.inf)
        largest = working_set.largest_within(memory)
        powers = [2**power for power in range(_MOST_ROWS)]
        sizes = powers if largest is None else [size for size in powers if size // 2 <= max(largest, 1)]
    return View(hierarchy, working_set, tuple(sizes))


def _described(level: Level) -> str:
    bandwidth = level.bandwidth_bytes_per_s
    speed = f" at {bandwidth / 1e12:.2f} TB/s" if bandwidth else ""
    return f"{level.name} {binary(level.size_bytes)}{speed}"


def _placed(marks: Mapping[int, str]) -> str:
    """Return a line with texts at columns; one that would lie on another is put right behind it."""
    line = ""
    for place in sorted(marks):
        gap = max(place - len(line), 1 if line and len(marks[place]) > 1 else 0)
        line += " " * gap + marks[place]
    return line
