"""How well the traced working sets predict the memory of real training steps, and what levels of memory the GPU has.

Each prediction is made from an example of half the size, without data; then the steps are run and compared with torch's
own peak of allocated memory. CUDA's libraries keep workspaces there, too, which belong to no model: what they held
before there was one is taken off, and shown.

    python benchmarks/h200_working_sets.py [--dry]
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from _common import Bar, Table, finish, gpu_names, print_table, say
from _models import Norm, perceptron, resnet
from torch import nn

from energy_plugins.measure.quantity import binary
from energy_plugins.tune import MemoryHierarchy, WorkingSet

_BAR = 0.15
_TOKENS = 512
Batch = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Cell:
    """One model, trained in one way."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    precision: str
    sizes: tuple[int, ...]


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - takes seconds

    config = GPT2Config()
    config.loss_type = "ForCausalLMLoss"  # what it takes anyway, but for a warning
    return GPT2LMHeadModel(config)


def _ids(size: int) -> Batch:
    ids = torch.zeros((size, _TOKENS), dtype=torch.long)
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def _mlp() -> nn.Module:
    return perceptron(*[1024] * 7)


def _rows(size: int) -> Batch:
    return torch.zeros(size, 1024)


def _images(size: int) -> Batch:
    return torch.zeros(size, 3, 224, 224)


