"""Searches for a micro-batch in Lightning fits on simulated GPUs, in virtual time: what is chosen, what it saves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outcomes
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from limiting import FOUND_W, limit_w, limited_gpu
from micro_batching import Reader, trained
from outcomes import load, our_warnings

from energy_plugins.lightning import EnergyMonitor, MicroBatchTuner, PowerLimitTuner
from energy_plugins.measure.joint_summary import joint_saving
from energy_plugins.measure.micro_batch_part import MicroBatchPart
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation, simulated_gpus

BATCH, ACCUMULATION = 4, 4
WINDOWS = 250


one_thread = outcomes.one_thread
pytestmark = pytest.mark.usefixtures("one_thread")


class Working(Reader):
    """Whose passes cost something whatever their size, and something for each sample."""

    def __init__(self, simulation: Simulation, cost: Callable[[int], float]) -> None:
        super().__init__()
        self.gpu, self.cost = simulation.gpus[0], cost

    def work(self, size: int) -> None:
        self.gpu.launch(ops=self.cost(size), wait=True)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.work(len(batch["input_ids"]))
        return super().training_step(batch, batch_idx)


class Moving(Working):
    """The same for the memory: clocks may fall before passes take longer."""

    def work(self, size: int) -> None:
        self.gpu.launch(ops=2e13 * size, bytes=4e11 + 2e11 * size, wait=True)


def overhead(size: int) -> float:
    """A fixed cost as large as that of four samples."""
    return 1.2e13 * (4 + size)


def spill(size: int) -> float:
    """More than four samples at once no longer fit into a cache."""
    return 1.2e13 * (1 + size + 4 * max(size - 4, 0))


def fit(folder: Path, cost: Callable[[int], float], *callbacks: Callback, **settings: Any) -> tuple[Report, Working]:
    with simulated_gpus(virtual=True, start_s=10) as simulation:
        model = Working(simulation, cost)
        arguments = {"rows": BATCH * ACCUMULATION * WINDOWS, "batch": BATCH, "accumulate_grad_batches": ACCUMULATION}
        trained(folder, model, *callbacks, **{**arguments, **settings})
        return load(folder), model


def quiet() -> EnergyMonitor:
    return EnergyMonitor(table=False, log=False, progress_bar=False)


def part_of(report: Report) -> MicroBatchPart:
    assert report.micro_batch is not None
    return report.micro_batch


def test_where_passes_have_a_fixed_cost_batches_run_together(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", overhead, quiet())
    tuned, model = fit(tmp_path / "tuned", overhead, quiet(), MicroBatchTuner(search_share=0.5))
    part = part_of(tuned)
    assert (part.chosen, part.source, part.batch, part.accumulation) == (16, "search", BATCH, ACCUMULATION)
    assert part.expected_saving == pytest.approx(1 - (4 + 16) / (4 * (4 + 4)), abs=0.01)
    assert part.search_s <= 60
    assert [one.size for one in part.tried] == [2, 4, 8, 16][-len(part.tried) :]
    late = slice(plain.steps.rows // 2, None)
    energies = [float(one.steps["energy_j"][late].sum()) for one in (tuned, plain)]
    assert 1 - energies[0] / energies[1] == pytest.approx(part.expected_saving, abs=0.02)
    assert set(model.sizes[-100:]) == {16}
    assert (tuned.steps.rows, tuned.work) == (plain.steps.rows, plain.work)  # a row for each batch, as before
    text = " ".join(str(tuned).split())
    assert "micro-batch 16 samples at once instead of 4 x 4, searched for; 16 samples a step and rank as before" in text
    assert "SIMULATED" in text
    assert part == Report.load(tuned.save(tmp_path / "copy")).micro_batch


def test_where_large_passes_cost_more_a_batch_is_cut(tmp_path: Path) -> None:
    settings = {"batch": 16, "accumulate_grad_batches": 1, "rows": 16 * 200}
    tuned, model = fit(tmp_path, spill, quiet(), MicroBatchTuner(search_share=0.5), **settings)
    part = part_of(tuned)
    assert (part.chosen, part.batch) == (4, 16)
    assert part.expected_saving == pytest.approx(1 - 4 * spill(4) / spill(16), abs=0.02)
    assert set(model.sizes[-100:]) == {4}


def test_where_nothing_saves_the_users_setting_stays(tmp_path: Path) -> None:
    tuned, model = fit(tmp_path, lambda size: 2.4e13 * size, quiet(), MicroBatchTuner(search_share=0.5))
    part = part_of(tuned)
    assert set(model.sizes[-100:]) == {part.chosen}
    assert part.chosen == BATCH
    assert "your setting 4 x 4, for none surely saves more" in " ".join(str(tuned).split())


class Waits(Working):
    """Whose passes take as long however few their samples are, until there are many."""

    def work(self, size: int) -> None:
        self.gpu.launch(ops=self.cost(size), bytes=8e11, wait=True)


def test_where_the_effective_batch_is_the_waste_nothing_changes_and_the_report_says_what_growing_it_would_save(
    tmp_path: Path,
) -> None:
    with simulated_gpus(virtual=True, start_s=10) as simulation:
        model = Waits(simulation, lambda size: 1e12 * size)
        trained(tmp_path, model, quiet(), MicroBatchTuner(search_share=0.5), rows=8 * 300, batch=8)
    report = load(tmp_path)
    part = part_of(report)
    assert (part.chosen, part.batch, part.accumulation, part.grown) == (8, 8, 1, "")
    assert set(model.sizes[-100:]) == {8}
    text = " ".join(str(report).split())
    assert "an effective batch of 1024 instead of 8, 1024 samples at once, would save at most" in text
    assert "multiply the learning rate by 128 (linear: Goyal et al. 2017, arXiv:1706.02677" in text


def test_sizes_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    def cost(size: int) -> float:
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
        return overhead(size)

    tuned, model = fit(tmp_path, cost, quiet(), MicroBatchTuner(search_share=0.5))
    part = part_of(tuned)
    assert part.chosen == 8
    assert "16 samples at once: it does not fit into memory" in part.explanation
    assert set(model.sizes[-100:]) == {8}


@pytest.mark.parametrize("most", [8, 4])
def test_where_the_users_setting_does_not_fit_a_smaller_one_is_found(tmp_path: Path, most: int) -> None:
    def cost(size: int) -> float:
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
        return overhead(size)

    settings = {"batch": 16, "accumulate_grad_batches": 1, "rows": 16 * 200}
    tuned, model = fit(tmp_path / "long", cost, quiet(), MicroBatchTuner(search_share=0.5), **settings)
    part = part_of(tuned)
    assert part.chosen == most
    assert {one.size: one.why for one in part.tried}[16] == "out of memory"
    assert set(model.sizes[-100:]) == {most}
    assert tuned.work.steps == 200

    tuned, model = fit(tmp_path / "short", cost, quiet(), MicroBatchTuner(), **{**settings, "rows": 16 * 60})
    assert "is too short to search" in part_of(tuned).why
    assert set(model.sizes[-30:]) == {most}
    assert tuned.work.steps == 60


def test_one_that_runs_out_of_memory_in_the_search_is_an_answer(tmp_path: Path) -> None:
    seen: list[int] = []

    def cost(size: int) -> float:
        seen.append(size)
        if size == 16 and seen.count(16) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
        return overhead(size)

    tuned, _ = fit(tmp_path, cost, quiet(), MicroBatchTuner(search_share=0.5))
    part = part_of(tuned)
    assert part.chosen == 8
    assert {one.size: one.why for one in part.tried}[16] == "out of memory"
    assert len(seen) > 100
    assert tuned.work.steps == ACCUMULATION * WINDOWS


@pytest.mark.parametrize("settings", [{}, {"size": 16}])
def test_without_a_gpu_a_size_works_and_a_search_says_what_it_lacks(tmp_path: Path, settings: dict[str, Any]) -> None:
    with simulated_gpus(count=0), our_warnings():
        model, tuner = Reader(), MicroBatchTuner(**settings)
        trained(tmp_path, model, tuner, rows=16 * 40, batch=BATCH, accumulate_grad_batches=ACCUMULATION)
    assert tuner.found is not None
    assert tuner.found.chosen == settings.get("size")
    if not settings:
        assert "no size can be searched for: give the one to use (size=...)" in tuner.found.why
        assert part_of(load(tmp_path)).why == tuner.found.why
    assert set(model.sizes[-10:]) == {settings.get("size", BATCH)}


def test_a_training_that_is_too_short_is_left_alone(tmp_path: Path) -> None:
    tuned, model = fit(tmp_path, overhead, quiet(), MicroBatchTuner(), rows=BATCH * ACCUMULATION * 60)
    assert "is too short to search: see micro_batch.search_share" in part_of(tuned).why
    assert set(model.sizes[-100:]) == {BATCH}


def test_what_a_change_takes_counts_against_the_time_of_a_search(tmp_path: Path) -> None:
    seen: set[int] = set()

    def cost(size: int) -> float:
        is_first = size not in seen
        seen.add(size)
        return overhead(size) + (3.2e15 if is_first else 0.0)  # four seconds, as if it were compiled

    tuned, _ = fit(tmp_path, cost, quiet(), MicroBatchTuner(search_share=0.2))
    part = part_of(tuned)
    assert sum(one.seconds for one in part.tried) < part.search_s - 8
    steps_s = [one.step_time_s for one in part.tried if one.size == 8 and one.step_time_s is not None]
    assert steps_s
    assert max(steps_s) < 1  # what a change takes is in no window
    a_change_s = 6
    assert part.search_s <= 0.2 * tuned.duration_s + a_change_s


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize(("dynamic", "most_graphs"), [(False, 4), (None, 2)])
def test_a_compiled_model_stays_within_what_torch_compiles(
    tmp_path: Path, dynamic: bool | None, most_graphs: int
) -> None:
    """Beyond its limit of eight torch gives up on a function, and it runs uncompiled."""
    torch.compiler.reset()
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        return graph.forward

    with simulated_gpus(virtual=True, start_s=10) as simulation:
        model, ran = Working(simulation, lambda size: overhead(size) / 4), list[int]()
        model.layers = torch.compile(model.layers, dynamic=dynamic, backend=backend)  # type: ignore[assignment]
        model.layers.register_forward_pre_hook(lambda _, given: ran.append(len(given[0])))
        settings: dict[str, Any] = {"rows": BATCH * 16 * 200, "batch": BATCH, "accumulate_grad_batches": 16}
        trained(tmp_path, model, quiet(), MicroBatchTuner(search_share=0.5), **settings)
    part = part_of(load(tmp_path))
    assert part.chosen is not None
    assert part.chosen >= 16
    assert set(ran[-64 // part.chosen :]) == {part.chosen}
    assert 1 not in ran
    assert len({one.size for one in part.tried}) <= (4 if dynamic is False else 8)
    assert 1 < len(compiled) <= most_graphs


def test_loggers_hear_of_the_size_in_force(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = EnergyMonitor(table=False, progress_bar=False)
    settings = {"rows": BATCH * ACCUMULATION * 60, "logger": logger, "log_every_n_steps": 10}
    fit(tmp_path, overhead, monitor, MicroBatchTuner(size=16), **settings)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    assert {row["energy/micro_batch"] for row in rows if row["energy/step_j"]} == {"16.0"}


class Otherwise(Moving):
    """Under a limit eight samples at once have no fixed cost."""

    def work(self, size: int) -> None:
        fixed = 0.0 if size == 8 and limit_w() < FOUND_W else 4e11
        self.gpu.launch(ops=2e13 * size, bytes=fixed + 2e11 * size, wait=True)


def limited_fit(folder: Path, kind: type[Moving], share: float = 0.3, windows: int = 300) -> tuple[Report, Moving]:
    with limited_gpu() as simulation:
        model = kind(simulation, overhead)
        trained(
            folder,
            model,
            quiet(),
            MicroBatchTuner(search_share=share),
            PowerLimitTuner(search_share=0.3),
            rows=BATCH * ACCUMULATION * windows,
            batch=BATCH,
            accumulate_grad_batches=ACCUMULATION,
        )
        assert limit_w() == FOUND_W
    return load(folder), model


def test_the_power_limit_is_searched_for_afterwards_and_then_the_neighbours_once(tmp_path: Path) -> None:
    report, model = limited_fit(tmp_path, Moving, share=0.4, windows=400)
    part, limit = part_of(report), report.power_limit
    assert limit is not None
    assert (limit.source, limit.why) == ("search", "")
    steps = {round(one.step_time_s, 2) for one in limit.tried if one.limit == FOUND_W}
    assert steps == {round((4e11 + 3.2e12) / 4.3e12, 2)}
    assert (part.chosen, part.checked_beside, part.saving_beside) == (16, (8,), 0.0)
    assert set(model.sizes[-100:]) == {16}
    assert part.expected_saving is not None
    assert limit.expected_saving is not None
    saving = joint_saving(part, limit)
    assert saving == pytest.approx(1 - (1 - part.expected_saving) * (1 - limit.expected_saving))
    text = " ".join(str(report).split())
    assert f"together {saving:.1%}".replace("%", " %") in text
    assert "8 at once compared once more under the limit: none is better" in text
    assert part == Report.load(report.save(tmp_path / "copy")).micro_batch


def test_a_neighbour_that_is_better_under_the_limit_is_taken(tmp_path: Path) -> None:
    report, model = limited_fit(tmp_path, Otherwise, share=0.4, windows=400)
    part = part_of(report)
    assert (part.chosen, part.checked_beside) == (8, (8,))
    assert part.saving_beside is not None
    assert part.saving_beside > 0.02
    assert set(model.sizes[-100:]) == {8}


def test_without_time_for_it_no_neighbour_is_looked_at(tmp_path: Path) -> None:
    report, model = limited_fit(tmp_path, Moving, share=0.15)
    assert part_of(report).chosen == 16
    assert part_of(report).checked_beside == ()
    assert part_of(report).saving_beside is None
    assert set(model.sizes[-100:]) == {16}


@pytest.mark.parametrize(("cost", "source", "chosen"), [(overhead, "memory", 16), (spill, "search", 4)])
def test_a_size_is_used_again_once_it_is_checked(
    tmp_path: Path, cost: Callable[[int], float], source: str, chosen: int
) -> None:
    fit(tmp_path / "first", overhead, quiet(), MicroBatchTuner(search_share=0.5))
    rows = {"rows": 2 * BATCH * ACCUMULATION * WINDOWS}  # so that there is time for both
    again, model = fit(tmp_path / "again", cost, quiet(), MicroBatchTuner(search_share=0.5), **rows)
    part = part_of(again)
    assert part.search_s <= 60
    assert (part.source, part.chosen) == (source, chosen)
    assert set(model.sizes[-100:]) == {chosen}
    assert (len(part.tried) == 2) == (source == "memory")
