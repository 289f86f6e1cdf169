"""What one trial draws, kept in its folder while it runs, so that one that is killed is charged too."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

from energy_plugins.errors import ReportError
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.ray.charges import TrialEnergy, read_energy, write_energy
from energy_plugins.ray.sharing import Sharing
from energy_plugins.training.guard import warn

if TYPE_CHECKING:
    from energy_plugins.measure.meter import EnergyMeter
    from energy_plugins.measure.report import Report
    from energy_plugins.ray.trial import OwnTrial

_BEAT_S: Final = 3.0
"""Between two entries: what a trial that is killed draws in that time is not charged."""
_FIRST_BEAT_S: Final = 1.0


class Charge:
    """One window of a meter, charged to a trial. Nothing here raises: what goes wrong is a warning, once.

    It ends with the meter's window, however that ends. Windows and attempts one after the other add up.

    Args:
        trial: the one that this process runs.
        meter: started.
    """

    def __init__(self, trial: OwnTrial, meter: EnergyMeter) -> None:
        measured = () if meter.run is None else meter.run.gpus
        self._trial = trial
        self._meter = meter
        self._gpus = tuple(gpu.uuid for gpu in measured)
        self._simulated = any("SIMULATED" in gpu.name for gpu in measured)
        self._sharing = Sharing(trial, self._gpus)
        self._ended = threading.Event()
        self._file_lock = threading.Lock()
        """Guards the trial's file: reports and beats write it from two threads."""
        self._warned = False
        self._drawn_j = 0.0
        self._last: TrialEnergy | None = None
        earlier = self._read_earlier()
        self._earlier_j, self._earlier_s = (0.0, 0.0) if earlier is None else (earlier.total_j, earlier.duration_s)
        self._thread = threading.Thread(target=self._beat_forever, name="energy-trial", daemon=True)

    def begin(self) -> Charge:
        """Begin to write."""
        self._meter.after_stop(self._end)
        self._sharing.look()
        self._thread.start()
        return self

    @property
    def energy(self) -> TrialEnergy:
        """What the trial drew until now, about; once the window has ended, what its report says."""
        self._drawn_j = max(self._drawn_j, self._meter.drawn_j())
        return self._last or self._so_far(self._drawn_j, self._elapsed_s())

    def figures(self) -> dict[str, float | str]:
        """Return what Ray is told, under ``energy/``, and write it: Ray ends the processes of trials as they report.

        Until joules are known, which takes a second or two, they are NaN: Ray wants each report to have all keys.
        """
        energy = self.energy
        self._write(energy)
        found: dict[str, float | str] = {
            "energy/total_j": energy.total_j or math.nan,
            "energy/avg_power_w": energy.total_j / energy.duration_s if energy.total_j else math.nan,
            "energy/duration_s": energy.duration_s,
            "energy/gpus": ",".join(energy.gpus),
        }
        if energy.shared_gpu:
            found["energy/shared_gpu"] = float(energy.shared_gpu)
        if energy.simulated:
            found["energy/simulated"] = 1.0
        return found

    def _so_far(self, drawn_j: float, duration_s: float, *, ended: bool = False) -> TrialEnergy:
        return TrialEnergy(
            total_j=self._earlier_j + drawn_j,
            duration_s=self._earlier_s + duration_s,
            gpus=self._gpus,
            shared_gpu=self._sharing.others,
            simulated=self._simulated,
            ended=ended,
        )

    def _elapsed_s(self) -> float:
        run = self._meter.run
        return 0.0 if run is None else (current_drivers().clock.now_ns() - run.start_ns) * 1e-9

    def _beat_forever(self) -> None:
        wait_s = _FIRST_BEAT_S
        while not self._ended.wait(wait_s):
            wait_s = _BEAT_S
            self._sharing.look()
            self._write(self.energy)

    def _read_earlier(self) -> TrialEnergy | None:
        try:
            return read_energy(self._trial.files, self._trial.folder)
        except (OSError, ReportError) as error:
            self._say(f"what trial {self._trial.id} drew before is not known: {error}")
            return None

    def _write(self, energy: TrialEnergy) -> None:
        if not energy.total_j:
            return  # nobody knows yet
        try:
            with self._file_lock:
                if energy.ended or self._last is None:  # the last word stays the last
                    write_energy(self._trial.files, self._trial.folder, energy)
        except OSError as error:
            self._say(
                f"what trial {self._trial.id} draws could not be written ({error!r:.200}): "
                "it is tried again, and the ledger has it (energy-plugins ledger list)"
            )

    def _end(self, report: Report | None) -> None:
        """Write the last word, with what the meter's report says."""
        self._ended.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_BEAT_S)  # it may be waiting for the storage
        self._sharing.close(report)
        drawn_j, elapsed_s = self._drawn_j, self._elapsed_s()
        if report is not None and report.total_j is not None:
            drawn_j, elapsed_s = report.total_j, report.duration_s
        self._last = self._so_far(drawn_j, elapsed_s, ended=True)
        self._write(self._last)

    def _say(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warn(text)
