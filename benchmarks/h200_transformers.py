"""What `EnergyCallback` costs a real transformers Trainer on a real GPU, and what other tools' callbacks cost it.

GPT-2 small with random weights learns the Python standard library's own sources, byte by byte, in bf16, with the
Trainer's defaults.

The cost is found as in h200_cost.py: within one training, of each two optimizer steps in a row one is marked, and
chance says which; background reads are compared with the steps around them and charged at their usual rate.

Beside it, in rounds of random order: short trainings with nothing, nothing once more (the noise), EnergyCallback, and,
as far as they are installed, Zeus windows around each step, matcha's StepEnergyCallback, landauer-gap's JoulesCallback
and CodeCarbon's tracker (packages zeus, usematcha, landauer-gap, codecarbon). Each is compared with nothing in the same
round.

    python benchmarks/h200_transformers.py [--seconds 90] [--rounds 6] [--limit 280] [--dry]

``--dry`` tries the whole path on the CPU and a simulated GPU, and writes nothing.
"""

# ruff: noqa: ARG002 - events come with what transformers gives them

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Bar, Interval, bootstrap, finish, gpu_names, print_table, say
from h200_cost import OFTEN_NS, HostTime, analyse, frequent_reader
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from energy_plugins.testing import simulated_gpus
from energy_plugins.transformers import EnergyCallback

CONTEXT = 512
_MOST_MS = 4.0
"""No step is shorter: the events that date them are made before the training."""
_GPU_BOUND = 1.7
"""Times as long takes the step of twice the batch, if the GPU is what it waits for,"""
_MOST_ROWS = 64
"""and a step of so many rows waits for it in any case."""
_WARM = 10
"""Steps of a short training that are not compared."""

PER_STEP = ("zeus", "matcha")
"""Tools that give joules of each step, as EnergyCallback does; the others give those of a run."""


class Sources(Dataset[dict[str, torch.Tensor]]):
    """Pieces of the standard library, one token a byte."""

    def __init__(self, context: int) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text = b"\n".join(file.read_bytes() for file in files)
        pieces = len(text) // context
        self._pieces = torch.frombuffer(bytearray(text[: pieces * context]), dtype=torch.uint8).view(pieces, context)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        piece = self._pieces[row].long()
        return {"input_ids": piece, "labels": piece}


class Bench:
    """One model and its data, for many trainings."""

    def __init__(self, folder: Path, batch: int, *, dry: bool) -> None:
        small: dict[str, Any] = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 256} if dry else {}
        small |= {"bos_token_id": 0, "eos_token_id": 0}
        context = 32 if dry else CONTEXT
        self.model = GPT2LMHeadModel(GPT2Config(n_positions=context, **small))
        self.data = Sources(context)
        self.folder, self.batch, self.dry = folder, batch, dry
        self.probed_ms: dict[int, float] = {}
        """Step times of the batches that were tried."""

    def train(self, callbacks: list[TrainerCallback], max_steps: int) -> None:
        """Train for ``max_steps``, or until a callback ends it."""
        args = TrainingArguments(
            output_dir=str(self.folder / "out"),
            max_steps=max_steps,
            per_device_train_batch_size=self.batch,
            bf16=not self.dry,
            use_cpu=self.dry,
            dataloader_pin_memory=not self.dry,
            logging_steps=500,
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
        )
        Trainer(self.model, args, train_dataset=self.data, callbacks=callbacks).train()


