"""What a framework's plugin does with hooks, whatever the framework: start, mark, tell, finish; and never raise."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from energy_plugins.measure.budget import Budget
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.rank_part import Rank
from energy_plugins.measure.spans import Kind
from energy_plugins.report.carbon.run_place import kept
from energy_plugins.training.exports import export_if_asked
from energy_plugins.training.figures import TOTALS
from energy_plugins.training.guard import FAILURES, guarded, warn
from energy_plugins.training.limits.limiter import Limiter
from energy_plugins.training.measured import Measured, Outlook
from energy_plugins.training.micro_batch.batcher import MicroBatcher
from energy_plugins.training.place import Devices, Place
from energy_plugins.training.watch import SumOverRanks, Watch
from energy_plugins.tune.micro_batch.sizes import MOST_SIZES

if TYPE_CHECKING:
    from energy_plugins.config import EnergyConfig, MicroBatchConfig, PowerLimitConfig
    from energy_plugins.measure.json_section import JSON
    from energy_plugins.measure.report import Report
    from energy_plugins.training.limits.timing import Timing
    from energy_plugins.training.working_set.followed import TrainingStep


class Monitor:
    """Measures the runs of one training, one after the other.

    It lives in the plugin's callback. Its methods never raise: the first failure in measuring ends the run with one
    warning, and the training goes on. Copies, and those in other processes, measure anew.
    """

    before_run: ClassVar[list[Callable[[], None]]] = []
    """Called before a run is measured in this process: who measures it as a whole stands back."""

    def __init__(self, config: EnergyConfig) -> None:
        self.config = config
        self.run: Measured | None = None
        self.watch: Watch | None = None
        """The budget of the fit that runs. The plugin looks at it, unguarded: that is collective."""
        self.limiter: Limiter | None = None
        """The power limit of the fit that runs. The plugin calls it after each step, unguarded, as it does `watch`."""
        self.timing: Timing | None = None
        """Other times for the limiter than its own."""
        self.batcher: MicroBatcher | None = None
        """The micro-batch of the fit that runs. Whoever runs the batches asks it, unguarded, as `limiter`."""
        self.report: Report | None = None
        self.earlier_j = 0.0
        """What this rank's earlier runs of the same training drew."""
        self.earlier_fit_j: float | None = None
        """Of all ranks, which `earlier_j` is not; None if nobody counted."""
        self._speaks = True
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lives in this process only."""
        return {**self.__dict__, "run": None, "watch": None, "limiter": None, "batcher": None, "report": None}

    @property
    def budget(self) -> Budget | None:
        """The most that a fit may draw."""
        kwh = self.config.measure.energy_budget_kwh
        return None if kwh is None else Budget.of_kwh(kwh)

    # A run.

    def start(  # noqa: PLR0913 - what a run is
        self,
        *,
        who: Rank,
        parent: Path,
        devices: Devices,
        facts: Mapping[str, JSON],
        outlook: Outlook,
        fitting: bool = True,
    ) -> Measured | None:
        """Start measuring, and return the run; None if that failed. All ranks of a training call it, rank 0 prints.

        Args:
            who: which process of the training this is, see `rank_of`.
            parent: where reports go, unless the user named a folder.
            devices: what this process trains on, unless the user named some; None if the framework does not say.
            facts: what a reader of the report needs to know of the trainer.
            outlook: see `Measured`.
            fitting: see `Measured`.
        """
        self.finish(failed=True)  # one that is still there was left by an exception that nobody saw
        self._speaks = who.rank == 0
        self._start(who=who, parent=parent, devices=devices, facts=facts, outlook=outlook, fitting=fitting)
        return self.run

    @guarded
    def _start(  # noqa: PLR0913 - as `start`
        self,
        *,
        who: Rank,
        parent: Path,
        devices: Devices,
        facts: Mapping[str, JSON],
        outlook: Outlook,
        fitting: bool,
    ) -> None:
        measure, report = self.config.measure, self.config.report
        if not measure.enabled:
            return
        place = Place.of(who, self.config, parent, devices)
        try:
            meter = EnergyMeter(
                report.name,
                place.devices,
                folder=place.folder,
                config={**facts, **kept(report), "earlier_j": self.earlier_j},
                power_sensor=measure.power_sensor,
                activity=measure.activity,
                rank=place.who,
                ledger=report.ledger,
                project=report.project,
            )
            for stand_back in tuple(self.before_run):
                stand_back()
            meter.start()
        except FAILURES:
            place.abandon()
            raise
        if place.exchange is not None:
            place.exchange.watch(meter)
        self.run = Measured(meter, place, fitting=fitting, outlook=outlook)
        export_if_asked(meter, report, place.who)
        if report.log or report.progress_bar or self.budget is not None:
            meter.latest(peek=True)  # figures are made from now on, so that no step is missing in them
        atexit.register(self._at_exit)
        if fitting and self.budget is not None and not (meter.run and meter.run.own):
            warn(f"no GPU is measured, so no {self.budget} can be kept")

    def finish(self, *, show: bool = True, failed: bool = False) -> Report | None:
        """Stop measuring, save the report, print it if it is to be shown, and return it; None if no run is measured.

        Rank 0 waits for the last word of the others, up to 10 s, unless the training has ``failed``.
        """
        before = self.report
        self._finish(show=show, failed=failed)
        return self.report if self.report is not before else None

    def _at_exit(self) -> None:
        self.finish(failed=hasattr(sys, "last_value"))  # of an exception that nobody caught

    @guarded
    def _finish(self, *, show: bool, failed: bool) -> None:
        self._stop_tuning()
        run, self.run = self.run, None
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.close()
            if run is None:
                self.earlier_fit_j = watch.total_j(watch.own_j)
        if run is None or run.owner != os.getpid():  # a forked child that exits leaves the run to its parent
            return
        atexit.unregister(self._at_exit)
        run.note_drawn()
        try:
            self.report = report = run.finish(failed=failed)
        except BaseException:
            self._keep_drawn(run, watch)
            raise
        if report.total_j is not None and run.fitting:
            self.earlier_j += report.total_j
            self.earlier_fit_j = None if watch is None else watch.total_j(report.total_j)
        if show and self.config.report.table and self._speaks:
            where = f"\nReport: {run.place.folder}" if run.place.folder is not None else ""
            sys.stdout.write(f"\n{report}{where}\n")
            sys.stdout.flush()

    @guarded
    def discard(self) -> None:
        """Stop measuring and leave nothing: another measures this training."""
        self._stop_tuning()
        run, self.run = self.run, None
        if run is not None:
            atexit.unregister(self._at_exit)
            run.meter.leave_no_entry()
            run.drop()
            if run.place.folder is not None:
                shutil.rmtree(run.place.folder, ignore_errors=True)

    def give_up(self, error: Exception) -> None:
        """End the measurement because of ``error``; its joules so far still count."""
        for tuner in (self.limiter, self.batcher):
            if tuner is not None:
                tuner.lose(f"measuring failed: {error}")
        run, self.run = self.run, None
        if run is not None:
            atexit.unregister(self._at_exit)
            run.note_drawn()
            with suppress(*FAILURES):
                run.drop()
            self._keep_drawn(run, self.watch)
        if not self._warned:
            self._warned = True
            warn(f"measuring failed, training goes on: {error}")

    def _stop_tuning(self) -> None:
        tuners, self.limiter, self.batcher = (self.limiter, self.batcher), None, None
        for tuner in tuners:
            if tuner is not None:
                tuner.close()

    def _keep_drawn(self, run: Measured, watch: Watch | None) -> None:
        """Count what a fit drew that is not measured to its end."""
        if not run.fitting:
            return
        self.earlier_j += run.drawn_j
        if watch is not None:
            watch.own_j = run.drawn_j if run.place.counts else watch.own_j
            self.earlier_fit_j = watch.total_j(watch.own_j)

    # Marks.

    @guarded
    def begin(self, kind: Kind) -> None:
        """Open a span."""
        if self.run is not None:
            self.run.meter.begin(kind)

    @guarded
    def end(self, kind: Kind) -> None:
        """Close it."""
        if self.run is not None:
            self.run.meter.end(kind)

    @guarded
    def fetch_begins(self) -> None:
        """Note that the training loop turns to its loader for a batch."""
        if self.run is not None:
            self.run.steps.fetch_begins()

    @guarded
    def fetch_ends(self) -> None:
        """Note that it has one, or that there is none left."""
        if self.run is not None:
            self.run.steps.fetch_ends()

    @guarded
    def open_step(self, optimizer_step: int) -> None:
        """Open the step that began with the fetch of its first batch."""
        if self.run is not None:
            every = self.config.measure.phases_every_n_steps
            asked = self.limiter is not None and self.limiter.wants_phases
            self.run.steps.open(in_phases=every > 0 and (asked or optimizer_step % every == 0))

    @guarded
    def enter(self, phase: Kind | None) -> None:
        """Go from one phase of the step to the next, or to none."""
        if self.run is not None:
            self.run.steps.enter(phase)

    @guarded
    def close_step(self, samples: int | None, tokens: int | None) -> None:
        """Close the step, and say what it worked on."""
        if self.run is not None:
            self.run.steps.close(samples, tokens)
            self.run.made += 1
            self.run.samples = samples

    @guarded
    def drop_step(self) -> None:
        """Close a step that is open without having become one, such as at the end of an epoch."""
        if self.run is not None:
            self.run.steps.close()

    # Figures, by the key under which every framework logs them.

    def news(self) -> dict[str, float]:
        """Return the latest figures, with means since the last call, and what to expect of the whole fit."""
        found: dict[str, float] = {}
        self._gather(found, peek=False)
        return found

    def totals(self) -> dict[str, float]:
        """Return the totals so far, and begin no new means; nothing if no run is measured, or nothing known of it."""
        found: dict[str, float] = {}
        if self.run is not None:
            if self.earlier_j:
                found["energy/total_j"] = self.earlier_j
            self._gather(found, peek=True)
        return {key: value for key, value in found.items() if key in TOTALS}

    def counted(self) -> dict[str, float]:
        """Return the totals for callbacks that end a training without the key: 0 J is counted before any is known."""
        return {} if self.run is None else {"energy/total_j": self.earlier_j, **self.totals()}

    @guarded
    def _gather(self, found: dict[str, float], *, peek: bool) -> None:
        if self.run is not None:
            found |= self.run.figures(self.earlier_j, peek=peek)
            if not peek:
                found |= self.run.prospects(self.earlier_j)
                if self.batcher is not None and self.batcher.size is not None:
                    found["energy/micro_batch"] = self.batcher.size
                if self.limiter is not None and self.limiter.limit_w is not None:
                    found["energy/power_limit_w"] = self.limiter.limit_w

    # The training's joules, over all its runs.

    @guarded
    def refresh(self) -> None:
        """Look what the run has drawn until now."""
        if self.run is not None:
            self.run.drawn_j = self.run.meter.drawn_j()

    @guarded
    def carry(self, facts: Mapping[str, JSON]) -> None:
        """Have the report say what a trainer knew only after the run had begun."""
        if self.run is not None:
            self.run.meter.carry(facts)

    @guarded
    def note_stop(self, reason: str) -> None:
        """Have the report say why the training was ended early."""
        if self.run is not None:
            self.run.meter.stopped_because(reason)

    @guarded
    def tell(self, watch: Watch) -> None:
        """Say what this rank has drawn and expects to; if it measures no more, what it said last."""
        self.refresh()
        if self.run is not None and self.run.place.counts:
            watch.own_j = self.run.drawn_j
            forecast = self.run.forecast()
            watch.own_expected_j = math.nan if forecast is None else forecast.energy_j

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain numbers and strings: joules so far, and the run that counts them."""
        self.refresh()
        run, watch = self.run, self.watch
        if run is None or not run.fitting:
            fit_j = self.earlier_fit_j if watch is None else watch.total_j(watch.own_j)
            return {"total_j": self.earlier_j, "run": "", **_fit_state(fit_j)}
        fit_j = None if watch is None else watch.total_j(run.drawn_j)
        return {"total_j": self.earlier_j + run.drawn_j, "run": run.key, **_fit_state(fit_j)}

    @guarded
    def load(self, state: Mapping[str, Any]) -> None:
        """Carry on from the joules of an earlier run; the state of the present run changes nothing."""
        if self.run is not None and state["run"] == self.run.key:
            return
        total_j, fit_j = float(state["total_j"]), state.get("fit_j")
        fit_j = None if fit_j is None else float(fit_j)
        if not (math.isfinite(total_j) and math.isfinite(fit_j or 0.0)):
            warn(f"the checkpoint's joules are no numbers ({total_j}, {fit_j}): those are not counted")
        self.earlier_j = total_j if math.isfinite(total_j) else self.earlier_j
        self.earlier_fit_j = fit_j if fit_j is not None and math.isfinite(fit_j) else None

    @guarded
    def forget(self) -> None:
        """Count from zero: a training begins that is no earlier one's sequel."""
        self.earlier_j, self.earlier_fit_j = 0.0, None

    def watch_budget(self, budget: Budget, *, ranks: int, speaks: bool, sum_over_ranks: SumOverRanks) -> Watch:
        """Begin to keep the budget of a fit that has just been started, on every rank."""
        # A training that had no budget counted this rank only.
        earlier_j = self.earlier_j * ranks if self.earlier_fit_j is None else self.earlier_fit_j
        self.watch = Watch(budget, earlier_j, ranks=ranks, speaks=speaks, sum_over_ranks=sum_over_ranks)
        return self.watch

    # The power limit.

    def limit_power(
        self,
        who: Rank,
        sum_over_ranks: SumOverRanks,
        shape: Callable[[], str],
        *,
        asked: PowerLimitConfig | None = None,
    ) -> None:
        """Begin to limit the power of a fit that has just been started, if that is asked for. All ranks call it.

        ``shape`` tells what the model and its precision are known by (`shape_of`); ``asked`` is what is asked of this
        fit alone.
        """
        if self.limiter is not None:
            self.limiter.close()
            self.limiter = None
        asked = self.config.power_limit if asked is None else asked
        if asked.enabled and self.config.measure.enabled:
            self.limiter = Limiter(
                asked,
                self.run,
                who=who,
                sum_over_ranks=sum_over_ranks,
                shape=shape,
                timing=self.timing,
            )

    def tune_micro_batch(  # noqa: PLR0913 - what a training is
        self,
        config: MicroBatchConfig,
        who: Rank,
        sum_over_ranks: SumOverRanks,
        *,
        why_not: str = "",
        most_sizes: int = MOST_SIZES,
        optimizer: str | None = None,
        shape: Callable[[], str] | None = None,
        row_is_step: bool = False,
        training_step: Callable[[], TrainingStep] | None = None,
    ) -> MicroBatcher:
        """Begin to tune the micro-batch of a fit that has just been started, see `MicroBatcher`. All ranks call it."""
        self.batcher = MicroBatcher(
            config,
            self.run,
            who=who,
            sum_over_ranks=sum_over_ranks,
            why_not=why_not,
            most_sizes=most_sizes,
            optimizer=optimizer,
            shape=shape,
            row_is_step=row_is_step,
            training_step=training_step,
            timing=self.timing,
        )
        return self.batcher

    def after_step(self, *, is_optimizers: bool = True) -> None:
        """Let the tuners do what is due after a step. Not guarded: they are collective now and then.

        The micro-batch comes first, for it changes what the GPU draws; then the limit, and then, once, the sizes beside
        the one chosen. Where a micro-batch is tuned, only steps of the optimizer count (``is_optimizers``), for others
        may do next to nothing.
        """
        batcher, limiter = self.batcher, self.limiter
        if batcher is not None:
            if not is_optimizers:
                return
            was_settled = batcher.settled
            batcher.after_step()
            if not batcher.settled:
                return
            if limiter is not None and not was_settled:
                limiter.resume()
        if limiter is not None:
            limiter.after_step()
            if batcher is not None and limiter.slack is not None:
                batcher.check_beside(limiter.slack)


def _fit_state(fit_j: float | None) -> dict[str, float]:
    return {} if fit_j is None else {"fit_j": fit_j}
