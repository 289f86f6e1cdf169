"""One window of a meter, from its start to its report."""

from __future__ import annotations

import math
import os
import platform
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from numbers import Integral

from energy_plugins import _native
from energy_plugins.errors import EnergyError
from energy_plugins.measure.activity import plan_activity
from energy_plugins.measure.baseline_store import recall
from energy_plugins.measure.collector import Collector
from energy_plugins.measure.cpu import CpuMeter, plan_cpu
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.folders import report_folder
from energy_plugins.measure.heartbeat import SoFar
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.lanes import Lanes
from energy_plugins.measure.ledger_entry import Status
from energy_plugins.measure.ledger_start import begin_heartbeat
from energy_plugins.measure.limit_part import LimitPart
from energy_plugins.measure.live import Live, StepBatch
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.neighbours import Neighbours
from energy_plugins.measure.notices import Notices
from energy_plugins.measure.opening import await_plan, open_marks, silent_driver, start_sampler
from energy_plugins.measure.options import Options
from energy_plugins.measure.patience import Aside
from energy_plugins.measure.report import Report, write_header
from energy_plugins.measure.reporting import Facts, State, compose
from energy_plugins.measure.sensors import LIVE_DRAIN_PERIOD_NS, SensorPlan
from energy_plugins.measure.spans import Kind, KindCodes
from energy_plugins.measure.spill import Spill
from energy_plugins.measure.streams import current_stream

_STOP_WAIT_S = 0.25
"""Samples arrive 0.1-0.2 s late; `EnergyMeter.stop` waits this long for the last ones."""
_IDLE_S = 0.2
"""Between looks of the collector when nothing tells it to wake."""
_STUCK_ROUNDS = 2
"""Rounds of `_ROUND_S` without a drain from which on the driver is said to hang."""
_ROUND_S = 2.0
"""How long the collector waits for a drain, of which there is one every 1.2 s."""
_SLEPT_NS = 100_000_000
"""The two clocks that tell how long the machine slept are read one after the other."""
_HEADER_PERIOD_NS = 30_000_000_000
"""How often ``report.json`` is brought up to date as the run goes, more often at first; the columns beside it are
appended every few seconds."""
_MOST_COUNTED = 2**63 - 1
"""The largest count that a mark carries."""
_MOST_BATCHES = 1024
"""Of steps with figures of their own; there is one each 1.3 s."""
_MOST_AHEAD_NS = 5_000_000_000
"""How far what was drawn is guessed beyond what is known of it."""