def wait_for_gpu() -> None:
    """Wait until the GPU has nothing to do, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Dated:
    """The ends of steps, as CUDA events, or as clock readings where there is no GPU."""

    def __init__(self, most: int) -> None:
        self._clock: list[int] = []
        self._used = 0
        self._pool: list[torch.cuda.Event] = []
        self._host_time: HostTime | None = None
        if torch.cuda.is_available():
            # Made before the loop: the instrument must not measure the allocation of its own events.
            self._pool = [torch.cuda.Event(enable_timing=True) for _ in range(most)]
            for event in self._pool:
                event.record()
            torch.cuda.synchronize()
            self._host_time = HostTime()
            self._host_time.take()

    @property
    def left(self) -> int:
        """How many more can be taken."""
        return len(self._pool) - self._used if self._pool else sys.maxsize

    def take(self) -> None:
        """Date this moment in the GPU's work."""
        if self._pool:
            self._pool[self._used].record()
        else:
            self._clock.append(time.monotonic_ns())
        self._used += 1

    def all_ns(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return them as CLOCK_MONOTONIC ns."""
        if self._host_time is None:
            return np.array(self._clock, dtype=np.float64)
        torch.cuda.synchronize()
        self._host_time.take()
        return self._host_time.of(self._pool[: self._used])


class OneOfTwo(TrainerCallback):
    """Has one of each two optimizer steps marked; behind an `EnergyCallback`, which is on throughout."""

    def __init__(self, energy: EnergyCallback, seconds: float) -> None:
        self._monitor = energy._fits.monitor  # noqa: SLF001
        self._run = self._monitor.run
        self._rng = random.Random(1)
        self._seconds, self._end = seconds, 0.0
        self._dated = Dated(round(seconds * 1e3 / _MOST_MS))
        self._marked: list[bool] = []
        self._drain_phase_ns = 0

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Have the background read often enough to compare, and wait for its first drain."""
        self._run = self._monitor.run
        assert self._run is not None
        run = self._run.meter.run
        assert run is not None
        sampler = run._sampler  # noqa: SLF001
        assert sampler is not None
        sampler.drain_every(OFTEN_NS)
        drains = sampler.stats().drains
        while sampler.stats().drains == drains:
            time.sleep(0.0005)
        self._drain_phase_ns = time.monotonic_ns()
        self._often = frequent_reader(list(run.uuids))
        self._often.start()
        gc.collect()
        gc.freeze()  # what came before is not searched for garbage again and again
        self._end = time.monotonic() + self._seconds
        self._choose()

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Date the end of the step, and choose whether the next is marked."""
        if time.monotonic() > self._end or self._dated.left < 2:
            control.should_training_stop = True
        self._choose()

    def on_epoch_end(self, *_: object, **__: object) -> None:
        """Give the callback its run back: the training may be over."""
        self._monitor.run = self._run

    def _choose(self) -> None:
        self._dated.take()
        on = not self._marked[-1] if len(self._marked) % 2 else self._rng.random() < 0.5
        self._marked.append(on)
        self._monitor.run = self._run if on else None  # without a run its events do nothing

    def result(self, energy: EnergyCallback) -> dict[str, Any]:
        """Return what `h200_cost.analyse` takes."""
        gpu_ns = self._dated.all_ns()
        counter = self._often.counter(0)
        self._often.stop()
        gc.unfreeze()
        report = energy.report
        assert report is not None
        return {
            "gpu_ns": gpu_ns,
            "marked": np.array(self._marked[: len(gpu_ns) - 1]),
            "drain_phase_ns": self._drain_phase_ns,
            "counter_ns": np.stack([counter["before_ns"], counter["after_ns"]], axis=1)[2:],
            "observer": {name: getattr(report.observer, name) for name in report.observer.__dataclass_fields__},
            "duration_s": report.duration_s,
            "warnings": list(report.warnings),
        }


def cost(bench: Bench, seconds: float) -> dict[str, Any]:
    """Train for ``seconds`` with every other step marked, and return what came of it."""
    energy = energy_callback(bench)
    pairs = OneOfTwo(energy, seconds)
    bench.train([energy, pairs], 10**6)
    return pairs.result(energy)


def energy_callback(bench: Bench) -> EnergyCallback:
    """Return ours, with its defaults but for what it prints."""
    return EnergyCallback(folder=str(bench.folder / "energy"), table=False)


# The other tools. Each function raises ImportError where its tool is not installed.


class ZeusWindows(TrainerCallback):
    """Zeus measures as its documentation shows: a window around each step."""

    def __init__(self) -> None:
        self._monitor: Any = import_module("zeus.monitor").ZeusMonitor(gpu_indices=[0])

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Open a window."""
        self._monitor.begin_window("step")

    def on_step_end(self, *_: object, **__: object) -> None:
        """Close it."""
        self._monitor.end_window("step")


class CodeCarbon(TrainerCallback):
    """CodeCarbon as transformers' own callback uses it, but without asking the network where it is."""

    def __init__(self) -> None:
        offline = import_module("codecarbon").OfflineEmissionsTracker
        self._tracker: Any = offline(country_iso_code="USA", save_to_file=False, log_level="error")

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Start."""
        self._tracker.start()

    def on_train_end(self, *_: object, **__: object) -> None:
        """Stop."""
        self._tracker.stop()


def matcha(_: Bench) -> TrainerCallback:
    """Return the callback of the package usematcha, by the keeyalabs/usematcha project."""
    callback: TrainerCallback = import_module("matcha.callbacks").StepEnergyCallback(quiet=True)
    return callback


def landauer_gap(_: Bench) -> TrainerCallback:
    """Return the callback of the package landauer-gap, whose module is called joules."""
    callback: TrainerCallback = import_module("joules.integrations.huggingface").JoulesCallback()
    return callback


TOOLS: dict[str, Callable[[Bench], TrainerCallback | None]] = {
    "nothing": lambda _: None,
    "nothing again": lambda _: None,
    "EnergyCallback": energy_callback,
    "zeus": lambda _: ZeusWindows(),
    "matcha": matcha,
    "landauer-gap": landauer_gap,
    "codecarbon": lambda _: CodeCarbon(),
}


class StepTime(TrainerCallback):
    """The mean time of a training's steps after the first few."""

    def __init__(self) -> None:
        self._began_s = 0.0
        self.mean_s = 0.0

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        """Look at the clock at both ends."""
        if state.global_step not in {_WARM, state.max_steps}:
            return
        wait_for_gpu()
        now_s = time.perf_counter()
        if state.global_step == _WARM:
            self._began_s = now_s
        else:
            self.mean_s = (now_s - self._began_s) / (state.max_steps - _WARM)


def compare(
    bench: Bench, rounds: int, steps: int, until_s: float = math.inf
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the step times (s) with each tool, round by round, and why a tool is left out.

    No round begins that might not end at ``until_s`` of `time.monotonic`.
    """
    took: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    rng = random.Random(2)
    longest_s = 0.0
    for number in range(rounds):
        began_s = time.monotonic()
        if began_s + longest_s > until_s:
            say(f"time for {number} of {rounds} rounds")
            break
        names = [name for name in TOOLS if name not in missing]
        rng.shuffle(names)
        for name in names:
            step_time = StepTime()
            try:
                callback = TOOLS[name](bench)
                bench.train([one for one in (callback, step_time) if one is not None], steps + _WARM)
                if getattr(callback, "disabled", False) or getattr(callback, "result", "") is None:
                    raise RuntimeError("it found nothing to measure")  # noqa: TRY301 - as if it had said so itself
            except Exception as error:  # another's tool may fail as it likes
                if name in {"nothing", "nothing again", "EnergyCallback"}:
                    raise
                missing[name] = f"{type(error).__name__}: {error}"
                took.pop(name, None)
                continue
            took.setdefault(name, []).append(step_time.mean_s)
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {took[name][-1] * 1e3:.2f} ms" for name in took))
        longest_s = max(longest_s, time.monotonic() - began_s)
    return took, missing


def ratios(took: dict[str, list[float]]) -> dict[str, tuple[float, Interval]]:
    """Return each tool's step time against nothing in the same round: the median, and its 95 % interval."""
    found = {}
    for name, times in took.items():
        each = [one / plain for one, plain in zip(times, took["nothing"], strict=True)]
        interval = bootstrap([np.array([one]) for one in each], lambda kept: float(np.median(kept)))
        found[name] = (statistics.median(each), interval)
    return found


def bars_of(analysed: dict[str, Any], against: dict[str, tuple[float, Interval]]) -> list[Bar]:
    """Return what must be reached."""
    ours, interval = against["EnergyCallback"]
    bars = [Bar("cost of EnergyCallback, upper 95 % end", analysed["upper_95"], at_most=0.01, show=".3%")]
    per_step = [against[name][0] for name in PER_STEP if name in against]
    if per_step:
        bars.append(
            Bar("step time with EnergyCallback, of that with the cheapest other per-step tool", ours / min(per_step),
                at_most=0.95, show=".3f")
        )  # fmt: skip
    of_run = [against[name][1].high for name in ("landauer-gap", "codecarbon") if name in against]
    if of_run:
        bars.append(
            Bar("lower end of EnergyCallback's step time, of the upper end of the cheapest tool's for runs",
                interval.low / min(of_run), at_most=1.0, show=".3f")
        )  # fmt: skip
    return bars


def gpu_bound_batch(folder: Path) -> Bench:
    """Return a bench whose step waits for the GPU: twice the batch takes nearly twice the time."""
    smaller_s, batch, probed_ms = math.inf, 8, {}
    while True:
        bench = Bench(folder, batch, dry=False)
        step_time = StepTime()
        bench.train([step_time], 20 + _WARM)
        probed_ms[batch] = step_time.mean_s * 1e3
        say(f"batch {batch}: a step takes {probed_ms[batch]:.1f} ms")
        if step_time.mean_s > _GPU_BOUND * smaller_s or batch >= _MOST_ROWS:
            bench.probed_ms = probed_ms
            return bench
        smaller_s, batch = step_time.mean_s, 2 * batch


def main() -> int:
    """Run everything, print it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--limit", type=float, default=280.0, help="seconds for it all")
    parser.add_argument("--dry", action="store_true", help="on the CPU and a simulated GPU; writes nothing")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        sys.stdout.write("h200_transformers: skipped, it needs a real GPU and CUDA\n")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    gpus: AbstractContextManager[object] = simulated_gpus() if options.dry else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, gpus:
        return _measure(Path(scratch), options)


def _measure(scratch: Path, options: argparse.Namespace) -> int:
    began_s = time.monotonic()
    bench = Bench(scratch, 4, dry=True) if options.dry else gpu_bound_batch(scratch)
    run = cost(bench, options.seconds)
    analysed = analyse(run)
    analysed |= {"observer": run["observer"], "duration_s": run["duration_s"], "warnings": run["warnings"]}
    say(
        f"step {analysed['step_ms']:.2f} ms, cost {analysed['share']:+.3%} (95 % upper end {analysed['upper_95']:+.3%})"
    )
    for part, values in analysed["parts"].items():
        say(f"   {part}: {values['extra_us']:+.1f} +- {values['extra_error_us']:.1f} us, {values['compared']} compared")
    took, missing = compare(bench, options.rounds, options.steps, began_s + options.limit)
    against = ratios(took)
    rows = [("step time against nothing", "median", "95 % interval")]
    rows += [(name, f"x{ratio:.3f}", f"{ends.low:.3f}-{ends.high:.3f}") for name, (ratio, ends) in against.items()]
    print_table([*rows, *((name, "-", why) for name, why in missing.items())])
    bars = bars_of(analysed, against)
    if options.dry:
        say("dry: nothing is written, and these figures mean nothing")
        return 0
    start_ns = run["gpu_ns"][0]
    raw: dict[str, dict[str, Any]] = {
        "steps": {"took_us": np.diff(run["gpu_ns"]) * 1e-3, "marked": run["marked"]},
        "counter_reads": {
            "start_ms": (run["counter_ns"][:, 0] - start_ns) * 1e-6,
            "end_ms": (run["counter_ns"][:, 1] - start_ns) * 1e-6,
        },
        "rounds_ms": {name: np.array(times) * 1e3 for name, times in took.items()},
    }
    figures = {
        "model": {"name": "GPT-2 small", "batch": bench.batch, "context": CONTEXT, "probed_ms": bench.probed_ms},
        "cost": analysed,
        "against_nothing": {
            name: {"ratio": ratio, "interval_95": interval} for name, (ratio, interval) in against.items()
        },
        "left_out": missing,
    }
    return finish("h200_transformers", gpus=gpu_names(), figures=figures, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
