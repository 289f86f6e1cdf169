"""A process measured as one run, for programs whose training nobody else measures."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.rank_part import Rank
from energy_plugins.report.carbon.run_place import kept
from energy_plugins.training.exports import export_if_asked
from energy_plugins.training.folder import new_folder
from energy_plugins.training.guard import guarded, warn
from energy_plugins.training.monitor import Monitor
from energy_plugins.training.place import Devices

if TYPE_CHECKING:
    from energy_plugins.config import EnergyConfig
    from energy_plugins.distributed import RankExchange


class Process:
    """One run from start to finish, which leaves no report if the training of a framework is measured in between.

    A program without a framework does not say which GPU is whose. So each process of a training measures the one of its
    local rank, and rank 0's report has them all. Where a process only knows that it is not the first of its machine, it
    leaves all GPUs to that one.
    """

    def __init__(self, config: EnergyConfig, command: list[str]) -> None:
        self._config = config
        self._command = command
        self._parent = Path.cwd()
        self._meter: EnergyMeter | None = None
        self._exchange: RankExchange | None = None

    @guarded
    def start(self) -> None:
        """Start measuring."""
        # The variables alone: whether there is a torch is the program's business, and not known yet.
        who = Rank.of(os.environ)
        if who.alone and os.environ.get("LOCAL_RANK", "0") != "0":
            return
        exchange = None if who.alone else _exchange(who)
        measure = self._config.measure
        devices: Devices = measure.devices
        if exchange is not None and devices is None:
            devices = exchange.own_gpus()
        meter = EnergyMeter(
            self._config.report.name,
            devices,
            config={"stage": "process", "command": list(self._command), **kept(self._config.report)},
            power_sensor=measure.power_sensor,
            activity=measure.activity,
            rank=None if exchange is None else exchange.who,
            ledger=self._config.report.ledger,
            project=self._config.report.project,
        )
        self._meter, self._exchange = meter.start(), exchange
        if exchange is not None:
            exchange.keep(meter)
        Monitor.before_run.append(self.stand_back)
        export_if_asked(meter, self._config.report, None if exchange is None else exchange.who)

    def stand_back(self) -> None:
        """Leave the measuring to another."""
        meter = self._forget()
        if meter is not None:
            meter.leave_no_entry()
            meter.stop()

    @guarded
    def finish(self) -> None:
        """Stop measuring, and save and print the report.

        Ranks tell each other only here, because that needs torch, which a program imports when it likes. While an
        exception ends the program none is waited for.
        """
        meter = self._forget()
        if meter is None or not meter.running:  # a forked child leaves the run to its parent
            return
        failed = isinstance(sys.exc_info()[1], Exception)
        meter.stop(failed=failed)
        report, exchange = meter.report(), self._exchange
        if exchange is not None:
            _import_torch()
        folder = self._folder() if exchange is None else exchange.agree(self._folder, failed=failed)
        if folder is not None:
            report.save(folder)
        if exchange is not None:
            report = exchange.finish(report, folder, failed=failed)
        if self._config.report.table and (exchange is None or exchange.who.rank == 0):
            where = "" if folder is None else f"\nReport: {folder}"
            print(f"\n{report}{where}", flush=True)  # noqa: T201 - as the plugins do

    def give_up(self, error: Exception) -> None:
        """Measure no more because of ``error``, with one warning; the program goes on."""
        self._forget()
        if self._exchange is not None:
            self._exchange.abandon()
        warn(f"measuring failed, the program goes on: {error}")

    def _folder(self) -> Path:
        parent = Path(self._config.report.folder or self._parent / "energy")
        return new_folder(parent, self._config.report.name or "run")

    def _forget(self) -> EnergyMeter | None:
        if self.stand_back in Monitor.before_run:
            Monitor.before_run.remove(self.stand_back)
        meter, self._meter = self._meter, None
        return meter


def _exchange(who: Rank) -> RankExchange:
    from energy_plugins.distributed import RankExchange, this_rank  # noqa: PLC0415 - for many ranks only

    return RankExchange("process", this_rank(who))


def _import_torch() -> None:
    """Import what letters between ranks need, if the program has not: that takes longer than letters are waited for."""
    from energy_plugins.rank_mail import process_group  # noqa: PLC0415 - as above

    process_group()
