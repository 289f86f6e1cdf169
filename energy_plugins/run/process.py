"""A process measured as one run, for programs whose training nobody else measures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.training.folder import new_folder
from energy_plugins.training.guard import guarded, warn
from energy_plugins.training.monitor import Monitor

if TYPE_CHECKING:
    from energy_plugins.config import EnergyConfig


class Process:
    """One run from start to finish, which leaves no report if the training of a framework is measured in between.

    Of several processes of a machine the first measures all its GPUs, because a program without a framework does not
    say which are whose.
    """

    def __init__(self, config: EnergyConfig, command: list[str]) -> None:
        self._config = config
        self._command = command
        self._parent = Path.cwd()
        self._meter: EnergyMeter | None = None

    @guarded
    def start(self) -> None:
        """Start measuring."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return
        measure = self._config.measure
        meter = EnergyMeter(
            self._config.report.name,
            measure.devices,
            config={"stage": "process", "command": list(self._command)},
            power_sensor=measure.power_sensor,
            activity=measure.activity,
        )
        self._meter = meter.start()
        Monitor.before_run.append(self.stand_back)

    def stand_back(self) -> None:
        """Leave the measuring to another."""
        meter = self._forget()
        if meter is not None:
            meter.stop()

    @guarded
    def finish(self) -> None:
        """Stop measuring, and save and print the report."""
        meter = self._forget()
        if meter is None or not meter.running:  # a forked child leaves the run to its parent
            return
        meter.stop()
        report = meter.report()
        folder = Path(self._config.report.folder or self._parent / "energy")
        where = report.save(new_folder(folder, self._config.report.name or "run"))
        if self._config.report.table:
            print(f"\n{report}\nReport: {where}", flush=True)  # noqa: T201 - as the plugins do

    def give_up(self, error: Exception) -> None:
        """Measure no more because of ``error``, with one warning; the program goes on."""
        self._forget()
        warn(f"measuring failed, the program goes on: {error}")

    def _forget(self) -> EnergyMeter | None:
        if self.stand_back in Monitor.before_run:
            Monitor.before_run.remove(self.stand_back)
        meter, self._meter = self._meter, None
        return meter
