"""What `MicroBatchTuner` and `MicroBatchCallback` choose on a real GPU, against every other size in the same training.

First the tuner searches, as it does for anybody. Then, in the same training, each possible size has its turn in
windows of 5 s or more, in rounds of random order; one that draws over 1.06 times what the best does has only one,
unless it is the user's or ours. After it, unless --alone, what Lightning's `BatchSizeFinder` or transformers'
`auto_find_batch_size` finds, and what a sample costs then.

    python benchmarks/h200_micro_batch.py --only resnet [--limit 540] [--seconds 5] [--alone] [--dry]

| name         | framework    | model                     | the user's setting |
|--------------|--------------|---------------------------|--------------------|
| resnet       | Lightning    | ResNet-50, BatchNorm      | 8 x 32             |
| resnet-group | Lightning    | ResNet-50, GroupNorm      | 8 x 32             |
| gpt2         | transformers | GPT-2 small, 512 tokens   | 4 x 16             |
| conv         | Lightning    | 16 1x1 convolutions       | 2048 x 1           |
| mlp          | Lightning    | MLP 6 x 1024              | 65536 x 1          |
| split        | Lightning    | ResNet-50, BatchNorm      | 4096 x 1           |

The layers of conv are all alike, so that all leave the L2 at the same size, and are cheap enough that reading memory
is what they do: there the curve is to turn. Those of mlp leave it, too, but multiply matrices: it has no turn.

Each is a call of its own and has a result of its own, written after each round: a time limit loses nothing. Images are
noise on the GPU; the text is the standard library's sources, a token a byte. All in bf16.

``--dry`` tries the whole path with small models on the CPU and a simulated GPU in virtual time, and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _common import Bar, Table, finish, gpu_names, print_table, say
from _models import Norm, convolutions, perceptron, resnet
from _sizes_in_turn import ROUNDS, Drawn, Turns, Window, as_table, drawn_in, knee, sample_joules
from h200_transformers import CONTEXT, Sources
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import BatchSizeFinder
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.testing import Simulation, simulated_gpus
from energy_plugins.training.micro_batch.plan import sizes
from energy_plugins.training.monitor import Monitor
from energy_plugins.transformers import EnergyCallback, MicroBatchCallback
from energy_plugins.tune import MemoryHierarchy, WorkingSet

_NOISE = 0.005
_SIMULATED_FITS = 8
_FOREVER = 10**6
_BESIDE_S = 50.0
"""Of the time for a row, what is kept for another tool: it is not begun with half of it."""

Write = Callable[["Found"], int]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training of the table."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...] = ()
    """Of a sample; empty for text."""
    batch: int
    accumulation: int
    allow: bool = False
    knee: bool = False
    """Whether the curve is to turn where a layer leaves the L2."""
    only_split: bool = False
    """Whether the user's setting is not to fit into memory, which a simulated GPU is told."""
    most_parts: int = 64
    """A batch is cut into no more: such steps would take many seconds."""
    ceiling: int = 4096
    """Where other tools that look for the largest size begin or end."""


def _gpt2(**small: Any) -> nn.Module:  # noqa: ANN401 - the configuration's own
    config = GPT2Config(**small)
    config.loss_type = "ForCausalLMLoss"  # what it takes anyway, but for a warning
    return GPT2LMHeadModel(config)


ROWS = {
    "resnet": Row(model=resnet, shape=(3, 224, 224), batch=8, accumulation=32, allow=True),
    "resnet-group": Row(model=lambda: resnet(norm=Norm.GROUP), shape=(3, 224, 224), batch=8, accumulation=32),
    "gpt2": Row(model=_gpt2, batch=4, accumulation=16, ceiling=512),
    "conv": Row(model=convolutions, shape=(3, 32, 32), batch=2048, accumulation=1, allow=True, knee=True,
                ceiling=2**14),
    "mlp": Row(model=lambda: perceptron(*[1024] * 7), shape=(1024,), batch=65536, accumulation=1, ceiling=2**20),
    "split": Row(model=resnet, shape=(3, 224, 224), batch=4096, accumulation=1, allow=True,
                 only_split=True, most_parts=16),
}  # fmt: skip


def small(row: Row) -> Row:
    """Return a row of the same kind for a CPU."""
    if not row.shape:
        tiny = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 256, "n_positions": 32}
        return replace(row, model=lambda: _gpt2(**tiny), batch=4, accumulation=4, ceiling=8)
    batch, accumulation = (16, 1) if row.accumulation == 1 else (4, 4)
    shape = (3, 4, 4) if len(row.shape) > 1 else (16,)

    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), perceptron(math.prod(shape), 16, 8))

    return replace(row, model=model, shape=shape, batch=batch, accumulation=accumulation, ceiling=64)


