"""What measuring costs on a real GPU.

Marks and background reads within one run, beside the usual windows of other tools.

Within one run the sampler is on throughout. Of each two steps in a row one has marks, and chance says which: marks
cost the mean difference within these pairs. Pairs with a step beyond twice the median are left out: they are the host's
(garbage collection, other tenants) and hit both sides alike. Steps during which a background read happened are compared
with their neighbours. Step times are intervals between CUDA events that this script records in every step alike. The
cost of measuring is the sum: marks, plus each background read times its default rate. All this was fixed before the
run; the plain difference of all marked and unmarked steps is reported beside it.

And beside that: the energy counter read at both ends of every step with a synchronisation, as the usual tools do,
against nothing, in alternating blocks.

    python benchmarks/h200_cost.py [--seconds 110]
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pynvml
import torch
from _common import Bar, bootstrap, finish, gpu_names, say
from numpy.typing import NDArray

from energy_plugins import EnergyMeter, _native
from energy_plugins.measure.drivers import current_drivers
from energy_plugins.measure.power_sensors import SAMPLE_BUFFER
from energy_plugins.measure.sensors import DRAIN_PERIOD_NS

Step = Callable[[], None]

RESOLVE_PERIOD_NS = 600_000_000
"""How often the sampler times events that have completed."""
OFTEN_NS = 900_000_000
"""How often this run drains the buffer, so that there are 100 drains to compare; charged at the default rate."""
OFTEN_S = 0.73
"""Of the extra sampler that reads the counter often enough to compare 100 steps; its default is 12 s or more."""
_WARM = 60
"""Steps at the start that are not compared; an even number, since pairs begin with the first."""
_LONGER = {"gpu_bound": 1.0, "launch_bound": 1.6}
"""The host's times scatter more than the GPU's."""
_BARS = {"gpu_bound": 0.005, "launch_bound": 0.01}


def model_step(width: int, layers: int, batch: int, sequence: int, *, fused: bool) -> Step:
    """Return one training step of a transformer encoder on random data: bf16 autocast, AdamW."""
    layer = torch.nn.TransformerEncoderLayer(width, 8, 4 * width, 0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused or None, foreach=None if fused else True)
    data = torch.randn(batch, sequence, width, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(data).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Step, steps: int) -> float:
    """Return the mean time (s) of some steps, from an idle GPU to an idle GPU."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def seconds_per_step(step: Step) -> float:
    """Return the time of one step after a warm-up."""
    timed(step, 20)
    return timed(step, 60)


def gpu_bound() -> Step:
    """Return a step of about 15 ms that the GPU takes longer for than the host."""
    batch = 16
    while True:
        step = model_step(1024, 6, batch, 512, fused=True)
        took_s = seconds_per_step(step)
        say(f"gpu-bound: batch {batch} takes {took_s * 1e3:.2f} ms")
        if took_s > 0.013 or batch > 256:
            return step
        batch = max(batch + 4, round(batch * 0.015 / took_s))


def launch_bound() -> Step:
    """Return a step of 5-10 ms that the host takes longer for than the GPU."""
    layers = 4
    while True:
        step = model_step(128, layers, 2, 64, fused=False)
        took_s = seconds_per_step(step)
        say(f"launch-bound: {layers} layers take {took_s * 1e3:.2f} ms")
        if took_s > 0.0055 or layers > 64:
            return step
        layers = max(layers + 1, round(layers * 0.007 / took_s))


