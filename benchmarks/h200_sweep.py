"""A sweep on a real GPU: within its budget, and its joules held against the ledger and the GPU's own counter.

Optuna, with its storage in SQLite, searches width, batch and learning rate of a small GPT that learns the Python
standard library's own sources byte by byte, through Lightning. Each trial trains for so many seconds unless the median
pruner or the budget ends it. The sweep has no number of trials: it goes on until its budget of energy is spent, which
is stated before the study is made. If it is not given, it is what --trials trials would draw at the power of the
hungriest configuration, which a warm-up measures through the counter.

How the budget is counted: a study has spent what all its trials have drawn, ended, pruned, and running ones as well. A
trial that runs is looked at once a second, at the end of a training step, so the budget ends it in mid-trial. The
overshoot is what all trials have drawn in the end, by their last words (energy/total_j), beyond the budget.

A process of its own (_counter_reader.py) reads the GPU's energy counter meanwhile. What it rose by in the window of
each trial is compared with the trial's joules and with those of its run in a ledger that this sweep has for itself.

    python benchmarks/h200_sweep.py [--kwh KWH] [--trials 12] [--seconds 12] [--limit 195] [--dry]

``--dry`` tries the whole path on the CPU and a simulated GPU, and writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import numpy as np
import optuna
import torch
from _common import RESULTS, Bar, Table, finish, gpu_names, print_table, say
from _counter_reader import CounterReader, rise_j
from h200_lightning import ByteGpt, Bytes
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from energy_plugins import Report, visible_gpus
from energy_plugins.lightning import EnergyMonitor
from energy_plugins.optuna import EnergyBudgetPruner, EnergyPruningCallback, StudyEnergyBudget
from energy_plugins.optuna.attributes import PRUNED, TOTAL_J
from energy_plugins.optuna.sweeps import sweep_of
from energy_plugins.report.ledger import Ledger
from energy_plugins.report.ledger.runs import Run
from energy_plugins.report.sweep_text import sweep_lines
from energy_plugins.testing import Constant, Simulation, simulated_gpus
from energy_plugins.units import j_to_kwh, kwh_to_j

_READ_EVERY_S = 0.05
"""The counter moves every 100 ms."""
_WARM_S = 8.0
_SETTLED_S = 3.0
"""The part of the warm-up whose power counts."""
_SIMULATED_W = 500.0
_PROJECT = "h200-sweep"


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    widths: tuple[int, ...]
    layers: int
    batches: tuple[int, ...]
    epoch: int
    """Windows of text between validations."""
    validation: int
    """Windows of text in each."""
    workers: int
    warm_s: float


_FULL = Scale((384, 512), 8, (64, 128, 256), 6400, 640, 4, _WARM_S)
_DRY = Scale((16, 32), 1, (1, 2), 8, 2, 0, 1.0)


class Gpt(ByteGpt):
    """A decoder-only transformer on bytes, with a learning rate."""

    def __init__(self, width: int, layers: int, rate: float) -> None:
        super().__init__(width, layers)
        self._rate = rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with AdamW."""
        return torch.optim.AdamW(self.parameters(), self._rate, fused=True)


@dataclass(frozen=True)
class Tried:
    """What three meters say of one trial."""

    trial: optuna.trial.FrozenTrial
    report: Report
    run: Run | None
    counter_j: float

    @property
    def trial_j(self) -> float:
        """What stands in the study."""
        return float(self.trial.user_attrs.get(TOTAL_J, math.nan))

    @property
    def ledger_j(self) -> float:
        """What stands in the ledger."""
        return math.nan if self.run is None else self.run.counted_j


class Sweep:
    """The study, and what its trials leave behind."""

    def __init__(self, folder: Path, scale: Scale, seconds: float, *, dry: bool) -> None:
        self._folder, self._scale, self._seconds, self._dry = folder, scale, seconds, dry
        self.reports: dict[int, Report] = {}
        self.ended: dict[int, str] = {}
        """Why trials were pruned."""

    def warm_up(self) -> float:
        """Train the hungriest configuration, unmeasured; return the wall time of its end."""
        scale = self._scale
        self._fit(Gpt(scale.widths[-1], scale.layers, 3e-4), scale.batches[-1], [], scale.warm_s)
        return time.time()

    def objective(self, trial: optuna.Trial) -> float:
        """Train one configuration."""
        scale = self._scale
        width = trial.suggest_categorical("width", scale.widths)
        batch = trial.suggest_categorical("batch", scale.batches)
        rate = trial.suggest_float("rate", 1e-5, 3e-2, log=True)
        monitor = EnergyMonitor(str(self._folder / "energy"), f"trial-{trial.number}", table=False)
        prune = EnergyPruningCallback(trial, "val_loss", direction="minimize")
        try:
            fit = self._fit(Gpt(width, scale.layers, rate), batch, [monitor, prune], self._seconds)
        except optuna.TrialPruned as why:
            self.ended[trial.number] = str(why)
            raise
        finally:
            if monitor.report is not None:
                self.reports[trial.number] = monitor.report
        return float(fit.callback_metrics["val_loss"])

    def _fit(self, model: Gpt, batch: int, callbacks: list[lightning.Callback], seconds: float) -> lightning.Trainer:
        scale = self._scale
        options: dict[str, Any] = {
            "batch_size": batch,
            "num_workers": scale.workers,
            "pin_memory": not self._dry,
            "drop_last": True,
            "persistent_workers": scale.workers > 0,
        }
        train = DataLoader(Bytes(slice(0, -scale.validation)), shuffle=True, **options)
        validate = DataLoader(Bytes(slice(-scale.validation, None)), **options)
        torch.manual_seed(0)
        trainer = lightning.Trainer(
            accelerator="cpu" if self._dry else "gpu",
            devices=1,
            precision="32-true" if self._dry else "bf16-mixed",
            max_epochs=-1,
            max_time={"seconds": math.ceil(seconds)},
            limit_train_batches=scale.epoch // batch,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self._folder,
        )
        trainer.fit(model, train, validate)
        return trainer


