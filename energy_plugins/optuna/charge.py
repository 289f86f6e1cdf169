"""What one trial draws, written to its user attributes while it runs, so that one that is killed is charged too."""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from energy_plugins.measure.report_parts import Company as Known
from energy_plugins.optuna.attributes import (
    AVG_POWER_W,
    DURATION_S,
    PREFIX,
    SHARED,
    SIMULATED,
    TO_TARGET_J,
    TO_TARGET_S,
    TOTAL_J,
    TRIAL,
    charged_j,
    own_float,
)
from energy_plugins.optuna.study_budget import budget_of, spent_sentence
from energy_plugins.training.company import Company
from energy_plugins.training.guard import warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna

    from energy_plugins.measure.meter import EnergyMeter
    from energy_plugins.measure.report import Report

_BEAT_S: Final = 3.0
"""Between two entries: what a trial that is killed draws in that time is not charged."""
_FIRST_BEAT_S: Final = 1.0

_open: dict[tuple[int, int], Charge] = {}
"""Charges of this process, by study and trial: what is measured inside a trial that is measured counts once."""
_open_lock: Final = threading.Lock()


class Charge:
    """One window of a meter, charged to a trial. Nothing here raises: what goes wrong is a warning, once.

    It ends with the meter's window, however that ends. Windows of a trial one after the other add up.

    Args:
        trial: a running trial of a study.
        meter: started. It may measure on other threads than the trial's.
        ranks: how many processes like this one the training has, each drawing about the same; the report tells exactly.
    """

    def __init__(self, trial: optuna.Trial, meter: EnergyMeter, *, ranks: int = 1) -> None:
        self._trial = trial
        self._meter = meter
        self._ranks = ranks
        self._key = (id(trial.study), trial.number)
        self._began_s = time.monotonic()
        self._ended = threading.Event()
        self._warned = False
        self._stack = ExitStack()
        self._company: Company | None = None
        self._last_j = 0.0
        self._final = False
        before = trial.user_attrs
        self.earlier_j = own_float(trial.number, before, TOTAL_J) or 0.0
        """What earlier windows of this trial drew."""
        self._earlier_s = own_float(trial.number, before, DURATION_S) or 0.0
        self._written: dict[str, float] = {}
        self._shared = own_float(trial.number, before, SHARED) or 0.0
        self._reached_s: float | None = None
        self.known = True
        """Whether the joules are measured; what is charged is a guess else."""
        self.others_j = 0.0
        """What the study's other trials drew, as of the last beat."""
        self.budget_j: float | None = None
        """Of the study."""
        self._thread = threading.Thread(target=self._beat_forever, name="energy-trial", daemon=True)

    @classmethod
    def open(cls, trial: optuna.Trial, meter: EnergyMeter, *, ranks: int = 1) -> Charge:
        """Charge a window to a trial; one that is open for it in this process already goes on, and is returned."""
        with _open_lock:
            if (there := charge_of(trial)) is not None:
                return there
            charge = _open[(id(trial.study), trial.number)] = cls(trial, meter, ranks=ranks)
        charge._begin()
        return charge

    @property
    def drawn_j(self) -> float:
        """What the trial drew until now, about: earlier windows included."""
        if not self._final:
            self._last_j = max(self._last_j, self._meter.drawn_j() * self._ranks)
        return self.earlier_j + self._last_j

    @property
    def elapsed_s(self) -> float:
        """How long it has been measured."""
        return self._earlier_s + time.monotonic() - self._began_s

    def study_is_spent(self) -> str:
        """Return why the study has to end, as of the last beat; nothing if it has not."""
        spent_j = self.others_j + self.drawn_j
        if self.budget_j is None or spent_j < self.budget_j:
            return ""
        return spent_sentence(spent_j, self.budget_j)

    def has(self, key: str) -> bool:
        """Tell whether the trial has written an attribute."""
        written = self._written.get(key, math.nan)
        return math.isfinite(written) or own_float(self._trial.number, self._trial.user_attrs, key) is not None

    def reached_target(self) -> None:
        """Write what it took until now, the first time; joules that nobody knows yet are settled later."""
        if self._reached_s is None and not self.has(TO_TARGET_S):
            self._reached_s = time.monotonic() - self._began_s
            self.write({TO_TARGET_S: self._earlier_s + self._reached_s})
            self.settle_target(self._meter.drawn_j() * self._ranks, self._reached_s)

    def settle_target(self, drawn_j: float | None = None, duration_s: float | None = None) -> None:
        """Write the joules to the target by those of a stretch that holds it, by default of all until now.

        They lag a second or two behind, and a trial that reached its target before has a share of them.
        """
        if self._reached_s is None or self.has(TO_TARGET_J):
            return
        drawn_j = self._meter.drawn_j() * self._ranks if drawn_j is None else drawn_j
        duration_s = time.monotonic() - self._began_s if duration_s is None else duration_s
        if drawn_j > 0 and duration_s > 0:
            self.write({TO_TARGET_J: self.earlier_j + drawn_j * min(self._reached_s / duration_s, 1.0)})

    def write(self, attributes: Mapping[str, float]) -> None:
        """Write attributes of the trial, those only that changed."""
        try:
            if TRIAL not in self._written:
                self._disown_inherited()
                self._put(TRIAL, float(self._trial.number))
            for key, value in attributes.items():
                if self._written.get(key) != value:
                    self._put(key, float(value))
        except RuntimeError:  # Optuna's, of a trial that has ended: what it drew since is nobody's
            self._ended.set()
        except Exception as error:  # noqa: BLE001 - a storage raises what its database or network does
            self._say(
                f"what trial {self._trial.number} draws could not be written to the study ({error!r:.200}): "
                "it is tried again, and the ledger has it (energy-plugins ledger list)"
            )

    def _disown_inherited(self) -> None:
        """Make what a trial that this one retries has left no number, before it would count as this one's."""
        before = self._trial.user_attrs
        if before.get(TRIAL) == self._trial.number:
            return
        for key in before:
            if key.startswith(PREFIX) and key != TRIAL:
                self._put(key, math.nan)  # attributes cannot be removed

    def _put(self, key: str, value: float) -> None:
        self._trial.set_user_attr(key, value)
        self._written[key] = value

    def _begin(self) -> None:
        self._meter.after_stop(self._end)
        run = self._meter.run
        try:
            self._company = Company(run.own if run is not None else ())
            self._stack.callback(self._company.close)
        except (OSError, RuntimeError) as error:
            self._say(f"it cannot be seen whether other trials use the same GPU: {error}")
        self._look_around()
        self.look_at_study()
        self._thread.start()

    def _beat_forever(self) -> None:
        wait_s = _FIRST_BEAT_S
        while not self._ended.wait(wait_s):
            wait_s = _BEAT_S
            self._look_around()
            self.write({TOTAL_J: self.drawn_j, DURATION_S: self.elapsed_s})
            self.look_at_study()

    def look_at_study(self) -> None:
        """Look what the study may draw, and has drawn."""
        study = self._trial.study
        try:
            self.budget_j = budget_of(study)
            if self.budget_j is not None:
                self.others_j = charged_j(study.get_trials(deepcopy=False), but=self._trial.number)
        except Exception as error:  # noqa: BLE001 - as in `write`
            self._say(f"the study does not tell what it has drawn ({error!r:.200})")

    def _look_around(self) -> None:
        if self._company is None:
            return
        try:
            seen = self._company.look()
        except OSError as error:
            self._say(f"it cannot be seen whether other trials use the same GPU: {error}")
            return
        if seen and not self._shared:
            warn(
                f"trial {self._trial.number} shares a GPU with another trial: their joules cannot be told apart, so it "
                f"is marked ({SHARED}); give each its own GPU, or n_jobs=1"
            )
        self._shared = max(self._shared, float(seen))

    def _end(self, report: Report | None) -> None:
        """Write the last word, with what the meter's report says."""
        self._ended.set()
        with _open_lock:
            _open.pop(self._key, None)
        self._look_around()
        self._stack.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_BEAT_S)  # it may be waiting for the storage
        whole_j = None if report is None else _whole_j(report, self._ranks)
        if whole_j is not None:
            self._last_j = whole_j
        self._final = True
        duration_s = self._earlier_s + (time.monotonic() - self._began_s if report is None else report.duration_s)
        self.known = whole_j is not None
        self.settle_target(self._last_j, None if report is None else report.duration_s)
        if report is not None and any(gpu.others.company is Known.SOME for gpu in report.devices):
            self._shared = max(self._shared, 1.0)
        last = {TOTAL_J: self.drawn_j, DURATION_S: duration_s}
        if duration_s > 0:
            last[AVG_POWER_W] = self.drawn_j / duration_s
        if report is not None and any("SIMULATED" in gpu.name for gpu in report.devices):
            last[SIMULATED] = 1.0
        if self._shared:
            last[SHARED] = self._shared
        self.write(last)

    def _say(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warn(text)


def charge_of(trial: optuna.Trial) -> Charge | None:
    """Return what is charged to a trial in this process, None if nothing is being measured for it."""
    return _open.get((id(trial.study), trial.number))


def _whole_j(report: Report, ranks: int) -> float | None:
    """Return what all ranks drew, as nearly as the report of one tells."""
    if report.ranks is not None and report.ranks.total_j is not None:
        return report.ranks.total_j
    return None if report.total_j is None else report.total_j * ranks
