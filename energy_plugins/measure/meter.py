"""The meter: what users and framework modules hold."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from energy_plugins.errors import EnergyError
from energy_plugins.measure.folders import drop_private_folders
from energy_plugins.measure.options import Options

if TYPE_CHECKING:
    from energy_plugins.distributed import RankExchange
    from energy_plugins.measure.baseline import Baseline
    from energy_plugins.measure.cpu_estimate import CpuEstimate
    from energy_plugins.measure.devices import Gpu
    from energy_plugins.measure.json_section import JSON
    from energy_plugins.measure.limit_part import LimitPart
    from energy_plugins.measure.live import Live
    from energy_plugins.measure.micro_batch_part import MicroBatchPart
    from energy_plugins.measure.progress import Progress
    from energy_plugins.measure.rank_part import Rank
    from energy_plugins.measure.report import Report
    from energy_plugins.measure.run import Run
    from energy_plugins.measure.spans import Kind


@dataclass(slots=True)
class StepHandle:
    """A step, to be used with ``with``; what it worked on may be said before it ends."""

    meter: EnergyMeter
    samples: int | None = None
    tokens: int | None = None

    def __enter__(self) -> Self:
        run = self.meter.run
        if run is not None:
            run.begin_step()
        return self

    def __exit__(self, *exc_info: object) -> None:
        run = self.meter.run
        if run is not None:
            run.end_step(self.samples, self.tokens)


class EnergyMeter:
    """Measures the energy of a stretch of training, step by step, without slowing it.

    Nothing happens before `start` (or ``with``). The window opens when `start` returns and closes when `stop` is
    called; `stop` then waits up to 0.3 s for the last samples. A meter may be started again after it was stopped; each
    window has its own report.

    Args:
        name: what the report calls the run.
        devices: the GPUs to measure, as CUDA ordinals, UUIDs or `Gpu` values; all that this process may see when left
        out.
        folder: where the report is written as the run goes; a private folder that goes with the meter when left out.
        config: what the report should carry along, such as hyperparameters (JSON values).
        power_sensor: the name of the power sensor to use instead of the best one ("instant power", say; a report's
        `devices` say which there are).
        cpu_estimate: what to estimate the CPU's energy from where nothing measures it; it is in no total.
        activity: whether to read how busy the GPUs' parts are (Hopper and newer), and their state, once a second; not
        done beside a running DCGM profiler, which the report then says.
        keep_power: whether the report has power and state over time, about 80 MB a day for each GPU on disk.
        distributed: whether this is one of several processes of a training, as torchrun starts them, each of which has
        such a meter. Each measures the GPU that it uses, reports to ``<folder>/rank-<k>``, and rank 0, to ``folder``,
        with `Report.ranks`: all of them side by side, for which its `stop` waits up to 10 s.
        rank: which process of a training this is, where `energy_plugins.distributed` is used directly.
        ledger: whether the run is kept in this user's ledger; if left out, unless ENERGY_REPORT_LEDGER is 0.
        project: what the ledger books the run on; if left out, what ENERGY_REPORT_PROJECT says, or else the name of the
        git repository or the folder that the program runs in.
    """

    def __init__(  # noqa: PLR0913 - each is a separate wish of the user
        self,
        name: str | None = None,
        devices: Sequence[int | str | Gpu] | None = None,
        *,
        folder: str | Path | None = None,
        config: Mapping[str, JSON] | None = None,
        power_sensor: str | None = None,
        cpu_estimate: CpuEstimate | None = None,
        activity: bool = False,
        keep_power: bool = True,
        distributed: bool = False,
        rank: Rank | None = None,
        ledger: bool | None = None,
        project: str | None = None,
    ) -> None:
        self._options = Options(
            name=name or "run",
            devices=devices,
            folder=Path(folder) if folder is not None else None,
            config=dict(config or {}),
            power_sensor=power_sensor,
            cpu_estimate=cpu_estimate,
            activity=activity,
            keep_power=keep_power,
            rank=rank,
            ledger=ledger,
            project=project,
        )
        self._distributed = distributed
        self._exchange: RankExchange | None = None
        self._folder: Path | None = None
        """Of this rank's report."""
        self.run: Run | None = None
        """The open window: for framework modules and tests."""
        self._final: Report | None = None
        self._seen: Live | None = None
        self._ended: list[Callable[[Report | None], None]] = []
        """Called when the window has been closed."""

    @staticmethod
    def baseline(seconds: float = 10.0, devices: Sequence[int | str | Gpu] | None = None) -> Baseline:
        """Measure what GPUs draw while nothing runs on them, all visible ones if ``devices`` are left out.

        It is remembered on this node for this user, and reports of later runs say how much of their joules is above
        it. Do it before CUDA is used, or in a process of its own: a CUDA context alone draws more.

        Raises:
            ValueError: ``seconds`` is no number from 2 on.
            BusyError: a GPU is at work, or a process has it open.
            DeviceError: a GPU is not there, or cannot be measured.
        """
        from energy_plugins.measure.baseline import measure_baseline  # noqa: PLC0415 - few programs need it

        return measure_baseline(seconds, devices)

    @property
    def running(self) -> bool:
        """Whether a window is open."""
        return self.run is not None and self.run.owner == os.getpid()

    def start(self) -> Self:
        """Open a window.

        What cannot be measured does not raise: it warns once, and stands in the report.

        Raises:
            EnergyError: the meter runs already.
            ReportError: the folder holds a report already, or cannot be written.
            DeviceError: ``devices`` names a GPU that is not there, or ``power_sensor`` a sensor that a GPU lacks.
        """
        if self.running:
            message = "this meter is running; stop it before starting it again"
            raise EnergyError(message)
        self._final = self._seen = None
        options = self._options
        if self._distributed:
            from energy_plugins.distributed import RankExchange  # noqa: PLC0415 - the one import upward, for many ranks

            self._exchange = RankExchange(options.name)
            options = self._exchange.place(options)
            self._folder = options.folder
        asked = options.ask()
        from energy_plugins.measure.run import Run  # noqa: PLC0415 - much to import the first time: the driver answers

        self.run = Run(options, asked)
        _LIVE.add(self)
        if self._exchange is not None:
            self._exchange.watch(self)
        return self

    def stop(self, *, failed: bool = False) -> None:
        """Close the window; does nothing when none is open. What has ``failed`` is called so in the ledger."""
        self._stop(failed=failed)

    def _stop(self, *, failed: bool) -> None:
        if not self.running or self.run is None:
            return
        run, self.run = self.run, None
        _LIVE.discard(self)
        if failed:
            run.failed()
        try:
            self._final = run.finish()
        finally:
            ended, self._ended = self._ended, []
            for call in ended:
                call(self._final)
        if self._exchange is not None:
            self._final = self._exchange.finish(self._final, self._folder, failed=failed)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self._stop(failed=exc_info[0] is not None)

    def begin(self, kind: Kind | str, *, event: bool = False, at_ns: int | None = None) -> None:
        """Mark the beginning of a span: one clock read, and with ``event`` one CUDA event on the current stream.

        ``at_ns`` is a CLOCK_MONOTONIC time the caller took before; it excludes an event.
        """
        if self.run is not None:
            self.run.mark(kind, begin=True, event=event, at_ns=at_ns)

    def end(
        self,
        kind: Kind | str,
        *,
        event: bool = True,
        at_ns: int | None = None,
        samples: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Mark the end of the innermost span of ``kind``, and say what it worked on.

        Counts that are no whole numbers from zero on are left out of the report, which says so.
        """
        run = self.run
        if run is not None:
            run.mark(kind, begin=False, event=event, at_ns=at_ns, samples=samples, tokens=tokens)

    def expect(self, since_ns: int | None) -> None:
        """Announce marks made in hindsight: with ``at_ns`` from ``since_ns`` on, until called again with None."""
        if self.run is not None:
            self.run.expect(since_ns)

    @contextmanager
    def span(self, kind: Kind | str) -> Iterator[None]:
        """Measure what runs inside the block as ``kind``, in GPU time."""
        self.begin(kind, event=True)
        try:
            yield
        finally:
            self.end(kind)

    def step(self, *, samples: int | None = None, tokens: int | None = None) -> StepHandle:
        """Measure one training step; ``samples`` and ``tokens`` may also be set on the handle inside the block."""
        return StepHandle(self, samples, tokens)

    def latest(self, *, peek: bool = False) -> Progress | None:
        """Return how the run goes, None before anything is known or where no GPU is measured.

        Cheap: it waits for nothing and computes next to nothing. With ``peek`` the next call's means still begin where
        this one's did.
        """
        run = self.run
        if run is None or not run.own:
            return None
        from energy_plugins.measure.progress import Progress  # noqa: PLC0415 - for logs only

        now, before = run.live(), self._seen
        if not peek:
            self._seen = now
        return Progress.between(now, before, run.own, run.start_ns)

    def drawn_j(self) -> float:
        """Return about how many joules were drawn since the window opened, 0 if none is open.

        Those of the last second or so are a guess by the mean power: it is for decisions, not for reports.
        """
        return 0.0 if self.run is None else self.run.drawn_j()

    def stopped_because(self, reason: str) -> None:
        """Have the report say why the training was ended early."""
        if self.run is not None:
            self.run.stopped = reason

    def carry(self, config: Mapping[str, JSON]) -> None:
        """Have the report carry along what was not known yet when the window opened."""
        if self.run is not None:
            self.run.carry(config)

    def leave_no_entry(self) -> None:
        """Have the ledger not count this window: another meter measures the same joules."""
        if self.run is not None:
            self.run.discard()

    def limited(self, power_limit: LimitPart) -> None:
        """Have the report say what became of the power limit."""
        if self.run is not None:
            self.run.power_limit = power_limit

    def micro_batched(self, micro_batch: MicroBatchPart) -> None:
        """Have the report say what became of the micro-batch."""
        if self.run is not None:
            self.run.micro_batch = micro_batch

    def after_stop(self, call: Callable[[Report | None], None]) -> None:
        """Have ``call`` called once the open window has been closed, with its report; with None if that failed."""
        self._ended.append(call)

    def report(self) -> Report:
        """Return the report: of the window that was closed last, or of what has been settled of the open one.

        Raises:
            EnergyError: the meter was never started.
        """
        if self.running and self.run is not None:
            return self.run.report(complete=False)
        if self._final is None:
            message = "there is nothing to report: start the meter first"
            raise EnergyError(message)
        return self._final


_LIVE: set[EnergyMeter] = set()
"""Meters that run. They are held until they stop: one that its user dropped is stopped at exit, with its report."""


@atexit.register
def _at_exit() -> None:
    """Stop meters that were left running, then drop the private folders."""
    for meter in list(_LIVE):
        try:
            meter.stop(failed=hasattr(sys, "last_value"))  # of an exception that nobody caught
        except (EnergyError, OSError) as error:
            warnings.warn(f"energy: a meter could not be stopped at exit: {error}", RuntimeWarning, stacklevel=2)
    drop_private_folders()
