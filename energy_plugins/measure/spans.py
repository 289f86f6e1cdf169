"""What training was doing and when: marks of the training thread become spans in GPU time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

_FRONT_NS = 1_000_000
"""A wait that begins this soon after its step does is the step's fetch: nothing was queued before it."""


class Kind(Enum):
    """The kinds of work that reports know by name; users may add their own as plain strings."""

    RUN = "run"
    FIT = "fit"
    VALIDATE = "validate"
    TEST = "test"
    PREDICT = "predict"
    CHECKPOINT = "checkpoint"
    STEP = "step"
    DATA_WAIT = "data_wait"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


class KindCodes:
    """Small integers for kinds, in order of first use; the native log of marks carries only these."""

    UNATTRIBUTED = 0
    RUN = 1
    STEP = 2
    DATA_WAIT = 3

    _MOST = 1000
    """A name for every batch must cost neither memory nor time without end."""

    def __init__(self) -> None:
        self._codes = {"unattributed": 0, Kind.RUN.value: 1, Kind.STEP.value: 2, Kind.DATA_WAIT.value: 3}

    def code(self, kind: Kind | str) -> int:
        """Return the code of ``kind``, a new one if it was never used; beyond a thousand, all are "other kinds"."""
        name = kind.value if isinstance(kind, Kind) else kind
        code = self._codes.get(name)
        if code is None and len(self._codes) >= self._MOST:
            name = "other kinds"
            code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = len(self._codes)
        return code

    def find(self, kind: Kind) -> int | None:
        """Return the code of ``kind``, None if it was never used."""
        return self._codes.get(kind.value)

    @property
    def names(self) -> tuple[str, ...]:
        """Kind names by code."""
        return tuple(self._codes)


@dataclass(slots=True)
class Step:
    """A closed step: its stretch of GPU time, its work, and the idle stretches that belong to it (ns)."""

    start_ns: int
    end_ns: int
    samples: int
    tokens: int
    waits: Sequence[tuple[int, int]]
    stall: tuple[int, int] | None
    phases: Sequence[tuple[int, int]] = ()
    """Spans that lay in it: the code of each kind, and how long it took (ns)."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed span that is not a step (ns)."""

    kind: int
    start_ns: int
    end_ns: int