class Run:
    """One window of a meter, from its start to its report; ``asked`` is `Options.ask` of the same options."""

    def __init__(self, options: Options, asked: Aside[SensorPlan]) -> None:
        drivers = current_drivers()
        self.owner = os.getpid()
        self._clock = drivers.clock
        self._codes = KindCodes()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._notices = Notices()
        self._plan = await_plan(asked, self._notices)
        self._cpu_plan = plan_cpu(drivers)
        self._activity = plan_activity(self._plan, drivers.proc, wanted=options.activity)
        if self._activity.warning is not None:
            self._notices.say(self._activity.warning)
        self.uuids = self._plan.sampled
        self.own = tuple(gpu.uuid for gpu in self._plan.gpus)
        self._folder = report_folder(options.folder)
        self._marks = open_marks(drivers, self._plan, self._notices)
        self._sampler = self._listen()
        self._facts = Facts(
            run_id=uuid.uuid4().hex,
            name=options.name,
            node=platform.node(),
            started=datetime.fromtimestamp(self._clock.wall_ns() * 1e-9, UTC).isoformat(timespec="milliseconds"),
            config=options.config,
            plan=self._plan,
            folder=self._folder,
            activity=self._activity.on,
            baselines=recall(self.own),
            rank=options.rank,
        )
        self._note_doubts()
        self.stopped = ""
        """Why the training was ended early: for framework modules."""
        self.power_limit: LimitPart | None = None
        """What is to be said of the power limit: for framework modules."""
        self._status = Status.FINISHED
        self.micro_batch: MicroBatchPart | None = None
        """The same of the micro-batch."""
        lanes = Lanes(self._plan, self._activity)
        self._neighbours = Neighbours(self.uuids, drivers)
        self._neighbours.begin()
        self.start_ns = self._clock.now_ns()
        self._cpu = CpuMeter(self._cpu_plan, self.start_ns, options.cpu_estimate)
        self._marks.mark(KindCodes.RUN, begin=True)
        self.begin_step = partial(self._marks.begin, KindCodes.STEP, current_stream)
        """Mark the beginning of a step: one call of native code in every step of a training."""
        self._end_ns: int | None = None
        self._spill = Spill(
            self._folder, self.uuids, self.start_ns, keep_power=options.keep_power, activity=self._activity.on
        )
        lanes.open(self.start_ns, self._spill)
        self._collector = Collector(self._sampler, self._marks, self._plan, self.start_ns, self._spill, lanes=lanes)
        self._header_ns: int | None = None
        self.heartbeat = begin_heartbeat(options, self._facts, self._notices.say, threaded=self._clock.threaded)
        self._drawn_j = 0.0
        self._drains = 0
        self._slept_ns = self._clock.suspended_ns()
        self._begin_collecting()

    def carry(self, config: Mapping[str, JSON]) -> None:
        """Add to what the report carries along."""
        self._facts = replace(self._facts, config={**self._facts.config, **config})

    def end_step(self, samples: int | None, tokens: int | None) -> None:
        """Mark the end of a step, and what it worked on. Kept short: it runs in every step of a training."""
        if samples is None:
            samples = -1
        elif type(samples) is not int or not 0 <= samples <= _MOST_COUNTED:
            samples = self._count(samples, "samples")
        if tokens is None:
            tokens = -1
        elif type(tokens) is not int or not 0 <= tokens <= _MOST_COUNTED:
            tokens = self._count(tokens, "tokens")
        self._marks.mark(KindCodes.STEP, False, current_stream(), samples, tokens)

    def mark(  # noqa: PLR0913 - what a mark carries
        self,
        kind: Kind | str,
        *,
        begin: bool,
        event: bool,
        at_ns: int | None,
        samples: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Mark the beginning or the end of a span of any kind."""
        code = self._codes.code(kind)
        counts = tuple(
            -1 if value is None else self._count(value, name)
            for value, name in ((samples, "samples"), (tokens, "tokens"))
        )
        if at_ns is not None:
            self._marks.mark_at(code, begin, at_ns, *counts)
        else:
            self._marks.mark(code, begin, current_stream() if event else None, *counts)

    def _count(self, value: object, name: str) -> int:
        """Return a count as marks carry it, -1 for none; what is no count is said in the report."""
        size = ""
        if type(value) is int or isinstance(value, Integral):
            if 0 <= (count := int(value)) <= _MOST_COUNTED:
                return count
            size = "negative " if count < 0 else "huge "
        # Not the value: reading a tensor's waits for the GPU, and each would be a warning of its own.
        found = f"{size}{type(value).__name__}"
        self._notices.say(f"{name} must be a whole number from 0 on, got a {found}; it was left out")
        return -1

    def expect(self, since_ns: int | None) -> None:
        """Announce marks made in hindsight."""
        self._collector.expected_ns = since_ns

    def live(self) -> Live:
        """Return the late figures, which are made from now on."""
        if not self._collector.live_wanted:
            self._collector.live_wanted = True
            if self._sampler is not None:
                self._sampler.drain_every(LIVE_DRAIN_PERIOD_NS)
        return self._collector.live

    def listen_to_steps(self) -> deque[StepBatch]:
        """Return a queue to which the late figures of each step go from now on, before `live` says that it has them.

        Of those that nobody takes away, the oldest are dropped.
        """
        figures = self._collector.figures
        figures.backward_code = partial(self._codes.find, Kind.BACKWARD)
        queue: deque[StepBatch] = deque(maxlen=_MOST_BATCHES)
        figures.heard.append(queue)
        self.live()
        return queue

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that are measured, without slices."""
        return self._plan.gpus

    @property
    def facts(self) -> Facts:
        """What was known of this run when it started."""
        return self._facts

    @property
    def limits_w(self) -> tuple[float, ...]:
        """The power limit of each GPU, as of the collector's last reading; NaN of one that has told none."""
        return self._collector.lanes.limits_w

    def drawn_j(self) -> float:
        """Return about what was drawn until now, a finite number of joules.

        That is what is known, and the mean power for the second or so that is not; for no more than 5 s of it.
        """
        live = self.live()
        known_j, known_ns = live.known_j, live.t_ns - self.start_ns
        if known_ns > 0 and math.isfinite(known_j):
            ahead_ns = min(self._clock.now_ns() - live.t_ns, _MOST_AHEAD_NS)
            self._drawn_j = known_j * (known_ns + ahead_ns) / known_ns
        return self._drawn_j

    def finish(self) -> Report:
        """Close the window and return its report."""
        self._end_ns = self._clock.now_ns()
        self._cpu.look(self._end_ns)
        self._marks.mark_at(KindCodes.RUN, False, self._end_ns)
        self._neighbours.end()
        if self._sampler is not None:
            self._sampler.read_counter()
            self._clock.attach(self._tick)  # virtual time learns that something is due at once
            self._clock.sleep(max(_STOP_WAIT_S - (self._clock.now_ns() - self._end_ns) * 1e-9, 0.0))
            self._pump()
            self._stopping.set()
            self._sampler.stop()  # first: the collector may be waiting for a driver that hangs
        self._end_collecting()
        self._neighbours.join()
        with self._lock:
            self._note_sleep()
            if misses := self._missed_events():
                self._notices.say(
                    f"{misses} marks had no CUDA event and took the host's time; their steps' ends are less sure"
                )
            if unresolved := self._marks.resolve():
                self._notices.say(
                    f"{unresolved} marks were still on the GPU when the meter stopped; the last steps are missing"
                )
            with self._notices.kept_from_training():
                self._cpu.take(self._sampler)
                self._collector.finish(self._end_ns, self._codes.names, cut_short=unresolved > 0)
            self._spill.close()
        report = self.report(complete=True)
        self.heartbeat.end(self._status, SoFar.of(report))
        self._write_header(report)  # meanwhile the ledger's entry is written
        if (trouble := self.heartbeat.close()) is not None:
            report = replace(report, warnings=(*report.warnings, trouble))
            self._write_header(report)
        return report

    @property
    def run_id(self) -> str:
        """What the report and the ledger call this run."""
        return self._facts.run_id

    def failed(self) -> None:
        """Have the ledger say that what was measured failed."""
        if self._status is Status.FINISHED:
            self._status = Status.FAILED

    def discard(self) -> None:
        """Have the ledger not count this run."""
        self._status = Status.DISCARDED

    def _missed_events(self) -> int:
        """Return how many marks wanted an event and got none although others did."""
        stats = self._marks.stats
        return stats.event_misses if stats.events else 0

    def report(self, *, complete: bool) -> Report:
        """Return the report, of what is settled so far unless ``complete``."""
        if not complete:
            with self._lock:
                return self._compose(complete=False)
        return self._compose(complete=True)

    def _compose(self, *, complete: bool) -> Report:
        self._note_errors()
        final_ns = self._end_ns if complete else None
        if final_ns is None:
            self._cpu.look(self._clock.now_ns())
        state = State(
            end_ns=self._collector.settlement.settled_ns if final_ns is None else final_ns,
            complete=complete,
            names=self._codes.names,
            marks=self._marks.stats,
            sampler=self._sampler.stats() if self._sampler is not None else None,
            cpu=self._cpu.energy(self._collector.settlement.settled_ns if final_ns is None else final_ns),
            warnings=self._notices.texts,
            neighbours=self._neighbours,
            stopped=self.stopped,
            power_limit=self.power_limit,
            ledger_s=self.heartbeat.cpu_s,
            micro_batch=self.micro_batch,
        )
        return compose(self._facts, self._collector, state)

    def _listen(self) -> _native.Sampler | None:
        """Start the sampler; where the driver hangs there is nothing to sample."""
        try:
            return start_sampler(self._plan, self._cpu_plan, self._clock, self._marks, activity=self._activity.on)
        except TimeoutError as error:
            self._plan, self.uuids, self.own = silent_driver(error), (), ()
            self._notices.say(str(self._plan.nothing_because))
            return None

    def _begin_collecting(self) -> None:
        if not self._clock.threaded:
            self._clock.attach(self._tick)
            return
        self._thread = threading.Thread(target=self._collect_forever, name="energy-collector", daemon=True)
        self._thread.start()

    def _end_collecting(self) -> None:
        self._stopping.set()
        if self._thread is None:
            self._clock.detach(self._tick)
            return
        self._thread.join(timeout=0.5)

    def _collect_forever(self) -> None:
        stuck = 0
        while not self._stopping.is_set():
            if self._sampler is None:
                self._stopping.wait(_IDLE_S)
                self._marks.resolve()
            elif (drains := self._sampler.wait_drained(_ROUND_S)) == self._drains:
                self._stopping.wait(_IDLE_S)
                self._marks.resolve()  # its thread has ended, or hangs
                stuck += 1
            else:
                self._drains, stuck = drains, 0
            if stuck == _STUCK_ROUNDS:
                text = "the driver did not answer for seconds; what it keeps of them when it does is measured"
                self._notices.say(text)
            if not self._stopping.is_set():
                self._collect(self._clock.now_ns())

    def _tick(self, now_ns: int) -> int:
        """Virtual time's stand-in for all threads."""
        self._neighbours.tick(now_ns)
        if self._sampler is None:
            self._marks.resolve()
            self._collect(now_ns)
            return now_ns + 1_000_000_000
        deadline = self._sampler.tick(now_ns)
        if (drains := self._sampler.stats().drains) > self._drains:
            self._drains = drains
            self._collect(self._clock.now_ns())
        return deadline

    def _collect(self, now_ns: int) -> None:
        with self._lock, self._notices.kept_from_training():
            if self._end_ns is not None:
                return  # it took so long to get here that the window has been closed
            self._cpu.take(self._sampler)
            self._note_sleep()
            self._collector.collect(now_ns)
            self._cpu.forget(self._collector.settlement.settled_ns)
            self._note_errors()
            settled_ns, before_ns = self._collector.settlement.settled_ns, self._header_ns
            wait_ns = min(_HEADER_PERIOD_NS, (settled_ns - self.start_ns) // 3)
            if before_ns is None or settled_ns - before_ns > wait_ns:
                self._header_ns = settled_ns
                self._write_header(self._compose(complete=False))
            if self.heartbeat.due(now_ns):
                self.heartbeat.beat(now_ns, self._collector.so_far(self.own))

    def _note_sleep(self) -> None:
        slept_ns = self._clock.suspended_ns()
        if slept_ns - self._slept_ns > _SLEPT_NS:
            self._slept_ns = slept_ns
            self._collector.slept()
            text = "the machine was suspended; that time is in no span, and what the GPUs drew in it in no joule"
            self._notices.say(text)

    def _pump(self) -> None:
        """Fetch the last samples now."""
        if self._sampler is None:
            return
        if self._clock.threaded:
            self._sampler.drain_now()
            self._sampler.wait_drained(0.05)
        else:
            self._sampler.drain_now()
            self._sampler.tick(self._clock.now_ns())

    def _write_header(self, report: Report) -> None:
        try:
            write_header(self._folder, report)
        except EnergyError as error:
            self._notices.say(f"the report could not be written: {error}")

    def _note_doubts(self) -> None:
        """Say what speaks against the idle baselines that are remembered."""
        baselines, drivers = self._facts.baselines, {gpu.uuid: gpu.driver for gpu in self._plan.gpus}
        doubts = [idle.doubts(self._facts.started, drivers[uuid]) for uuid, idle in baselines.idle.items()]
        for text in ([baselines.trouble] if baselines.trouble else []) + [text for texts in doubts for text in texts]:
            self._notices.say(text)

    def _note_errors(self) -> None:
        # Events were recorded on the GPU of this process, and with several it is not known here which that is.
        self._neighbours.computing = self._marks.stats.events > 0 and len(self.uuids) == 1
        for text in self._neighbours.warnings():
            self._notices.say(text)
        if self._sampler is not None:
            for device, text in self._sampler.take_errors():
                self._notices.say(f"{self.uuids[device]}: {text}" if device >= 0 else text)
        if self._spill.error is not None:
            self._notices.say(f"the report's columns end early: {self._spill.error}")
        for faults in (
            self._collector.timeline.faults,
            *(track.faults for track in self._collector.tracks),
            self._cpu.faults,
        ):
            for text in faults:
                self._notices.say(text)