@dataclass
class Found:
    """What has been measured of a row so far."""

    part: MicroBatchPart | None = None
    drawn: Sequence[Drawn] = ()
    check_s: float = 0.0
    """How long gradients were compared until the search was over."""
    stopped: str = ""
    other: str = ""
    """The name of the other tool, once it has had its turn,"""
    other_size: int | None = None
    other_drawn: Sequence[Drawn] = ()
    other_why: str = ""
    levels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A row, and how it is run."""

    row: Row
    folder: Path
    seconds: float
    deadline_s: float
    alone: bool
    """Whether no other tool has its turn."""
    simulation: Simulation | None

    @property
    def device(self) -> str:
        """What it trains on."""
        return "cpu" if self.simulation else "cuda"

    @property
    def left_s(self) -> float:
        """Until the end of the time that was given."""
        return self.deadline_s - now_s()

    def work(self, size: int) -> None:
        """Have the simulated GPU work on a pass: there is a fixed cost, and beyond 8 samples a cache is too small."""
        if self.simulation is not None:
            if self.row.only_split and size > _SIMULATED_FITS:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {size} samples, SIMULATED")
            spilt = 4 * max(size - 8, 0) if self.row.knee else 0
            self.simulation.gpus[0].launch(ops=1.2e13 * (4 + size + spilt), wait=True)

    def turns(self, start: int, each: Sequence[int], write: Callable[[Sequence[Window]], Sequence[Drawn]]) -> Turns:
        """Return turns of sizes that end in time."""
        return Turns(
            each,
            start=start,
            seconds=self.seconds,
            deadline_s=self.deadline_s - (0.0 if self.alone else _BESIDE_S),
            write=write,
        )


def now_s() -> float:
    """Return the time by the clock of the drivers, which may be a simulated one."""
    return current_drivers().clock.now_ns() * 1e-9


def sizes_of(row: Row) -> list[int]:
    """Return what has a turn, from the smallest.

    Of those below the user's one is enough where there are larger ones: each half as large cost more by half or more.
    """
    possible = [one for one in sizes(row.batch, row.accumulation) if one & (one - 1) == 0]
    return [one for one in possible if one * (row.most_parts if row.accumulation == 1 else 2) >= row.batch]


# Lightning.


class Pool(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches of noise without end, made once and where they are used: loading is not what is measured."""

    def __init__(self, bench: Bench, batch: int) -> None:
        made = torch.Generator(bench.device).manual_seed(0)
        count = min(batch, 1024 if len(bench.row.shape) > 1 else batch)
        self._samples = torch.randn((count, *bench.row.shape), generator=made, device=bench.device)
        self._labels = torch.randint(0, 8, (count,), generator=made, device=bench.device)
        self._repeat = -(-batch // count)
        self._batch = batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        samples = self._samples.repeat(self._repeat, *[1] * (self._samples.ndim - 1))[: self._batch]
        labels = self._labels.repeat(self._repeat)[: self._batch]
        while True:
            yield samples, labels


class Learner(LightningModule):
    """Learns labels by SGD with momentum."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bench = bench
        self.net = bench.row.model()
        self.batch_size = bench.row.batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Return the mean cross entropy."""
        self.bench.work(len(batch[0]))
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with momentum."""
        return sgd(self.parameters())

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of the size that is asked for just now."""
        return DataLoader(Pool(self.bench, self.batch_size), batch_size=None)


def sgd(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - of any kind that torch takes
    """Return the optimizer of what Lightning trains."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


class LightningTurns(Callback):
    """Counts the rows of the report, and has sizes take turns; before the monitor, which hands on what is chosen."""

    def __init__(self, turns: Turns, tuner: MicroBatchTuner) -> None:
        self._turns, self._tuner, self._rows = turns, tuner, 0

    def on_train_batch_end(self, trainer: LightningTrainer, *_: object) -> None:
        """Act when an optimizer step has ended."""
        self._rows += 1
        batcher = self._tuner._batcher  # noqa: SLF001
        if batcher is not None and self._rows % trainer.accumulate_grad_batches == 0:
            self._turns.after_step(batcher, self._rows)
            trainer.should_stop = trainer.should_stop or self._turns.is_over


def lightning_trainer(bench: Bench, callbacks: list[Callback], **options: Any) -> LightningTrainer:  # noqa: ANN401 - the trainer's own
    """Return a trainer that leaves no files."""
    return LightningTrainer(
        accelerator="cpu" if bench.simulation else "gpu",
        devices=1,
        precision="32-true" if bench.simulation else "bf16-mixed",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=bench.folder,
        **{"max_steps": _FOREVER, "max_epochs": -1, **options},
    )


def in_lightning(
    bench: Bench,
    model: Learner,
    accumulation: int,
    each: Sequence[int],
    write: Write,
    **tuner: Any,  # noqa: ANN401 - the tuner's own
) -> Found:
    """Train with the tuner, then with sizes in turn."""
    monitor = EnergyMonitor(str(bench.folder / "energy"), table=False, log=False, progress_bar=False)
    tuning, found = MicroBatchTuner(**tuner), Found()
    running = monitor._monitor  # noqa: SLF001

    def written(windows: Sequence[Window]) -> Sequence[Drawn]:
        found.check_s = turns.check_s
        return so_far(found, running, tuning.found, windows, write)

    turns = bench.turns(model.batch_size, each, written)
    callbacks = [LightningTurns(turns, tuning), monitor, tuning]
    lightning_trainer(bench, callbacks, accumulate_grad_batches=accumulation).fit(model)
    found.part, found.stopped, found.check_s = tuning.found, turns.stopped, turns.check_s
    found.drawn = drawn_in(the_report(bench), turns.windows)
    return found


def largest_by_lightning(bench: Bench) -> tuple[int, str]:
    """Return what `BatchSizeFinder` finds, and what is wrong with it if the training cannot go on so."""
    model = Learner(bench)
    finder = BatchSizeFinder(
        mode="power", steps_per_trial=3, init_val=min(bench.row.batch, 64), max_val=bench.row.ceiling
    )
    try:
        lightning_trainer(bench, [finder], max_steps=1).fit(model)
    except torch.OutOfMemoryError:
        return model.batch_size, "the training ran out of memory with it"
    return model.batch_size, ""


# transformers.


class TrainerTurns(TrainerCallback):
    """Does the same in a Trainer."""

    def __init__(self, turns: Turns, energy: EnergyCallback) -> None:
        self._turns, self._energy, self._rows = turns, energy, 0

    def on_step_end(self, args: object, state: object, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002 - a TrainerControl
        """Act when an optimizer step has ended."""
        self._rows += 1
        batcher = self._energy._fits.monitor.batcher  # noqa: SLF001
        if batcher is not None:
            self._turns.after_step(batcher, self._rows)
            control.should_training_stop = control.should_training_stop or self._turns.is_over


def hf_trainer(bench: Bench, callbacks: list[TrainerCallback], **options: Any) -> Trainer:  # noqa: ANN401 - the arguments' own
    """Return a trainer that leaves no files."""
    args = TrainingArguments(
        output_dir=str(bench.folder / "out"),
        bf16=bench.simulation is None,
        use_cpu=bench.simulation is not None,
        dataloader_pin_memory=bench.simulation is None,
        dataloader_drop_last=True,
        optim="adamw_torch" if bench.simulation else "adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
        **{"max_steps": _FOREVER, **options},
    )
    torch.manual_seed(0)
    model = bench.row.model()
    model.register_forward_pre_hook(lambda _, __, batch: bench.work(len(batch["input_ids"])), with_kwargs=True)
    data = Sources(32 if bench.simulation else CONTEXT)
    return Trainer(model, args, train_dataset=data, callbacks=callbacks)


def in_trainer(bench: Bench, batch: int, accumulation: int, each: Sequence[int], write: Write, **tuner: Any) -> Found:  # noqa: ANN401 - the callback's own
    """Train with the callback, then with sizes in turn."""
    energy = EnergyCallback(folder=str(bench.folder / "energy"), table=False, log=False, progress_bar=False)
    found = Found()

    def written(windows: Sequence[Window]) -> Sequence[Drawn]:
        batcher = energy._fits.monitor.batcher  # noqa: SLF001
        found.check_s = turns.check_s
        return so_far(found, energy._fits.monitor, batcher.part() if batcher else None, windows, write)  # noqa: SLF001

    turns = bench.turns(batch, each, written)
    callbacks: list[TrainerCallback] = [TrainerTurns(turns, energy), energy, MicroBatchCallback(**tuner)]
    hf_trainer(bench, callbacks, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation).train()
    report = energy.report
    found.part, found.stopped = None if report is None else report.micro_batch, turns.stopped
    found.check_s = turns.check_s
    found.drawn = drawn_in(the_report(bench), turns.windows)
    return found


def largest_by_trainer(bench: Bench) -> tuple[int, str]:
    """Return what `auto_find_batch_size` finds, from far too much downwards; nothing is wrong with that."""
    trainer = hf_trainer(
        bench, [], per_device_train_batch_size=bench.row.ceiling, auto_find_batch_size=True, max_steps=3
    )
    trainer.train()
    return int(trainer.state.train_batch_size or bench.row.ceiling), ""


# Both.


def so_far(
    found: Found, monitor: Monitor, part: MicroBatchPart | None, windows: Sequence[Window], write: Write
) -> Sequence[Drawn]:
    """Have written what is known in the middle of a training."""
    folder = None if monitor.run is None else monitor.run.place.folder
    found.part, found.drawn = part, [] if folder is None else drawn_in(folder, windows)
    write(found)
    return found.drawn


def the_report(bench: Bench) -> Path:
    """Return where the report of the last training is."""
    return max((bench.folder / "energy").glob("run-*"), key=lambda one: int(one.name.partition("-")[2]))


def beside(bench: Bench, found: Found) -> None:
    """Have the other tool look for its size, and measure that in a training of its own."""
    row = bench.row
    found.other = "BatchSizeFinder" if row.shape else "auto_find_batch_size"
    if bench.left_s < _BESIDE_S / 2:
        found.other_why = f"only {max(bench.left_s, 0):.0f} s were left"
        return
    clear()
    bench = replace(bench, alone=True)  # the time that was kept is its own
    try:
        size, why = largest_by_lightning(bench) if row.shape else largest_by_trainer(bench)
        found.other_size, found.other_why = size, why
        clear()
        if why:
            return
        if row.shape:
            model = Learner(bench)
            model.batch_size = size
            one = in_lightning(bench, model, 1, [size], lambda _: 0, size=size, allow_batch_statistics=True)
        else:
            one = in_trainer(bench, size, 1, [size], lambda _: 0, size=size, allow_batch_statistics=True)
        found.other_drawn = one.drawn
    except Exception as error:  # noqa: BLE001 - another's tool may fail as it likes
        found.other_why = f"{type(error).__name__}: {error}"


def clear() -> None:
    """Free what the last training held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def predicted(bench: Bench) -> dict[str, Any]:
    """Return up to which size a layer's activations are predicted to live in the L2."""
    model, row = bench.row.model(), bench.row
    hierarchy = MemoryHierarchy.detect(bench.device)
    example = torch.zeros(2, *row.shape)
    sets = WorkingSet.of(model, example, sgd(model.parameters()), "32" if bench.simulation else "bf16")
    l2 = next((one.size_bytes for one in hierarchy.levels if one.name == "L2"), 0)
    inside = [one for one in sizes_of(row) if sets.layer_bytes_per_sample * one <= l2]
    return {
        "l2_bytes": l2,
        "layer_bytes_per_sample": sets.layer_bytes_per_sample,
        "predicted_size": max(inside, default=None),
        "largest_that_fits": sets.largest_within(next(one.size_bytes for one in reversed(hierarchy.levels))),
    }


def bars_of(row: Row, found: Found) -> list[Bar]:
    """Return what must be reached, as far as it has been measured."""
    joules, part = sample_joules(found.drawn), found.part
    if part is None or not joules:
        return [Bar("sizes that were measured", float(len(joules)), at_least=2, show=".0f")]
    bars = [
        Bar("seconds of training in which the search ran", part.search_s, at_most=60.0, show=".1f"),
        Bar("the same, and gradients were compared before", part.search_s + found.check_s, at_most=60.0, show=".1f"),
    ]
    each = [
        sum(one.size == size for one in found.drawn)
        for size in (part.chosen or row.batch, min(joules, key=joules.__getitem__))
    ]
    bars.append(Bar("windows of the size chosen, and of the best", float(min(each)), at_least=ROUNDS, show=".0f"))
    chosen, best = joules.get(part.chosen or row.batch, math.nan), min(joules.values())
    users = joules.get(row.batch)
    if users is None:  # it does not fit, or has not had its turn
        bars.append(Bar("joules with the size chosen, of the best size's", chosen / best, at_most=1.05, show=".3f"))
    else:
        what = "joules with the size chosen, of those with the user's setting"
        bars.append(Bar(what, chosen / users, at_most=1 + _NOISE, show=".3f"))
        if not row.knee:
            share = (users - chosen) / (users - best) if users > best else 1.0
            what = "saving of the size chosen, of that of the best size in the same run"
            bars.append(Bar(what, share, at_least=0.95))
    if row.knee:
        seen, told = knee(joules), found.levels["predicted_size"]
        apart = math.nan if seen is None or told is None else abs(math.log2(seen / told))
        bars.append(Bar("candidates from the predicted level to the measured knee", apart, at_most=1, show=".0f"))
    return bars


def figures_of(row: Row, found: Found) -> dict[str, Any]:
    """Return the figures of a result."""
    joules, part = sample_joules(found.drawn), found.part
    users = joules.get(row.batch)
    best = min(joules, key=joules.__getitem__, default=None)
    other = sample_joules(found.other_drawn)
    return {
        "setting": {"batch": row.batch, "accumulation": row.accumulation},
        "tuner": None if part is None else {
            "chosen": part.chosen, "source": part.source, "why": part.why, "search_s": part.search_s,
            "check_s": found.check_s, "check_s_in_all": part.check_s, "gradient_checks": part.gradient_checks,
            "expected_saving": part.expected_saving, "confidence": part.confidence,
            "gradient_difference": part.gradient_difference, "gradient_limit": part.gradient_limit,
            "tried": [vars(one) for one in part.tried], "explanation": list(part.explanation),
        },
        "sample_j": joules,
        "saving": {} if users is None else {size: 1 - one / users for size, one in joules.items()},
        "best_size": best,
        "measured_knee": knee(joules),
        "predicted": found.levels,
        "stopped": found.stopped,
        "other_tool": {"name": found.other, "size": found.other_size, "why": found.other_why,
                       "sample_j": other.get(found.other_size or 0)},
    }  # fmt: skip


def table(row: Row, found: Found) -> None:
    """Print what a sample costs."""
    joules, part = sample_joules(found.drawn), found.part
    users = joules.get(row.batch)
    lines = [["samples at once", "J/sample", "against the setting", ""]]
    for size, one in joules.items():
        marks = [
            text for text, is_it in (("the user's", size == row.batch), ("ours", part and size == part.chosen)) if is_it
        ]
        lines.append([str(size), f"{one:.4g}", "" if users is None else f"{one / users - 1:+.1%}", ", ".join(marks)])
    for size, one in sample_joules(found.other_drawn).items():
        lines.append([str(size), f"{one:.4g}", "" if users is None else f"{one / users - 1:+.1%}", found.other])
    print_table(lines)
    if found.other_why:
        say(f"{found.other} {found.other_size or ''}: {found.other_why}")
    if part is not None and part.why:
        say(f"left alone: {part.why}")


def measure(name: str, bench: Bench) -> int:
    """Run a row, print it, and write its result."""
    row, gpus = bench.row, gpu_names()
    levels = predicted(bench) if row.shape else {}

    def write(found: Found) -> int:
        found.levels = levels
        table(row, found)
        bars = bars_of(row, found)
        if bench.simulation:
            for bar in bars:
                say(f"SIMULATED: {bar}")
            return 0
        raw: dict[str, Table] = {"windows": as_table(found.drawn), "other_tool": as_table(found.other_drawn)}
        result = f"h200_micro_batch_{name.replace('-', '_')}"
        return finish(result, gpus=gpus, figures=figures_of(row, found), bars=bars, raw=raw)

    each = sizes_of(row)
    say(f"{name}: {row.batch} x {row.accumulation}, sizes {', '.join(map(str, each))}")
    asked = {"search_share": 0.5, "allow_batch_statistics": row.allow}
    if row.shape:
        found = in_lightning(bench, Learner(bench), row.accumulation, each, write, **asked)
    else:
        found = in_trainer(bench, row.batch, row.accumulation, each, write, **asked)
    if not bench.alone:
        write(found)
        beside(bench, found)
    return write(found)


def main() -> int:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for each")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window, at least")
    parser.add_argument("--alone", action="store_true", help="without another tool's size")
    parser.add_argument("--dry", action="store_true", help="on the CPU and a simulated GPU; writes nothing")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        sys.stdout.write("h200_micro_batch: skipped, it needs a real GPU and CUDA (--dry tries it without)\n")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", message=".*num_workers.*|.*does not have many workers.*")
    failed = 0
    for name in options.only:
        gpus: AbstractContextManager[Any] = simulated_gpus(virtual=True, start_s=10) if options.dry else nullcontext()
        with tempfile.TemporaryDirectory() as scratch, gpus as simulation:
            os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")  # what was chosen before is not remembered
            row = small(ROWS[name]) if options.dry else ROWS[name]
            bench = Bench(row, Path(scratch), options.seconds, now_s() + options.limit, options.alone, simulation)
            failed |= measure(name, bench)
            clear()
    if options.dry:
        say("dry: SIMULATED, nothing is written, and these figures mean nothing")
    return failed


if __name__ == "__main__":
    sys.exit(main())