class HostTime:
    """Maps CUDA events to CLOCK_MONOTONIC ns.

    An event on an idle stream, bracketed by clock reads, at both ends of a run.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._marks: list[tuple[torch.cuda.Event, int]] = []

    def take(self) -> None:
        """Bracket one event."""
        best: tuple[int, torch.cuda.Event, int] | None = None
        for _ in range(5):
            event = torch.cuda.Event(enable_timing=True)
            before = time.monotonic_ns()
            event.record(self._stream)
            event.synchronize()
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, event, (before + after) // 2)
        assert best is not None
        self._marks.append(best[1:])

    def of(self, events: list[torch.cuda.Event]) -> NDArray[np.float64]:
        """Return host times (ns); elapsed times are chained over 200 events to stay exact in float32."""
        (first, first_ns), (last, last_ns) = self._marks
        offsets, base, base_ms = [], first, 0.0
        for row, event in enumerate(events):
            ms = base_ms + base.elapsed_time(event)
            offsets.append(ms)
            if row % 200 == 199:
                base, base_ms = event, ms
        total_ms = base_ms + base.elapsed_time(last)
        return np.asarray(first_ns + np.array(offsets) * (last_ns - first_ns) / total_ms)


def frequent_reader(uuids: list[str]) -> _native.Sampler:
    """Return a sampler that does nothing but read the counter, often."""
    drivers = current_drivers()
    return _native.Sampler(
        _native.Nvml(drivers.nvml),
        uuids,
        drivers.clock.native,
        drain_period_ns=3_600_000_000_000,
        sources=[_native.PowerSource.NONE] * len(uuids),  # with no power to read, its period is kept to
        counter_period_ns=round(OFTEN_S * 1e9),
    )


def one_run(step: Step, seconds: float, seed: int) -> dict[str, Any]:
    """Run steps for ``seconds``, one of each two with marks.

    Return step times and when background reads happened.
    """
    rng = random.Random(seed)
    for _ in range(50):
        step()
    torch.cuda.synchronize()
    meter = EnergyMeter("cost")
    meter.start()
    run = meter.run
    assert run is not None
    sampler = run._sampler  # noqa: SLF001
    assert sampler is not None
    sampler.drain_every(OFTEN_NS)
    drains = sampler.stats().drains
    while sampler.stats().drains == drains:
        time.sleep(0.0005)
    drain_phase_ns = time.monotonic_ns()
    often = frequent_reader(list(run.uuids))
    often.start()
    time.sleep(0.5)
    host_time = HostTime()
    host_time.take()
    events: list[torch.cuda.Event] = []
    marked: list[bool] = []
    host_ns: list[int] = []
    end = time.monotonic() + seconds
    # Objects are made before the loop: the instrument must not measure the allocation of its own events.
    pool = [torch.cuda.Event(enable_timing=True) for _ in range(int(seconds / 0.004))]
    for event in pool:
        event.record()
    torch.cuda.synchronize()
    gc.collect()
    gc.freeze()  # what the warm-up left behind is not searched for garbage again and again
    while time.monotonic() < end and len(events) < len(pool) - 1:
        on = not marked[-1] if len(marked) % 2 else rng.random() < 0.5
        event = pool[len(events)]
        event.record()
        events.append(event)
        marked.append(on)
        host_ns.append(time.monotonic_ns())
        if on:
            with meter.step(samples=1):
                step()
        else:
            step()
    event = pool[len(events)]
    event.record()
    events.append(event)
    torch.cuda.synchronize()
    host_time.take()
    counter = often.counter(0)
    often.stop()
    meter.stop()
    report = meter.report()
    return {
        "gpu_ns": host_time.of(events),
        "host_ns": np.array(host_ns),
        "marked": np.array(marked),
        "drain_phase_ns": drain_phase_ns,
        "counter_ns": np.stack([counter["before_ns"], counter["after_ns"]], axis=1)[2:],
        "observer": {name: getattr(report.observer, name) for name in report.observer.__dataclass_fields__},
        "duration_s": report.duration_s,
        "dropped": report.observer.dropped,
        "warnings": list(report.warnings),
    }


def analyse(run: dict[str, Any]) -> dict[str, Any]:
    """Return the cost of each part as a share of the step time, with 95 % intervals, and their sum."""
    gpu_ns = run["gpu_ns"]
    took = np.diff(gpu_ns)
    marked = run["marked"]
    usual = took < 2 * np.median(took)
    body = usual & (np.arange(len(took)) > _WARM)  # the first steps fill the queue
    step_ns = float(np.mean(took[body]))
    parts = {"marks": _share(_paired(took, marked, usual), step_ns, 1.0)}
    plain = _share(_difference(took[body & marked], took[body & ~marked]), step_ns, 1.0)
    first, last = gpu_ns[_WARM + 1], gpu_ns[-1]
    drains = np.arange(run["drain_phase_ns"], last, OFTEN_NS, dtype=np.float64)
    resolves = np.arange(run["drain_phase_ns"], last, RESOLVE_PERIOD_NS, dtype=np.float64)
    apart = np.abs(resolves - drains[np.clip(np.searchsorted(drains, resolves + 20e6) - 1, 0, None)])
    resolves = resolves[apart > 20e6]  # those that come with a drain are counted there
    # drain_phase_ns was taken just after a drain ended; look from 3 ms before it to 5 ms after, which covers the
    # collector's work too.
    parts["drain_and_collect"] = _share(
        _overlap(gpu_ns, took, drains - 3e6, drains + 5e6, first), step_ns, step_ns / DRAIN_PERIOD_NS
    )
    parts["resolve_only"] = _share(
        _overlap(gpu_ns, took, resolves - 3e6, resolves + 1e6, first), step_ns, step_ns / RESOLVE_PERIOD_NS
    )
    counter = run["counter_ns"].astype(np.float64)
    parts["counter_read"] = _share(
        _overlap(gpu_ns, took, counter[:, 0], counter[:, 1], first),
        step_ns,
        step_ns / (SAMPLE_BUFFER.counter_period_s * 1e9),
    )
    mean = sum(part["share"] for part in parts.values())
    error = float(np.sqrt(sum(part["error"] ** 2 for part in parts.values())))
    return {
        "step_ms": step_ns * 1e-6,
        "steps": len(took),
        "parts": parts,
        "marks_unpaired": plain,
        "share": mean,
        "upper_95": mean + 1.96 * error,
        "lower_95": mean - 1.96 * error,
    }


def _paired(took: NDArray[np.float64], marked: NDArray[np.bool_], usual: NDArray[np.bool_]) -> tuple[float, float, int]:
    """Return by how much the marked step of each pair took longer than the other, its standard error, and the pairs."""
    pairs = (len(took) - _WARM) // 2
    rows = np.arange(_WARM, _WARM + 2 * pairs).reshape(pairs, 2)
    rows = rows[usual[rows].all(axis=1)]
    extra = np.where(marked[rows[:, 0]], 1.0, -1.0) * (took[rows[:, 0]] - took[rows[:, 1]])
    return float(extra.mean()), float(extra.std() / np.sqrt(len(extra))), len(extra)


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float, int]:
    error = float(np.sqrt(one.var() / len(one) + other.var() / len(other)))
    return float(one.mean() - other.mean()), error, min(len(one), len(other))


def _overlap(
    gpu_ns: NDArray[np.float64],
    took: NDArray[np.float64],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    first: float,
) -> tuple[float, float, int]:
    """Return the extra time (ns) of the steps that a read touched, and the next one, against three on either side."""
    extra = []
    low = np.searchsorted(gpu_ns, start) - 1
    high = np.searchsorted(gpu_ns, end)
    for begin, stop in zip(low.tolist(), high.tolist(), strict=True):
        around = [*range(begin - 3, begin), *range(stop + 1, stop + 4)]
        if begin < 64 or stop + 4 >= len(took) or gpu_ns[begin] < first:
            continue
        usual = float(np.median(took[around]))
        extra.append(float(took[begin : stop + 1].sum()) - usual * (stop + 1 - begin))
    kept = np.array(extra)
    # One step in a thousand is slow for reasons of its own; a winsorised mean keeps it from deciding.
    kept = np.clip(kept, *np.quantile(kept, [0.01, 0.99])) if len(kept) else kept
    return float(kept.mean()), float(kept.std() / np.sqrt(len(kept))), len(kept)


def _share(difference: tuple[float, float, int], step_ns: float, rate_per_step: float) -> dict[str, float]:
    mean, error, count = difference
    return {
        "extra_us": mean * 1e-3,
        "extra_error_us": error * 1e-3,
        "compared": count,
        "per_step": rate_per_step,
        "share": mean * rate_per_step / step_ns,
        "error": error * rate_per_step / step_ns,
    }


def windows(step: Step, rounds: int = 8, steps: int = 60) -> dict[str, Any]:
    """Return how much longer steps take with a synchronised counter window each; rounds are in random order."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def windowed_step() -> None:
        torch.cuda.synchronize()
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        step()
        torch.cuda.synchronize()
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    rng = random.Random(0)
    pairs = []
    for _ in range(rounds):
        order = [step, windowed_step]
        rng.shuffle(order)
        took = {one: timed(one, steps) for one in order}
        pairs.append((took[step], took[windowed_step]))
    pynvml.nvmlShutdown()
    ratios = [windowed_s / plain_s for plain_s, windowed_s in pairs]
    return {
        "ratio": statistics.median(ratios),
        "interval_95": bootstrap([np.array([ratio]) for ratio in ratios], lambda kept: float(np.median(kept))),
    }


