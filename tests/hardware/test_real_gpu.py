"""The promises that only a real GPU can prove. Run alone: a process that simulated a GPU keeps its library."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pynvml
import pytest
import torch

from energy_plugins import EnergyMeter, visible_gpus

pytestmark = pytest.mark.hardware


def load(seconds: float) -> None:
    """Keep the GPU busy."""
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(50):
            matrix @ matrix
        torch.cuda.synchronize()


def counter_j(index: int) -> float:
    """Return the energy counter right after it has refreshed."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    first = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    while (now := pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) == first:
        pass
    pynvml.nvmlShutdown()
    return float(now) * 1e-3


def test_visible_gpus_are_those_of_torch() -> None:
    assert [gpu.uuid for gpu in visible_gpus()] == [
        f"GPU-{torch.cuda.get_device_properties(row).uuid}" for row in range(torch.cuda.device_count())
    ]


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_total_agrees_with_the_counter(*, busy: bool) -> None:
    gpu = visible_gpus()[0]
    if busy:
        load(1)
    with EnergyMeter(devices=[0]) as meter:
        before, started = counter_j(gpu.index), time.monotonic()
        if busy:
            load(4)
        else:
            time.sleep(4)
        after, ended = counter_j(gpu.index), time.monotonic()
    report = meter.report()
    assert not report.simulated
    assert report.total_j is not None
    assert report.coverage == pytest.approx(1)
    power_w = (after - before) / (ended - started)
    outside_s = report.duration_s - (ended - started)
    # The edges are up to 0.2 s in which the power is only about known.
    assert report.total_j == pytest.approx(
        power_w * report.duration_s, abs=0.01 * (after - before) + power_w * outside_s
    )


def test_every_step_has_an_event_and_its_gpu_time() -> None:
    load(0.5)
    with EnergyMeter(devices=[0]) as meter:
        for _ in range(50):
            with meter.step(samples=1):
                load(0.02)
        time.sleep(0.3)
    report = meter.report()
    assert report.work.steps == 50
    assert report.observer.events == 100
    assert np.isfinite(report.steps["energy_j"]).all()
    assert (report.steps["coverage"] == 1).all()


def test_work_is_called_by_what_limits_it() -> None:
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    source, target, few = (torch.zeros(size, device="cuda") for size in (1 << 29, 1 << 29, 16))
    work: dict[str, Callable[[], object]] = {
        "product": lambda: matrix @ matrix,
        "copy": lambda: target.copy_(source),
        "tiny": lambda: [few.add_(1) for _ in range(100)],
    }
    with EnergyMeter(devices=[0], activity=True) as meter:
        for name, do in work.items():
            with meter.span(name):
                end = time.monotonic() + 8
                while time.monotonic() < end:
                    do()
                    torch.cuda.synchronize()
    report = meter.report()
    bounds = {kind.kind: kind.bound for kind in report.kind_activity}
    assert bounds == {"product": "compute-bound", "copy": "memory-bound", "tiny": "launch-bound"}
    (state,) = report.gpu_states
    assert state.readings > 15
    for value, low, high in (
        (state.sm_clock_mhz, 300, 3000),
        (state.max_temperature_c, 20, 100),
        (state.utilisation, 0.5, 1),
        (state.min_limit_w, 50, 2000),
        (state.requested_limit_w, 50, 2000),
        (state.default_limit_w, 50, 2000),
        (state.throttled, 0, 1),
    ):
        assert value is not None
        assert low <= value <= high


def runtime_waits(folder: Path, *, monitored: bool, planted: bool = False) -> dict[str, int]:
    """Return how often the CUDA runtime was asked to wait in a fit of 20 steps."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch import Callback
    from lightning.pytorch.demos.boring_classes import BoringModel

    from energy_plugins.lightning import EnergyMonitor

    class Planted(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            event = torch.cuda.Event()
            event.record()
            event.synchronize()

    callbacks = [EnergyMonitor(str(folder), table=False, phases_every_n_steps=5)] if monitored else []
    trainer = lightning.Trainer(
        accelerator="gpu",
        devices=1,
        max_steps=20,
        limit_val_batches=0,
        log_every_n_steps=5,
        logger=lightning.pytorch.loggers.CSVLogger(folder),
        callbacks=[*callbacks, *([Planted()] if planted else [])],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        trainer.fit(BoringModel())
    assert profile.profiler is not None
    names = [event.name() for event in profile.profiler.kineto_results.events()]
    return dict(Counter(name for name in names if "Synchronize" in name or ("Memcpy" in name and "Async" not in name)))


@pytest.mark.filterwarnings("ignore")
def test_the_callback_adds_no_synchronisation(tmp_path: Path) -> None:
    runtime_waits(tmp_path / "warm", monitored=False)
    without = runtime_waits(tmp_path / "without", monitored=False)
    assert runtime_waits(tmp_path / "with", monitored=True) == without
    planted = runtime_waits(tmp_path / "planted", monitored=False, planted=True)
    assert sum(planted.values()) >= sum(without.values()) + 20, "the check would not see a wait"
