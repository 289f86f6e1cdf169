"""Many processes, one training: each measures its own GPU, and rank 0's report has them all side by side.

What a framework module calls, in this order; `EnergyMeter(distributed=True)` does the same for a plain loop::

    exchange = RankExchange("fit")                        # opens nothing; exchange.who is this process
    folder = exchange.agree(lambda: new_folder(...))      # rank 0 makes it, rank k gets <folder>/rank-k
    meter = EnergyMeter(devices=exchange.own_gpus(), folder=folder, rank=exchange.who)
    meter.start()
    exchange.watch(meter)                                 # from now on the others hear of it, without any call
    ...
    meter.stop()
    report = exchange.finish(meter.report(), folder)      # rank 0: with `ranks`; after an exception: failed=True

A rank whose measuring failed calls `RankExchange.abandon` instead, so that rank 0 does not wait for it.

The end of an epoch needs no call. Nothing here is a collective: what ranks tell each other goes through the key-value
store that torch.distributed was started with. Each leaves its part there, at most 64 KiB, on a thread that no training
waits for, and rank 0 reads what is there. So a rank that died, that never had a meter or whose measuring failed holds
up nobody, no tensor is made, and NCCL and its order of calls are not touched. Where there is no store, or of a rank
nothing in it, the folders inside rank 0's are read.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from energy_plugins.errors import DeviceError, EnergyError
from energy_plugins.measure.devices import visible_gpus
from energy_plugins.measure.options import Options
from energy_plugins.measure.patience import within
from energy_plugins.measure.rank_folders import parts_on_disk, rank_folder, with_ranks
from energy_plugins.measure.rank_part import Rank, RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report, write_header
from energy_plugins.rank_mail import Mail, process_group

if TYPE_CHECKING:
    from energy_plugins.measure.meter import EnergyMeter
    from energy_plugins.measure.run import Run

__all__ = ["RankExchange", "this_rank"]

_PATIENCE_S: Final = 10.0
"""How long rank 0 waits for the last word of the others, which as a rule comes at once."""
_FOLDER_PATIENCE_S: Final = 30.0
"""How long a rank waits for rank 0 to name the folder: before its window opens."""
_RUN_PATIENCE_S: Final = 2.0
"""How long a rank that ends waits to hear which training the ledger is to book it on, if it never heard that before."""
_DRIVER_PATIENCE_S: Final = 2.0
_TOLD_AFTER_S: Final = (0.0, 1.0)
_TOLD_EVERY_S: Final = 30.0
"""When a rank tells what it has so far: twice at the start, and then this often."""
_LOOKS_S: Final = (0.02, 0.5)
"""Between two looks for others' last words: at first, and at most."""

_runs: dict[str, Iterator[int]] = {}