@contextmanager
def own_ledger(folder: Path) -> Iterator[None]:
    """Keep what is measured inside the block out of this user's ledger, in one that lies in ``folder``."""
    wanted = {
        "XDG_STATE_HOME": str(folder / "state"),
        "ENERGY_REPORT_LEDGER": "1",
        "ENERGY_REPORT_PROJECT": _PROJECT,
    }
    with patch.dict(os.environ, wanted):
        yield


def window(report: Report) -> tuple[float, float]:
    """Return when a run started and ended, by the wall clock (s)."""
    start_s = datetime.fromisoformat(report.started).timestamp()
    return start_s, start_s + report.duration_s


def collect(study: optuna.Study, sweep: Sweep, readings: NDArray[np.float64]) -> tuple[list[Tried], list[Run]]:
    """Return what the meters say of each trial, and all runs of the ledger."""
    with Ledger() as ledger:
        ledger.import_spool()
        runs = [run for run in ledger.runs() if run.project == _PROJECT]
    by_id = {run.run_id: run for run in runs}
    tried = []
    for trial in study.trials:
        report = sweep.reports.get(trial.number)
        if report is None:
            raise SystemExit(f"trial {trial.number} ({trial.state.name}) left no report")
        counter_j = rise_j(readings, *window(report))
        tried.append(Tried(trial, report, by_id.get(report.run_id), counter_j))
    return tried, runs


def bars_of(figures: Mapping[str, Any], at_least: int) -> list[Bar]:
    """Return what must be reached."""
    sums = figures["sums"]
    return [
        Bar("trials", figures["trials"], at_least=at_least, show=".0f"),
        Bar("trials that the budget ended while they ran", figures["ended_by_budget"], at_least=1, show=".0f"),
        Bar("what the trials drew beyond the stated budget", figures["overshoot"], at_least=-0.02, at_most=0.02),
        Bar("runs in the ledger for each trial", figures["runs"] / figures["trials"], 1.0, 1.0, ".3f"),
        Bar("sum of trials against the ledger", abs(sums["trials_j"] / sums["ledger_j"] - 1), at_most=0.01, show=".4%"),
        Bar("sum of trials against the counter", abs(sums["trials_j"] / sums["counter_j"] - 1), at_most=0.01),
        Bar("ledger against the counter", abs(sums["ledger_j"] / sums["counter_j"] - 1), at_most=0.01),
    ]  # fmt: skip


def figures_of(tried: list[Tried], runs: list[Run], budget_kwh: float, ended: Mapping[int, str]) -> dict[str, Any]:
    """Return what the result says of the sweep."""
    trials_j, counter_j = math.fsum(one.trial_j for one in tried), math.fsum(one.counter_j for one in tried)
    states = [one.trial.state.name.lower() for one in tried]
    return {
        "trials": len(tried),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "runs": len(runs),
        "ended_by_budget": sum(PRUNED in one.trial.user_attrs for one in tried),
        "why": {str(number): why for number, why in ended.items()},
        "budget_kwh": budget_kwh,
        "drawn_kwh": j_to_kwh(trials_j),
        "overshoot": j_to_kwh(trials_j) / budget_kwh - 1,
        "overshoot_by_counter": j_to_kwh(counter_j) / budget_kwh - 1,
        "sums": {
            "trials_j": trials_j,
            "ledger_j": math.fsum(run.counted_j for run in runs),
            "counter_j": counter_j,
        },
        "worst_trial_against_counter": max(abs(one.trial_j / one.counter_j - 1) for one in tried),
        "warnings": sorted({warning for one in tried for warning in one.report.warnings}),
    }