def mark_cost(seconds_warm: float = 0.5) -> dict[str, float]:
    """Return the time (us) that one mark takes the training thread.

    Without CUDA, and with an event, on a busy and on an idle stream.
    """
    costs: dict[str, float] = {}
    load = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    with EnergyMeter("marks") as meter:
        time.sleep(seconds_warm)
        for name, event, busy in (("host", False, False), ("event_idle", True, False), ("event_busy", True, True)):
            took = []
            for _ in range(40):
                if busy:
                    for _ in range(100):
                        load @ load
                for _ in range(50):
                    start = time.perf_counter_ns()
                    meter.begin("mark", event=event)
                    meter.end("mark", event=event)
                    took.append((time.perf_counter_ns() - start) / 2e3)
                torch.cuda.synchronize()
                time.sleep(0.01)
            costs[f"{name}_p50_us"] = float(np.quantile(took, 0.5))
            costs[f"{name}_mean_us"] = float(np.mean(took))
            costs[f"{name}_p99_us"] = float(np.quantile(took, 0.99))
    costs["events"] = float(meter.report().observer.events)
    return costs


def main() -> int:
    """Run everything, write the result, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=110.0)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("h200_cost: skipped, it needs a real GPU and CUDA\n")
        return 0
    mark = mark_cost()
    say(f"mark: {mark}")
    bars = [
        Bar("one mark without CUDA, mean, us", mark["host_mean_us"], at_most=10, show=".2f"),
        Bar("one mark with an event, mean, us", mark["event_busy_mean_us"], at_most=15, show=".2f"),
    ]
    loads: dict[str, Any] = {}
    raw: dict[str, dict[str, Any]] = {}
    for name, make in (("gpu_bound", gpu_bound), ("launch_bound", launch_bound)):
        step = make()
        run = one_run(step, options.seconds * _LONGER[name], seed=1)
        entry = loads[name] = analyse(run)
        entry |= {"observer": run["observer"], "duration_s": run["duration_s"], "warnings": run["warnings"]}
        entry["windows_per_step"] = windows(step)
        entry["sampler_core_share"] = run["observer"]["thread_cpu_s"] / run["duration_s"]
        bars.append(
            Bar(
                f"sampler thread, share of a core over {run['duration_s']:.0f} s ({name})",
                entry["sampler_core_share"],
                at_most=0.0015,
                show=".3%",
            )
        )
        bars.append(
            Bar(f"cost of measuring a {name} step, upper 95 % end", entry["upper_95"], at_most=_BARS[name], show=".3%")
        )
        start_ns = run["gpu_ns"][0]
        raw[f"{name}_steps"] = {"took_us": np.diff(run["gpu_ns"]) * 1e-3, "marked": run["marked"]}
        raw[f"{name}_counter_reads"] = {
            "start_ms": (run["counter_ns"][:, 0] - start_ns) * 1e-6,
            "end_ms": (run["counter_ns"][:, 1] - start_ns) * 1e-6,
        }
        entry["first_drain_ms"] = (run["drain_phase_ns"] - start_ns) * 1e-6
        say(
            f"{name}: step {entry['step_ms']:.2f} ms, cost {entry['share']:+.3%} (95 % upper end "
            f"{entry['upper_95']:+.3%}); "
            f"counter windows per step x{entry['windows_per_step']['ratio']:.2f}"
        )
        for part, values in entry["parts"].items():
            say(
                f"   {part}: {values['extra_us']:+.1f} +- {values['extra_error_us']:.1f} us, {values['compared']} "
                f"compared, share {values['share']:+.4%}"
            )
    return finish("h200_cost", gpus=gpu_names(), figures={"mark": mark, "loads": loads}, bars=bars, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
