"""A real Lightning training on real data on a real GPU.

Measured step by step, and proof that the callback adds no synchronisation.

The model is a small GPT; its text is the Python standard library's own sources, byte by byte.

It trains once for each length: a run's start and end take a fixed number of reads of the energy counter, so the
sampling thread's share of a core falls with the length of the run.

    python benchmarks/h200_lightning.py [--seconds 62 180]
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from _common import RESULTS, Bar, Table, finish, gpu_names, say
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from energy_plugins import Report
from energy_plugins.lightning import EnergyMonitor

CONTEXT = 512
WAITS = ("Synchronize", "cudaMemcpy", "cuMemcpy", "EventQuery")
"""Parts of names of runtime calls that may wait for the device; asynchronous copies are sorted out below."""


class Bytes(Dataset[torch.Tensor]):
    """Windows of the standard library's sources."""

    def __init__(self, part: slice) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text = b"\n".join(file.read_bytes() for file in files)
        self._data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        windows = len(self._data) // CONTEXT - 1
        self._rows = range(windows)[part]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> torch.Tensor:
        start = self._rows[row] * CONTEXT
        return self._data[start : start + CONTEXT + 1].long()


class ByteGpt(lightning.LightningModule):
    """A decoder-only transformer on bytes."""

    def __init__(self, width: int = 512, layers: int = 8) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(256, width)
        self.place = torch.nn.Parameter(torch.zeros(CONTEXT, width))
        layer = torch.nn.TransformerEncoderLayer(width, 8, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.body = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, 256)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """Predict each next byte."""
        return self._loss(batch)

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        """Log the loss on text that was not trained on."""
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with AdamW."""
        return torch.optim.AdamW(self.parameters(), 3e-4, fused=True)

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT, device=batch.device)
        hidden = self.body(self.embed(batch[:, :-1]) + self.place, mask=mask, is_causal=True)
        return torch.nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), batch[:, 1:].flatten())


def loaders(batch: int, workers: int) -> tuple[DataLoader[torch.Tensor], DataLoader[torch.Tensor]]:
    """Return training and validation loaders."""
    options: dict[str, Any] = {
        "batch_size": batch,
        "num_workers": workers,
        "pin_memory": True,
        "drop_last": True,
        "persistent_workers": workers > 0,
    }
    return DataLoader(Bytes(slice(0, -640)), shuffle=True, **options), DataLoader(Bytes(slice(-640, None)), **options)


def trainer(folder: Path, callbacks: list[lightning.Callback], **options: Any) -> lightning.Trainer:  # noqa: ANN401 - the trainer's own
    """Return a trainer on one GPU that logs every ten steps."""
    return lightning.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        callbacks=callbacks,
        logger=CSVLogger(folder, name="log"),
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


class Planted(lightning.Callback):
    """Waits for the device in every step, which the check must see."""

    def on_train_batch_end(self, *_: object) -> None:
        """Wait for an event."""
        event = torch.cuda.Event()
        event.record()
        event.synchronize()


def waits(folder: Path, callbacks: list[lightning.Callback], steps: int = 20) -> dict[str, int]:
    """Return how often the CUDA runtime was asked to wait during ``steps`` training steps, by call."""
    torch.manual_seed(0)
    train, _ = loaders(16, 0)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    fit = trainer(folder, callbacks, max_steps=steps, limit_val_batches=0, enable_checkpointing=False)
    model = ByteGpt(128, 2)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        fit.fit(model, train)
    events = profile.profiler.kineto_results.events() if profile.profiler and profile.profiler.kineto_results else []
    names = Counter(event.name() for event in events if any(part in event.name() for part in WAITS))
    return {name: count for name, count in sorted(names.items()) if "Async" not in name}


def syncs(folder: Path) -> dict[str, Any]:
    """Compare the waits of a fit without the callback, with it, and with a planted wait."""
    waits(folder / "warm", [])
    runs = {
        "without": waits(folder / "without", []),
        "with": waits(folder / "with", [EnergyMonitor(str(folder / "energy"), table=False, phases_every_n_steps=5)]),
        "planted": waits(folder / "planted", [Planted()]),
    }
    total = {name: sum(counts.values()) for name, counts in runs.items()}
    return {
        "calls": runs,
        "total": total,
        "equal": runs["with"] == runs["without"],
        "planted_is_seen": total["planted"] > total["without"],
    }


def training(folder: Path, seconds: float) -> EnergyMonitor:
    """Train for about ``seconds`` and leave a report in ``folder/energy``."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    train, validate = loaders(64, 4)
    monitor = EnergyMonitor(str(folder / "energy"), "gpt-bytes", phases_every_n_steps=50)
    fit = trainer(
        folder,
        [monitor],
        max_time={"seconds": int(seconds)},
        val_check_interval=400,
        check_val_every_n_epoch=None,
    )
    fit.fit(ByteGpt(), train, validate)
    return monitor


