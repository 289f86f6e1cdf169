"""What the tests of the ledger share: entries, spools, and a process that has ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from energy_plugins.measure.ledger_entry import GpuEntry, LedgerEntry, LedgerRow, ProcessEntry, Status
from energy_plugins.measure.spool import own_process

NOW = "2026-11-22T08:15:00.000+00:00"


def entry(run_id: str = "run-1", energy_j: float | None = 3.6e6, **changes: Any) -> LedgerEntry:
    """Return the entry of a run that has finished, on one GPU."""
    fields: dict[str, Any] = {
        "run_id": run_id,
        "training_id": run_id,
        "inside": "",
        "rank": 0,
        "world_size": 1,
        "name": "digits",
        "node": "node7",
        "user": "alice",
        "project": "vision",
        "model": "ResNet",
        "framework": "lightning",
        "simulated": False,
        "started": NOW,
        "updated": NOW,
        "beat": 3,
        "status": Status.FINISHED,
        "process": own_process(),
        "duration_s": 60.0,
        "energy_j": energy_j,
        "missing": "",
        "gpus": (GpuEntry(uuid="GPU-1", name="NVIDIA H200", energy_j=energy_j),),
        "steps": 100,
        "samples": 6400,
        "tokens": None,
    }
    return LedgerEntry(**(fields | changes))


def row(run_id: str = "run-1", gpu_j: dict[str, float | None] | None = None, **changes: Any) -> LedgerRow:
    """Return a row of the ledger: what each GPU drew is its name's, up to a colon."""
    gpus = {"H200:1": 100.0} if gpu_j is None else gpu_j
    known = [joules for joules in gpus.values() if joules is not None]
    fields = {name: getattr(entry(run_id), name) for name in LedgerRow.__dataclass_fields__}
    return LedgerRow(
        **fields
        | {
            "energy_j": sum(known) if known else None,
            "gpus": tuple(GpuEntry(uuid=uuid, name=uuid.partition(":")[0], energy_j=j) for uuid, j in gpus.items()),
        }
        | changes
    )


def spooled(folder: Path, *entries: LedgerEntry) -> Path:
    """Put entries into a spool, without waiting for the disk, and return that."""
    folder.mkdir(exist_ok=True)
    for one in entries:
        path = folder / f"{one.run_id}.json"
        path.write_text(one.encode())
        path.chmod(0o600)
    return folder


def ended_process() -> ProcessEntry:
    """Return a process that has been killed."""
    hears, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        mine = own_process()
        os.write(tells, f"{mine.pid} {mine.start_ticks} {mine.boot_id} {mine.pid_namespace}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    number, ticks, boot, namespace = os.read(hears, 1000).decode().split()
    os.close(hears)
    os.close(tells)
    return ProcessEntry(pid=int(number), start_ticks=int(ticks), boot_id=boot, pid_namespace=int(namespace))
