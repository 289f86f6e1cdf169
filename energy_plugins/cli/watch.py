"""``energy-plugins watch``."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import click

from energy_plugins.cli.frame import Frame, Row
from energy_plugins.cli.gpu_reader import GpuNow, GpuReader
from energy_plugins.cli.options import seconds
from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import Gpu
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.progress import Progress

_DRIVER_ANSWERS_S = 5.0
_STALE_S = 3.0
"""Readings older than this, beyond the interval, are no longer those of now."""
_FIRST_LOOK_S = 4.0
"""How long ``--once`` waits for joules: the meter looks for new samples every 1.2 s."""
_MOST_NOTES = 3
_BACK_AND_CLEAR = "\x1b[{}F\x1b[J"
"""Up N lines to their beginning, then clear to the end of the screen (ECMA-48: CPL, ED)."""


@click.command("watch")
@seconds("--interval", "Time between looks.")
@click.option("--once", is_flag=True, help="Look once, as soon as joules are known, and end.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each look.")
def command(*, interval: float, once: bool, as_json: bool) -> None:
    """Show power, limit, clock, temperature and joules since the start of each visible GPU, until Ctrl-C.

    On a terminal a table is kept up to date; elsewhere each look is a line. Power and joules are up to 1.5 s late.
    "-" (null in JSON) is what a GPU does not tell. CUDA_VISIBLE_DEVICES chooses the GPUs.

    \b
    Examples:
      energy-plugins watch
      energy-plugins watch --once --json | jq '.gpus[].power_w'

    Exit codes: 0 ended by Ctrl-C or --once, 1 there is no GPU to watch, 2 wrong use, 128+N ended by signal N.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup it lives on
            signal.signal(number, _leave)
    try:
        reader = GpuReader(interval)
        gpus = reader.gpus(_DRIVER_ANSWERS_S)
        if not gpus:
            raise DeviceError("no GPU is visible: CUDA_VISIBLE_DEVICES hides them all, or there are none")
        with (
            warnings.catch_warnings(record=True) as heard,
            EnergyMeter("watch", keep_power=False, ledger=False) as meter,
        ):
            warnings.simplefilter("always")
            watcher = Watcher(meter, reader, gpus, heard)
            if once:
                frame = watcher.first_look(interval)
                click.echo(frame.json() if as_json else "\n".join(frame.table()))
            else:
                _watch(watcher, _printer(as_json=as_json), interval)
    except KeyboardInterrupt:
        return


def _leave(number: int, _frame: object) -> None:
    """End the process as the signal would, but tidily."""
    raise SystemExit(128 + number)


class Watcher:
    """Puts together what the meter and the reader know."""

    def __init__(
        self,
        meter: EnergyMeter,
        reader: GpuReader,
        gpus: Sequence[Gpu],
        heard: Sequence[warnings.WarningMessage],
    ) -> None:
        self._meter = meter
        self._reader = reader
        self._gpus = gpus
        self._heard = heard
        self._began_s = time.monotonic()

    def look(self, interval_s: float) -> Frame:
        """Return the GPUs as they are now, looked at every ``interval_s``."""
        progress = self._meter.latest(peek=True)
        age_s, readings = self._reader.latest()
        silent = age_s > interval_s + _STALE_S
        notes = [str(one.message).removeprefix("energy: ") for one in self._heard[-_MOST_NOTES:]]
        if silent:
            notes.append(f"the driver has not answered for {age_s:.0f} s")
        now = {} if silent else readings
        return Frame(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            elapsed_s=time.monotonic() - self._began_s,
            gpus=tuple(_row(gpu, now.get(gpu.uuid, GpuNow()), progress) for gpu in self._gpus),
            notes=tuple(notes),
        )

    def first_look(self, interval_s: float) -> Frame:
        """Return the first look at which the joules of all GPUs are known, or the last one there is time for."""
        whole = {gpu.uuid for gpu in self._gpus if gpu.mig is None}
        while True:
            frame = self.look(interval_s)
            if all(row.energy_j for row in frame.gpus if row.uuid in whole) or frame.elapsed_s > _FIRST_LOOK_S:
                return frame
            time.sleep(0.05)


def _row(gpu: Gpu, now: GpuNow, progress: Progress | None) -> Row:
    if progress is None or gpu.mig is not None:
        power_w, energy_j = math.nan, math.nan
    else:
        power_w, energy_j = progress.gpu_power_w.get(gpu.uuid, math.nan), progress.gpu_j.get(gpu.uuid, math.nan)
    # The meter knows the last power there was: of a GPU that has stopped answering it is not the power now.
    return Row(
        index=gpu.index,
        uuid=gpu.visible_uuid,
        name=gpu.name if gpu.mig is None else f"{gpu.name} (MIG slice: no sensor)",
        power_w=power_w if math.isfinite(power_w) and now.answers else None,
        energy_j=energy_j if math.isfinite(energy_j) else None,
        **asdict(now),
    )


def _watch(watcher: Watcher, show: Callable[[Frame], None], interval_s: float) -> None:
    next_s = time.monotonic()
    while True:
        show(watcher.look(interval_s))
        next_s = max(next_s + interval_s, time.monotonic())
        time.sleep(max(next_s - time.monotonic(), 0.0))


def _printer(*, as_json: bool) -> Callable[[Frame], None]:
    if as_json:
        return lambda frame: click.echo(frame.json())
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Screen().show
    return lambda frame: click.echo(frame.line())


class Screen:
    """Draws each frame over the one before.

    It changes no mode of the terminal, so that there is nothing to restore however the process ends.
    """

    def __init__(self) -> None:
        self._lines = 0

    def show(self, frame: Frame) -> None:
        """Draw a frame, cut to what the terminal has room for."""
        room = shutil.get_terminal_size()
        lines = [line[: room.columns - 1] for line in frame.table()[: room.lines - 1]]
        back = _BACK_AND_CLEAR.format(self._lines) if self._lines else ""
        click.echo(back + "\n".join(lines))
        self._lines = len(lines)