def main() -> int:
    """Train, check, write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[62.0, 180.0], help="one training for each")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("h200_lightning: skipped, it needs a real GPU and CUDA\n")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        return _measure(Path(scratch), options.seconds)


def figures_of(report: Report) -> dict[str, Any]:
    """Return what the result says of a training."""
    observer = report.observer
    return {
        "duration_s": report.duration_s,
        "total_j": report.total_j,
        "error_bound_j": report.error_bound_j,
        "steps": report.work.steps,
        "coverage": report.coverage,
        "sampler_core_share": observer.thread_cpu_s / report.duration_s,
        "collector_core_share": observer.collect_s / report.duration_s,
        "warnings": list(report.warnings),
    }


def trained_bars(report: Report, asked_s: float) -> list[Bar]:
    """Return the bars of a training that was to last ``asked_s``."""
    share = report.observer.thread_cpu_s / report.duration_s
    return [
        Bar(f"CPU time of the sampler in {asked_s:.0f} s, of one core", share, at_most=0.0015, show=".3%"),
        Bar(f"length of the training of {asked_s:.0f} s", report.duration_s, at_least=60, show=".0f"),
    ]


def waits_table(calls: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the counts of waiting calls one by one."""
    rows = [(run, name, count) for run, counts in calls.items() for name, count in counts.items()]
    return {
        "run": [run for run, _, _ in rows],
        "call": [name for _, name, _ in rows],
        "count": [count for _, _, count in rows],
    }


def _measure(scratch: Path, seconds: Sequence[float]) -> int:
    checked = syncs(scratch / "syncs")
    say(f"waits: {checked}")
    reports: list[Report] = []
    for number, asked_s in enumerate(seconds):
        report = training(scratch / f"training-{number}", asked_s).report
        assert report is not None
        reports.append(report)
        say(f"training of {asked_s:.0f} s: {figures_of(report)}")
    extra = abs(checked["total"]["with"] - checked["total"]["without"])
    planted = checked["total"]["planted"] - checked["total"]["without"]
    bars = [
        Bar("waits for the device that the callback adds in 20 steps", extra, at_most=0, show="d"),
        Bar("waits that a planted one adds", planted, at_least=20, show="d"),
    ]
    for report, asked_s in zip(reports, seconds, strict=True):
        bars += trained_bars(report, asked_s)
    trainings = {f"{asked_s:.0f}": figures_of(report) for report, asked_s in zip(reports, seconds, strict=True)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "h200_lightning.txt").write_text(f"{reports[0]}\n")
    reports[0].save(RESULTS / "h200_lightning_report", overwrite=True)
    return finish(
        "h200_lightning",
        gpus=gpu_names(),
        figures={"synchronisation": checked, "training": figures_of(reports[0]), "trainings": trainings},
        bars=bars,
        raw={"waits": waits_table(checked["calls"])},
    )


if __name__ == "__main__":
    sys.exit(main())