@dataclass
class Timeline:
    """Turns marks into spans, a batch at a time.

    A mark without a GPU time takes ``max(host time, GPU time of the mark before)``: on one stream work starts neither
    before it is queued nor before the work ahead of it ends. Ends close the innermost open span of their kind, so
    overlapping spans are allowed; a moment belongs to the span opened last.
    """

    steps: list[Step] = field(default_factory=list)
    spans: list[Closed] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)
    """Times at which the innermost span changes; from ``edges[j]`` on it is ``kinds[j]``."""
    kinds: list[int] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    """What was wrong with the marks, and how often."""
    now_ns: int = 0
    _open: list[tuple[int, int]] = field(default_factory=list)
    _waits: list[tuple[int, int]] = field(default_factory=list)
    _phases: list[tuple[int, int]] = field(default_factory=list)
    _idle_from_ns: int | None = None
    _work_from_ns: int | None = None

    def feed(self, marks: NDArray[np.void]) -> None:
        """Take marks in the order in which they were made (the columns of ``_native.MarkLog.drain``)."""
        names = ("host_ns", "gpu_ns", "code", "begin", "samples", "tokens")
        columns: Iterable[tuple[int, ...]] = zip(*(marks[name].tolist() for name in names), strict=True)
        for host_ns, gpu_ns, code, begin, samples, tokens in columns:
            t_ns = self.now_ns = max(gpu_ns if gpu_ns >= 0 else host_ns, self.now_ns)
            if begin:
                self._begin(code, t_ns)
            else:
                self._end(code, t_ns, samples, tokens)

    def close(self, end_ns: int, names: tuple[str, ...], *, cut_short: bool = False) -> None:
        """End everything at ``end_ns``; spans that were never ended are faults, unless marks were ``cut_short``."""
        for code, _ in reversed(self._open.copy()):
            if code != KindCodes.RUN and not cut_short:
                self._fault(f"span '{names[code]}' was never ended; it was closed at the end of the run")
            self._end(code, max(end_ns, self.now_ns), -1, -1)

    def clip(self, end_ns: int) -> None:
        """Cut what ends after ``end_ns``, work still on the GPU when the window closed; drop what began after it."""
        self.steps = [step for step in self.steps if step.start_ns < end_ns or step.end_ns == end_ns]
        self.spans = [span for span in self.spans if span.start_ns < end_ns or span.end_ns == end_ns]
        for step in self.steps:
            step.end_ns, step.start_ns = min(step.end_ns, end_ns), min(step.start_ns, end_ns)
        self.spans = [Closed(span.kind, min(span.start_ns, end_ns), min(span.end_ns, end_ns)) for span in self.spans]

    def open_starts(self) -> list[int]:
        """Return the start times (ns) of spans still open and of waits not yet given to a step."""
        pending = [start for _, start in self._open] + [start for start, _ in self._waits]
        return pending if self._idle_from_ns is None else [*pending, self._idle_from_ns]

    def working(self, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """Return when, between two times (ns), steps had work queued: an open one, too, and none in its stall."""
        found = [(step.stall[1] if step.stall else step.start_ns, step.end_ns) for step in self.steps]
        if self._work_from_ns is not None and not self._fetching(self._work_from_ns):
            found.append((self._work_from_ns, end_ns))
        inside = ((max(from_ns, start_ns), min(to_ns, end_ns)) for from_ns, to_ns in found)
        return [(from_ns, to_ns) for from_ns, to_ns in inside if from_ns < to_ns]

    def _fetching(self, since_ns: int) -> bool:
        """Return whether the open step, at work ``since_ns``, is still in the wait that it began with."""
        return any(code == KindCodes.DATA_WAIT and 0 <= from_ns - since_ns <= _FRONT_NS for code, from_ns in self._open)

    def forget(self, before_ns: int) -> None:
        """Drop segments that ended before ``before_ns``."""
        keep = max(0, int(np.searchsorted(np.asarray(self.edges, np.int64), before_ns, side="right")) - 1)
        del self.edges[:keep], self.kinds[:keep]

    def _begin(self, code: int, t_ns: int) -> None:
        self._open.append((code, t_ns))
        self._segment(code, t_ns)
        if code == KindCodes.STEP:
            self._work_from_ns = t_ns
        elif code not in (KindCodes.RUN, KindCodes.DATA_WAIT) and not self._inside_step():
            self._idle_from_ns = None

    def _end(self, code: int, t_ns: int, samples: int, tokens: int) -> None:
        for position in range(len(self._open) - 1, -1, -1):
            if self._open[position][0] == code:
                break
        else:
            self._fault("a span was ended twice, or ended without having begun; the extra end was ignored")
            return
        if position != len(self._open) - 1:
            self._fault("spans overlap without nesting; shared time belongs to the one opened last")
        _, start_ns = self._open.pop(position)
        self._segment(self._open[-1][0] if self._open else KindCodes.UNATTRIBUTED, t_ns)
        if code == KindCodes.STEP:
            self._end_step(start_ns, t_ns, samples, tokens)
            return
        if code == KindCodes.DATA_WAIT:
            self._waits.append((start_ns, t_ns))
            if self._work_from_ns is not None and self._work_from_ns <= start_ns <= self._work_from_ns + _FRONT_NS:
                self._work_from_ns = t_ns
        elif self._inside_step():
            self._phases.append((code, t_ns - start_ns))
        elif code != KindCodes.RUN:
            self._idle_from_ns = None
            self._waits = [wait for wait in self._waits if wait[0] < start_ns]  # the rest were this span's, no step's
        self.spans.append(Closed(code, start_ns, t_ns))

    def _end_step(self, start_ns: int, end_ns: int, samples: int, tokens: int) -> None:
        stall = None
        if self._idle_from_ns is None and self._waits and self._waits[0][0] <= start_ns:
            self._idle_from_ns = self._waits[0][
                0
            ]  # nobody knows since when the GPU was idle, but it was during the wait
        if self._idle_from_ns is not None and self._work_from_ns is not None:
            stall = (self._idle_from_ns, max(self._work_from_ns, self._idle_from_ns))
        self.steps.append(Step(start_ns, end_ns, samples, tokens, tuple(self._waits), stall, tuple(self._phases)))
        self._waits, self._phases, self._idle_from_ns, self._work_from_ns = [], [], end_ns, None

    def _inside_step(self) -> bool:
        return any(code == KindCodes.STEP for code, _ in self._open)

    def _segment(self, code: int, t_ns: int) -> None:
        if self.edges and self.edges[-1] == t_ns:
            self.kinds[-1] = code
        elif not self.kinds or self.kinds[-1] != code:
            self.edges.append(t_ns)
            self.kinds.append(code)

    def _fault(self, text: str) -> None:
        self.faults[text] = self.faults.get(text, 0) + 1