def _sgd(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - of any kind that torch takes
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


def _fused(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    return torch.optim.AdamW(parameters, fused=True)


CELLS = (
    Cell("ResNet-50", resnet, _images, _sgd, "bf16", (8, 64, 256)),
    Cell("ResNet-50", resnet, _images, _sgd, "32", (64,)),
    Cell("ResNet-50, GroupNorm", lambda: resnet(norm=Norm.GROUP), _images, _sgd, "bf16", (64,)),
    Cell("GPT-2 small", _gpt2, _ids, _fused, "bf16", (4, 16, 64)),
    Cell("GPT-2 small, AdamW as by default", _gpt2, _ids, torch.optim.AdamW, "32", (4, 16)),
    Cell("MLP 6x1024", _mlp, _rows, _fused, "32", (4096, 65536)),
    Cell("MLP 6x1024", _mlp, _rows, _sgd, "bf16", (65536,)),
)


def _on_gpu(batch: Batch) -> Batch:
    return {key: one.cuda() for key, one in batch.items()} if isinstance(batch, dict) else batch.cuda()


def libraries_hold() -> int:
    """Have CUDA's libraries take their workspaces, and return what they hold (bytes)."""
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(256, 256, device="cuda", dtype=dtype)
        layer(torch.zeros(256, 256, device="cuda", dtype=dtype)).sum().backward()
    del layer
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def peak_of_a_step(cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer, size: int, count: int) -> int:
    """Return the peak of allocated memory (bytes) of a step of ``count`` micro-batches that is not the first."""
    batch = _on_gpu(cell.batch(size))

    def step() -> None:
        for _ in range(count):
            with torch.autocast("cuda", torch.bfloat16, enabled=cell.precision == "bf16"):
                loss = model(**batch).loss if isinstance(batch, dict) else model(batch).sum()
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def measured(cell: Cell) -> Iterator[dict[str, Any]]:
    """Yield predictions and measurements of one cell."""
    held = libraries_hold()
    model = cell.model().cuda()
    optimizer = cell.optimizer(model.parameters())
    for size in cell.sizes:
        before, began = torch.cuda.memory_allocated(), time.monotonic()
        torch.cuda.reset_peak_memory_stats()
        working_set = WorkingSet.of(model, cell.batch(size // 2), optimizer, cell.precision)
        took_s, used = time.monotonic() - began, torch.cuda.max_memory_allocated() - before
        for note in working_set.notes:
            say(f"  note: {note}")
        for count in (1, 2):
            peak = peak_of_a_step(cell, model, optimizer, size, count)
            predicted = working_set.peak_bytes(size, accumulating=count > 1)
            yield {
                "model": cell.name,
                "precision": cell.precision,
                "size": size,
                "micro_batches": count,
                "predicted_bytes": predicted,
                "peak_bytes": peak,
                "libraries_bytes": held,
                "error": predicted / (peak - held) - 1,
                "error_with_libraries": predicted / peak - 1,
                "trace_s": took_s,
                "trace_bytes": used,
            }
    del model, optimizer
    gc.collect()
    torch.cuda.empty_cache()


def dry() -> int:
    """Trace all cells on this machine, and say what is left out."""
    hierarchy = MemoryHierarchy.detect("cpu")
    say(f"{hierarchy.device}: {', '.join(f'{one.name} {binary(one.size_bytes)}' for one in hierarchy.levels)}")
    rows = [["model", "precision", "size", "predicted", "accumulating", "trace"]]
    for cell in CELLS:
        with torch.device("meta"):
            model = cell.model()
        for size in cell.sizes:
            began = time.monotonic()
            found = WorkingSet.of(model, cell.batch(1), cell.optimizer(model.parameters()), cell.precision)
            peaks = [binary(found.peak_bytes(size, accumulating=several)) for several in (False, True)]
            rows.append([cell.name, cell.precision, str(size), *peaks, f"{time.monotonic() - began:.1f} s"])
    print_table(rows)
    say("h200_working_sets: traced on the CPU; skipped: running the steps, their peaks, the GPU's levels, the bars")
    return 0


def levels() -> tuple[dict[str, Any], list[Bar]]:
    """Return what was detected of the GPU, and whether torch agrees about what it knows."""
    hierarchy, known = MemoryHierarchy.detect("cuda"), torch.cuda.get_device_properties(0)
    found = {one.name: one.size_bytes for one in hierarchy.levels}
    figures = {
        "device": hierarchy.device,
        "levels": {one.name: [one.size_bytes, one.bandwidth_bytes_per_s, one.sharers] for one in hierarchy.levels},
        "notes": list(hierarchy.notes),
        "torch": {"l2_bytes": known.L2_cache_size, "memory_bytes": known.total_memory},
    }
    l2, memory = found.get("L2", 0) / known.L2_cache_size, found.get("HBM", 0) / known.total_memory
    return figures, [
        Bar("L2 as detected over what torch says", l2, at_least=1, at_most=1, show=".3f"),
        Bar("HBM as detected over what torch may use", memory, at_least=1, at_most=1.05, show=".3f"),
    ]


def main() -> int:
    """Run, write the result, print the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="only trace, on the CPU: no GPU is needed")
    if parser.parse_args().dry:
        return dry()
    if not torch.cuda.is_available():
        sys.stdout.write(
            "h200_working_sets: skipped, it needs a real GPU and CUDA (--dry does what can be done without)\n"
        )
        return 0
    figures, bars = levels()  # before torch initialises CUDA: as a program asks that has not begun to train
    rows = []
    for cell in CELLS:
        say(f"{cell.name}, {cell.precision}")
        for row in measured(cell):
            rows.append(row)
            say(
                f"  {row['size']} x {row['micro_batches']}: predicted {binary(row['predicted_bytes'])}, "
                f"peak {binary(row['peak_bytes'])}, libraries {binary(row['libraries_bytes'])}: {row['error']:+.1%}"
            )
    worst = max(abs(row["error"]) for row in rows)
    bars.append(Bar("largest difference between predicted and measured peak", worst, at_most=_BAR))
    raw: dict[str, Table] = {"cells": {name: [row[name] for row in rows] for name in rows[0]}}
    worst_raw = max(abs(row["error_with_libraries"]) for row in rows)
    results = {"hierarchy": figures, "worst_error": worst, "worst_error_with_libraries": worst_raw}
    return finish("h200_working_sets", gpus=gpu_names(), figures=results, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