def table_of(tried: list[Tried]) -> Table:
    """Return the trials one by one."""
    began_s = window(tried[0].report)[0]
    return {
        "number": [one.trial.number for one in tried],
        "state": [one.trial.state.name.lower() for one in tried],
        "val_loss": np.array([_finite(one.trial.value) for one in tried], dtype=object),
        "width": [one.trial.params["width"] for one in tried],
        "batch": [one.trial.params["batch"] for one in tried],
        "rate": [one.trial.params["rate"] for one in tried],
        "start_s": [window(one.report)[0] - began_s for one in tried],
        "duration_s": [one.report.duration_s for one in tried],
        "trial_j": np.array([_finite(one.trial_j) for one in tried], dtype=object),
        "ledger_j": np.array([_finite(one.ledger_j) for one in tried], dtype=object),
        "counter_j": [one.counter_j for one in tried],
        "error_bound_j": np.array([one.report.error_bound_j for one in tried], dtype=object),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def show(tried: list[Tried]) -> None:
    """Print the trials."""
    rows = [("trial", "state", "lasted", "trial J", "ledger J", "counter J", "off")]
    rows += [
        (str(one.trial.number), one.trial.state.name.lower(), f"{one.report.duration_s:.1f} s", f"{one.trial_j:.1f}",
         f"{one.ledger_j:.1f}", f"{one.counter_j:.1f}", f"{one.trial_j / one.counter_j - 1:+.2%}")
        for one in tried
    ]  # fmt: skip
    print_table(rows)


def main() -> int:
    """Run the sweep, print it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kwh", type=float, help="the budget; by default, what --trials trials are expected to draw")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=12.0, help="of training in each trial")
    parser.add_argument("--limit", type=float, default=195.0, help="seconds for it all: no trial begins after that")
    parser.add_argument("--dry", action="store_true", help="on the CPU and a simulated GPU; writes nothing")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        sys.stdout.write("h200_sweep: skipped, it needs a real GPU and CUDA\n")
        return 0
    gpus: AbstractContextManager[Simulation | None] = (
        simulated_gpus(Constant(_SIMULATED_W)) if options.dry else nullcontext()
    )
    with gpus as simulation, tempfile.TemporaryDirectory() as scratch:
        environment = os.environ if simulation is None else simulation.environment()
        uuid = visible_gpus()[0].uuid
        with CounterReader(uuid, _READ_EVERY_S, environment) as reader:
            return _measure(Path(scratch), options, reader)


def _measure(scratch: Path, options: argparse.Namespace, reader: CounterReader) -> int:
    began_s = time.monotonic()
    torch.set_float32_matmul_precision("high")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    scale = _DRY if options.dry else _FULL
    sweep = Sweep(scratch, scale, options.seconds, dry=options.dry)
    warm_s = sweep.warm_up()
    settled_s = min(_SETTLED_S, scale.warm_s / 2)
    power_w = rise_j(reader.readings(), warm_s - 0.5 - settled_s, warm_s - 0.5) / settled_s
    expected_j = power_w * options.seconds * (options.trials - 0.4)  # the last is to be ended while it runs
    budget_kwh = options.kwh or float(f"{j_to_kwh(expected_j):.3g}")
    say(f"the hungriest configuration draws {power_w:.0f} W; the budget is {budget_kwh:g} kWh, stated before the study")
    pruner = EnergyBudgetPruner(optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1))
    study = optuna.create_study(
        storage=f"sqlite:///{scratch / 'sweep.db'}",
        study_name="bytes",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=pruner,
    )
    study.set_metric_names(["val_loss"])
    budget = StudyEnergyBudget(budget_kwh).begin(study)
    left_s = options.limit - (time.monotonic() - began_s)
    with own_ledger(scratch):  # after the warm-up, which would be a run in it, too
        study.optimize(sweep.objective, timeout=left_s, callbacks=[budget])
        readings = reader.readings()
        tried, runs = collect(study, sweep, readings)
    show(tried)
    found = figures_of(tried, runs, budget_kwh, sweep.ended)
    found |= {"warm_up_w": power_w, "seconds_in_all": time.monotonic() - began_s}
    say(f"budget {kwh_to_j(budget_kwh):.0f} J, drawn {found['sums']['trials_j']:.0f} J: {found['overshoot']:+.2%}; "
        f"by the counter {found['overshoot_by_counter']:+.2%}; {found['seconds_in_all']:.0f} s in all")  # fmt: skip
    for number, why in sweep.ended.items():
        say(f"trial {number}: {why}")
    text = "\n".join(sweep_lines(sweep_of(study)))
    say(f"\n{text}\n")
    bars = bars_of(found, options.trials)
    if options.dry:
        say("\n".join(map(str, bars)))
        say("dry, SIMULATED: nothing is written, and these figures mean nothing")
        return 0
    (RESULTS / "h200_sweep.txt").write_text(f"{text}\n", encoding="utf-8")
    raw = {
        "trials": table_of(tried),
        "counter": {"wall_s": readings[:, 0] - readings[0, 0], "energy_j": readings[:, 1] - readings[0, 1]},
    }
    return finish("h200_sweep", gpus=gpu_names(), figures={"sweep": found}, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