class RankExchange:
    """One measured run of a training, and what its ranks tell each other of it. It warns, and never raises.

    Args:
        name: what the run is called; all ranks call it the same, and make their runs of one name in the same order.
        who: which process this is; asked of the environment and of torch.distributed if left out.
    """

    def __init__(self, name: str = "run", who: Rank | None = None) -> None:
        self.who = this_rank() if who is None else who
        self.first_on_gpu = True
        """Whether no rank before it on its machine is known to measure the same GPUs; told by `own_gpus`."""
        self._mail = Mail(f"{name}/{next(_runs.setdefault(name, count()))}")
        self._owner = os.getpid()
        self._own_cpu_s = 0.0
        self._warned: list[str] = []
        self._done = threading.Event()
        self._run: Run | None = None
        self._together = False
        """Whether the ledger knows this rank's run as one of the training's."""
        self._thread: threading.Thread | None = None

    @property
    def cpu_s(self) -> float:
        """CPU time spent here, on all threads."""
        return self._own_cpu_s + self._mail.cpu_s

    def own_gpus(self) -> Sequence[str] | None:
        """Return the UUID of the GPU that this process trains on; None for all that it may see.

        That is what CUDA says if this process has chosen a GPU. Else the local rank is taken to choose among those that
        are visible, which the report then says.
        """
        if self.who.local_world_size == 1:
            return None  # it has the machine for itself, and perhaps all GPUs of it
        local = self.who.local_rank if self.who.local_world_size else self.who.rank
        self.first_on_gpu = local == 0
        try:
            gpus = within(_DRIVER_PATIENCE_S, visible_gpus)
        except (DeviceError, TimeoutError):
            return None  # the meter meets the same, and says so in the report
        whole = {gpu.uuid for gpu in gpus if gpu.mig is None}
        if (uuid := _cuda_uuid(self.who.local_rank)) in whole and uuid is not None:
            self.first_on_gpu = True
            return [uuid]
        if len(gpus) < 2:
            return None
        self.first_on_gpu = local < len(gpus)
        chosen = gpus[local % len(gpus)]
        how = f"CUDA did not say which GPU is used, so it is taken by local rank among the {len(gpus)} visible ones"
        self.who = replace(self.who, gpu_choice=how)
        return [chosen.mig or chosen.uuid]

    def place(self, options: Options) -> Options:
        """Return ``options`` for this rank: its own GPU unless GPUs are named, and a folder inside that of rank 0."""
        devices = self.own_gpus() if options.devices is None else options.devices
        folder = None if options.folder is None else rank_folder(options.folder, self.who.rank)
        return replace(options, devices=devices, folder=folder, rank=self.who)

    def agree(self, claim: Callable[[], Path | None], *, failed: bool = False) -> Path | None:
        """Return the folder of this rank's report: ``claim`` makes it on rank 0, and rank k's lies inside that.

        Ranks wait for rank 0 to say, 30 s at most, and not at all when the training has ``failed``. Where they do not
        hear it, they claim one of their own.
        """
        if self.who.rank == 0:
            self._keep_together()  # before others are let go on
            folder = self._claimed(claim)
            if not self.who.alone:
                self._mail.put("folder", b"" if folder is None else os.fsencode(folder.absolute()))
            return folder
        heard = self._hear_soon("folder", 0.0 if failed else _FOLDER_PATIENCE_S)
        if heard == b"":
            return None
        folder = self._claimed(claim) if heard is None else Path(os.fsdecode(heard))
        if heard is None:
            self._warn("rank 0 did not say where its report is, so that of this rank lies elsewhere")
        return None if folder is None else rank_folder(folder, self.who.rank)

    def keep(self, meter: EnergyMeter) -> None:
        """Have the ledger know what all ranks measure as one training, as soon as they can tell each other."""
        self._run = meter.run

    def watch(self, meter: EnergyMeter) -> None:
        """Begin to tell the others, now and then, what ``meter`` has measured, on a thread of its own."""
        if self.who.alone or self._thread is not None:
            return
        self.keep(meter)
        self._thread = threading.Thread(target=self._tell_on, args=(meter,), name="energy-ranks", daemon=True)
        self._thread.start()

    def finish(self, report: Report, folder: Path | None = None, *, failed: bool = False) -> Report:
        """Tell the others the end, the final ``report``; on rank 0 return it with all `ranks` in it.

        Rank 0 waits up to 10 s for the others, not at all when the training has ``failed``. What cannot be had of one
        by then is what it told before, or what its folder inside ``folder`` holds; a process of this machine that has
        ended is not waited for. The header in ``folder`` is written anew. The window is closed before all this.
        """
        if self.who.alone or self._owner != os.getpid():
            return report
        self._done.set()
        if self._thread is not None:
            self._thread.join(_DRIVER_PATIENCE_S)
        with self._kept_from_training():
            self._keep_together(0.0 if failed else _RUN_PATIENCE_S)
            with self._counted():
                own = RankPart.of(report, self.who)
                letter = own.encode()
            sent = self._mail.put(f"last/{self.who.rank}", letter)
            if self.who.rank == 0:
                others = self._hear(0.0 if failed else _PATIENCE_S) if sent else []
                report = self._merged(report, [own, *others], folder)
            elif not sent:
                self._warn_of_mail()
        observer = replace(report.observer, ranks_s=self.cpu_s)
        report = replace(report, observer=observer, warnings=(*report.warnings, *self._warned))
        if folder is not None:
            with self._kept_from_training():
                write_header(folder, report)
        return report

    def abandon(self) -> None:
        """Tell the others that there will be no last word: for a rank whose measuring failed."""
        self._done.set()
        if not self.who.alone and self._owner == os.getpid():
            self._mail.put(f"last/{self.who.rank}", b"")

    def _merged(self, report: Report, parts: list[RankPart], folder: Path | None) -> Report:
        with self._counted():
            told = sum(part.complete for part in parts)
            if told < self.who.world_size:
                self._warn_of_mail()
                found, faults = parts_on_disk(folder) if folder is not None else ((), ())
                parts += found
                for text in faults:
                    self._warn(text)
            ranks = Ranks.merge(parts, self.who.world_size)
            for text in ranks.shortcomings():
                self._warn(text)
            return with_ranks(replace(report, rank=self.who), ranks)

    def _hear(self, patience_s: float) -> list[RankPart]:
        """Return each rank's last word, or what it told before if the time is up or its process has ended."""
        deadline_s, look_s = time.monotonic() + patience_s, _LOOKS_S[0]
        others = set(range(self.who.world_size)) - {self.who.rank}
        waiting = set(others)
        parts = _told(self._letters("now", waiting))
        while waiting and self._mail.open:
            left_s = deadline_s - time.monotonic()
            # Asked before the letters are fetched: one that has ended may have left its last.
            ended = {rank for rank in waiting & parts.keys() if _has_ended(parts[rank].who, self.who)}
            last = self._letters("last", waiting)
            parts |= _told(last)
            waiting -= ended | last.keys()
            if not waiting or left_s <= 0:
                break
            time.sleep(min(look_s, left_s))
            look_s = min(look_s * 1.5, _LOOKS_S[1])
        silent = others - {rank for rank, part in parts.items() if part.complete}
        return list((parts | _told(self._letters("now", silent))).values())

    def _letters(self, name: str, ranks: Collection[int]) -> dict[int, RankPart | None]:
        """Return the letters that are there; None for one without a part that can be read."""
        letters = self._mail.get([f"{name}/{rank}" for rank in sorted(ranks)])
        return {rank: self._read(rank, letters[f"{name}/{rank}"]) for rank in ranks if f"{name}/{rank}" in letters}

    def _read(self, rank: int, letter: bytes) -> RankPart | None:
        if not letter:
            return None
        with self._counted():
            try:
                part = RankPart.decode(letter, f"what rank {rank} told")
            except EnergyError as error:
                self._warn(str(error))
                return None
            if part.who.rank != rank or part.who.world_size != self.who.world_size:
                self._warn(f"what rank {rank} told is of rank {part.who.rank} of {part.who.world_size}: left out")
                return None
            return part

    def _tell_on(self, meter: EnergyMeter) -> None:
        for pause_s in chain(_TOLD_AFTER_S, repeat(_TOLD_EVERY_S)):
            if self._done.wait(pause_s):
                return
            with self._kept_from_training(), suppress(EnergyError):  # it was stopped just now
                with self._counted():
                    letter = RankPart.of(meter.report(), self.who).encode()
                self._mail.put(f"now/{self.who.rank}", letter)
            with self._kept_from_training():
                self._keep_together()

    def _keep_together(self, patience_s: float = 0.0) -> None:
        """Tell the others what this run is called, or hear it from rank 0."""
        if self._run is None or self._together or self.who.alone:
            return
        if self.who.rank == 0:
            self._together = self._mail.put("run", self._run.run_id.encode())
        elif (heard := self._hear_soon("run", patience_s)) is not None:
            self._together = True
            self._run.heartbeat.belongs_to(heard.decode("ascii", "replace"))

    def _hear_soon(self, name: str, patience_s: float) -> bytes | None:
        """Return rank 0's letter of this name, None if there is none within the time."""
        deadline_s = time.monotonic() + patience_s
        while self._mail.open:
            if (heard := self._mail.get([name]).get(name)) is not None:
                return heard
            if time.monotonic() > deadline_s:
                break
            time.sleep(_LOOKS_S[0])
        return None

    def _claimed(self, claim: Callable[[], Path | None]) -> Path | None:
        try:
            return claim()
        except (EnergyError, OSError, ValueError) as error:
            self._warn(f"the report is not kept on disk: {error}")
            return None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        finally:
            self._own_cpu_s += time.thread_time() - began

    @contextmanager
    def _kept_from_training(self) -> Iterator[None]:
        try:
            yield
        except (EnergyError, OSError, RuntimeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            self._warn(f"the ranks could not be put side by side: {error}")

    def _warn_of_mail(self) -> None:
        if self._mail.trouble or not self._mail.open:
            why = self._mail.trouble or "torch.distributed is not initialised"
            self._warn(f"ranks could not tell each other their joules ({why}); what lies in their folders is merged")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.append(text)
            with suppress(RuntimeWarning):  # where warnings are errors, this one must still not end the training
                warnings.warn(f"energy: {text}", RuntimeWarning, stacklevel=4)


def _told(letters: Mapping[int, RankPart | None]) -> dict[int, RankPart]:
    return {rank: part for rank, part in letters.items() if part is not None}


def this_rank(who: Rank | None = None) -> Rank:
    """Return which process of a training this is, by its process group or else by the launcher's variables.

    Whoever knows that better says ``who``; what tells its process from others is filled in.
    """
    who = Rank.of(os.environ, process_group()) if who is None else who
    return replace(who, pid=os.getpid(), boot_id=_boot_id(), pid_space=_pid_space())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path, but a name
    except OSError:
        return ""


def _has_ended(who: Rank, own: Rank) -> bool:
    """Tell whether a process is seen to have ended; False of one on another machine, or in another container."""
    if not own.pid_space or (who.boot_id, who.pid_space) != (own.boot_id, own.pid_space):
        return False
    try:
        status = Path(f"/proc/{who.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in {"Z", "X"}  # proc(5): the state follows the name


def _cuda_uuid(local_rank: int) -> str | None:
    """Return the UUID of the current CUDA device, None if this process has not chosen one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    index = torch.cuda.current_device()
    if index == 0 and local_rank and torch.cuda.device_count() > 1:
        return None  # every process's device until it says otherwise
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
