"""`attach` keeps the plugin contract, and does what is accelerate's own."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, tracking
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from energy_plugins.accelerate import Attached, EnergyPlugin, EnergyTracker, attach
from energy_plugins.config import KEYS
from energy_plugins.errors import ConfigError
from energy_plugins.measure.drivers import Drivers, use_drivers
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant, Simulation, simulated_gpus
from energy_plugins.testing.contract import Plan, PluginContract, Trained
from energy_plugins.testing.ranks import in_ranks

REGISTERS = hasattr(tracking, "register_tracker_class")
SYNCHRONISING = ("Synchronize", "cudaMemcpy", "cudaEventQuery")


class Rows(Dataset[torch.Tensor]):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), float(index))


class Batches(BatchSampler):
    """Takes its time for each batch, and for finding that there is none left: one batch is always fetched ahead."""

    def __init__(self, rows: int, batch_size: int, wait_s: float) -> None:
        super().__init__(SequentialSampler(range(rows)), batch_size, drop_last=False)
        self.wait_s = wait_s

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            time.sleep(self.wait_s)
            yield batch
        time.sleep(self.wait_s)


def do_nothing(step: int) -> None:
    pass


class Model(torch.nn.Module):
    """A linear layer, and whatever else a step is to do."""

    def __init__(self, step: Callable[[int], None] = do_nothing) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.do_step = step
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.do_step(self.passes)
            self.passes += 1
        loss: torch.Tensor = self.layer(x).square().mean()
        return loss


def loader(rows: int, wait_s: float = 0.0, batch_size: int = 4) -> DataLoader[torch.Tensor]:
    return DataLoader(Rows(rows), batch_sampler=Batches(rows, batch_size, wait_s))


def load(folder: Path, number: int = 1) -> Report:
    return Report.load(folder / "energy" / f"run-{number}")


def counts(report: Report) -> dict[str, int]:
    return {phase.kind: phase.count for phase in report.phases}


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerators share what they know of the process, and of the loop that one left in the middle."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with simulated_gpus() as simulation:
        yield simulation


@contextmanager
def our_warnings() -> Iterator[list[str]]:
    """Collect what would have been warned of measuring."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield texts
    texts += [str(warning.message) for warning in caught if warning.category is RuntimeWarning]


class Training:
    """A loop as people write it."""

    def __init__(self, folder: Path, data: DataLoader[torch.Tensor], model: Model | None = None, **made: Any) -> None:
        self.accelerator = Accelerator(cpu=True, project_dir=str(folder), **made)
        plain = model or Model()
        optimizer = torch.optim.SGD(plain.parameters(), lr=1e-6)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(plain, optimizer, data)
        self.steps = 0
        self.optimizer.optimizer.register_step_post_hook(self._count)

    def _count(self, *args: object) -> None:
        self.steps += 1

    def epoch(self, each: Callable[[torch.Tensor], None] = lambda loss: None) -> None:
        for batch in self.loader:
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            each(loss)


class TestContract(PluginContract):
    def train(self, plan: Plan) -> Trained:
        GradientState._reset_state()
        if plan.ranks > 1:
            AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this was forked from
        data = loader(plan.ranks * plan.steps * plan.batch_size, plan.wait_s, plan.batch_size)
        training = Training(plan.folder, data, Model(plan.step))
        failure = energy = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            try:
                if plan.with_plugin:
                    energy = attach(training.accelerator, table=False)
                if plan.resume_from is not None:
                    training.accelerator.load_state(str(plan.resume_from))
                training.epoch()
            except Exception as error:  # noqa: BLE001 - the contract judges it
                failure = error
            finally:
                if energy is not None:
                    energy.finish()
        checkpoint = plan.folder / "checkpoint"
        training.accelerator.save_state(str(checkpoint))
        written = plan.folder / "energy" / "run-1"
        return Trained(
            steps=training.steps,
            report=Report.load(written) if (written / "report.json").exists() else None,
            total_j=None if energy is None else energy.total_j,
            checkpoint=checkpoint,
            failure=failure,
            hosts=(training.accelerator, training.model, training.optimizer, training.loader, type(training.loader)),
            synchronisations=Counter(
                event.name for event in profile.events() or () if any(name in event.name for name in SYNCHRONISING)
            ),
        )


def test_fsdp2(tmp_path: Path) -> None:
    """A model sharded by torch's own function; accelerate itself does that on GPUs only."""

    def train(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this was forked from
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        model: Any = fully_shard(Model(), mesh=init_device_mesh("cpu", (2,)))
        assert isinstance(model.layer.weight, DTensor)
        optimizer, data = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=1e-6), loader(2 * 4 * 10))
        with attach(accelerator, table=False, phases_every_n_steps=1):
            for batch in data:
                accelerator.backward(model(batch))
                optimizer.step()

    with simulated_gpus([Constant(300), Constant(400)]):
        assert in_ranks(2, train) == [0, 0]
    whole, other = load(tmp_path), Report.load(tmp_path / "energy" / "run-1" / "rank-1")
    for report in (whole, other):
        assert report.steps["samples"].tolist() == [4] * 10
        assert (counts(report)["backward"], counts(report)["optimizer"]) == (10, 10)
    assert whole.ranks is not None
    assert whole.ranks.complete
    assert whole.ranks.total_j == pytest.approx((whole.total_j or 0) + (other.total_j or 0), rel=1e-12)


class TestSteps:
    def test_a_row_is_a_step_of_the_optimizer(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(4 * 7, wait_s=0.01), gradient_accumulation_steps=2)
        with attach(training.accelerator, table=False):
            training.epoch()
        report = load(tmp_path)
        assert report.steps.rows == training.steps == 4
        assert report.steps["samples"].tolist() == [8, 8, 8, 4]  # the loader's end makes a step of what is left
        assert np.all(report.steps["end_s"] - report.steps["start_s"] >= [0.03, 0.02, 0.02, 0.01])

    def test_batches_are_fetched_one_ahead(self, simulation: Simulation, tmp_path: Path) -> None:
        class Prompt(Batches):
            def __iter__(self) -> Iterator[list[int]]:
                for batch in BatchSampler.__iter__(self):
                    time.sleep(0.05)
                    yield batch

        data = DataLoader(Rows(16), batch_sampler=Prompt(16, 4, 0.0))
        training = Training(tmp_path, data, Model(lambda _: simulation.gpus[0].launch(ops=8e12, wait=True)))
        with attach(training.accelerator, table=False):
            training.epoch()
        report = load(tmp_path)
        first, *others, last = report.steps["end_s"] - report.steps["start_s"]
        assert first >= 0.1  # two fetches
        assert min(others) >= 0.05
        assert last < 0.05
        assert "one ahead" in str(report.config["data_wait"])

    @pytest.mark.parametrize("is_first", [True, False])
    def test_before_or_after_prepare(self, simulation: Simulation, tmp_path: Path, *, is_first: bool) -> None:
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        energy = attach(accelerator, table=False) if is_first else None
        model = accelerator.prepare(Model())
        optimizer, data = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=1e-6), loader(8))
        energy = energy or attach(accelerator, table=False)
        for batch in data:
            accelerator.backward(model(batch))
            optimizer.step()
        energy.finish()
        report = load(tmp_path)
        assert (report.steps.rows, report.work.samples) == (2, 8)

    def test_optimizers_that_step_together_are_one_step(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(12))
        second = training.accelerator.prepare(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
        with attach(training.accelerator, table=False):
            for batch in training.loader:
                training.accelerator.backward(training.model(batch))
                training.optimizer.step()
                second.step()
        assert load(tmp_path).steps["samples"].tolist() == [4, 4, 4]

    def test_optimizers_that_take_turns_are_steps_each(self, simulation: Simulation, tmp_path: Path) -> None:
        assert self.take_turns(tmp_path, named=False).steps.rows == 6

    def test_the_named_optimizer_makes_the_steps(self, simulation: Simulation, tmp_path: Path) -> None:
        report = self.take_turns(tmp_path, named=True)
        assert report.steps["samples"].tolist() == [4, 4, 4]

    def take_turns(self, folder: Path, *, named: bool) -> Report:
        training = Training(folder, loader(12))
        accelerator = training.accelerator
        critic = accelerator.prepare(Model())
        judge = accelerator.prepare(torch.optim.SGD(critic.parameters(), lr=1e-6))
        with attach(accelerator, optimizer=training.optimizer if named else None, table=False, phases_every_n_steps=1):
            for batch in training.loader:
                accelerator.backward(critic(batch))
                judge.step()
                time.sleep(0.01)
                accelerator.backward(training.model(batch))
                training.optimizer.step()
        return load(folder)

    def test_an_optimizer_of_something_else_is_none(self, simulation: Simulation, tmp_path: Path) -> None:
        other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False):
            training.epoch(lambda _: other.step())
        assert load(tmp_path).steps.rows == 2

    def test_phases_of_every_nth_step(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(4 * 8), gradient_accumulation_steps=2)
        with attach(training.accelerator, phases_every_n_steps=2, table=False):
            training.epoch()
        # Steps 0 and 2 of 4, two batches each.
        found = counts(load(tmp_path))
        assert (found["forward"], found["backward"], found["optimizer"]) == (4, 4, 2)

    def test_a_loop_that_ends_early_or_passes_batches_over(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(32))
        with attach(training.accelerator, table=False):
            for index, batch in enumerate(training.loader):
                if index == 5:
                    break
                if index != 2:
                    training.accelerator.backward(training.model(batch))
                    training.optimizer.step()
        assert load(tmp_path).steps["samples"].tolist() == [4] * 4

    def test_nothing_prepared_but_the_optimizer(self, simulation: Simulation, tmp_path: Path) -> None:
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        model = Model()
        optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=1e-6))
        with attach(accelerator, table=False):
            for batch in loader(12):
                accelerator.backward(model(batch))
                optimizer.step()
        report = load(tmp_path)
        assert report.steps.rows == 3
        assert report.work.samples is None
        assert report.data_wait_j is None

    def test_batches_skipped_on_resume(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(16))
        whole = training.loader
        with attach(training.accelerator, table=False):
            training.loader = training.accelerator.skip_first_batches(whole, 2)
            training.epoch()
            training.loader = whole
            training.epoch()
        report = load(tmp_path)
        assert report.steps["samples"].tolist() == [4] * 6
        assert counts(report)["data_wait"] == 6

    @pytest.mark.parametrize("is_first", [True, False])
    def test_a_compiled_model(self, simulation: Simulation, tmp_path: Path, *, is_first: bool) -> None:
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        plain = torch.nn.Linear(4, 1)
        optimizer, data = accelerator.prepare(torch.optim.SGD(plain.parameters(), lr=1e-6), loader(8))
        torch.compiler.reset()  # what was compiled without hooks would be taken for this
        compiled = partial(torch.compile, fullgraph=True, backend="eager")
        model = accelerator.prepare(compiled(plain) if is_first else plain)
        with attach(accelerator, table=False, phases_every_n_steps=1):
            model = model if is_first else compiled(model)
            for batch in data:
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
        report = load(tmp_path)
        assert report.steps.rows == 2
        assert counts(report)["backward"] == 2

    def test_tokens_are_counted(self, simulation: Simulation, tmp_path: Path) -> None:
        class Texts(Rows):
            def __getitem__(self, index: int) -> Any:
                return {"input_ids": torch.ones(4, dtype=torch.long)}

        training = Training(tmp_path, DataLoader(Texts(8), batch_size=2))
        with attach(training.accelerator, table=False):
            for batch in training.loader:
                training.accelerator.backward(training.model(batch["input_ids"].float()))
                training.optimizer.step()
        work = load(tmp_path).work
        assert (work.samples, work.tokens) == (8, 32)


class TestSpans:
    def test_validation_is_no_step(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        held_out = training.accelerator.prepare(loader(12))

        def evaluate() -> None:
            training.model.eval()
            with torch.no_grad():
                for batch in held_out:
                    training.model(batch)
            training.model.train()

        with attach(training.accelerator, table=False):
            for _ in range(2):
                training.epoch()
                evaluate()
            with torch.no_grad():  # and by those who forget eval()
                next(iter(held_out))
        report = load(tmp_path)
        assert counts(report)["validate"] == 3
        assert report.steps["samples"].tolist() == [4] * 4

    def test_checkpoints(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False):
            training.epoch(lambda _: training.accelerator.save_state(str(tmp_path / "checkpoint")))
        found = counts(load(tmp_path))
        assert (found["checkpoint"], found["fit"]) == (2, 1)


class Listener(GeneralTracker):  # type: ignore[misc]
    name = "listener"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[dict[str, Any]] = []
        self.is_open = True

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        assert self.is_open
        self.heard.append(values)

    def finish(self) -> None:
        self.is_open = False


class TestLogging:
    def test_what_the_loop_logs_has_joules(self, simulation: Simulation, tmp_path: Path) -> None:
        listener = Listener()
        training = Training(
            tmp_path,
            loader(4 * 6),
            Model(lambda _: simulation.gpus[0].launch(ops=4e14, wait=True)),
            log_with=[listener],
        )
        training.accelerator.init_trackers("project")
        attach(training.accelerator, table=False)
        given = []

        def log(loss: torch.Tensor) -> None:
            given.append({"loss": float(loss.detach())})
            training.accelerator.log(given[-1], step=training.steps)
            training.accelerator.log({"lr": 0.1})  # no step is new

        training.epoch(log)
        training.accelerator.end_training()
        assert given[-1].keys() == {"loss"}
        *logged, totals = listener.heard
        assert [values.keys() for values in logged[1::2]] == [{"lr"}] * 6
        shown = {key: value for values in logged for key, value in values.items()}
        assert {
            "loss",
            "energy/total_j",
            "energy/step_j",
            "energy/samples_per_j",
            "energy/gpu0/power_w",
        } <= shown.keys()
        assert {type(value) for value in shown.values()} == {float}
        assert totals.keys() == {"energy/total_j", "energy/avg_power_w"}
        assert load(tmp_path).complete

    def test_log_can_be_off(self, simulation: Simulation, tmp_path: Path) -> None:
        listener = Listener()
        training = Training(tmp_path, loader(8), log_with=[listener])
        training.accelerator.init_trackers("project")
        with attach(training.accelerator, log=False, table=False) as energy:
            training.epoch(lambda _: training.accelerator.log({"loss": 1.0}))
            assert isinstance(energy.news(), dict)
        assert listener.heard == [{"loss": 1.0}] * 2

    @pytest.mark.parametrize("is_first", [True, False])
    def test_tracker(self, simulation: Simulation, tmp_path: Path, *, is_first: bool) -> None:
        listener = Listener()
        trackers = [EnergyTracker(table=False), listener]
        training = Training(
            tmp_path,
            loader(16),
            Model(lambda _: simulation.gpus[0].launch(ops=4e14, wait=True)),
            log_with=trackers if is_first else trackers[::-1],
        )
        training.accelerator.init_trackers("project")
        training.epoch(lambda _: training.accelerator.log({"loss": 1.0}))
        energy = training.accelerator.get_tracker("energy", unwrap=True)
        training.accelerator.end_training()
        assert isinstance(energy, Attached)
        assert energy.report is not None
        assert energy.report.steps.rows == 4
        assert [values for values in listener.heard[:-1] if values.get("energy/total_j", 0) > 0]
        assert listener.heard[-1].keys() == {"energy/total_j", "energy/avg_power_w"}

    def test_tracker_by_name(self, simulation: Simulation, tmp_path: Path) -> None:
        if not REGISTERS:
            pytest.skip("accelerate before 1.15 knows only its own trackers by name")
        training = Training(tmp_path, loader(8), log_with="energy")
        training.accelerator.init_trackers("mine", init_kwargs={"energy": {"table": False}})
        training.epoch()
        training.accelerator.end_training()
        assert Report.load(tmp_path / "energy" / "mine-1").steps.rows == 2

    def test_tracker_of_a_loop_that_is_measured(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8), log_with=[EnergyTracker()])
        with attach(training.accelerator, table=False) as energy:
            training.accelerator.init_trackers("project")
            assert training.accelerator.get_tracker("energy", unwrap=True) is energy

    def test_tracker_without_an_accelerator(self) -> None:
        with our_warnings() as texts:
            EnergyTracker().start()
        assert ["init_trackers" in text for text in texts] == [True]


class TestState:
    def test_a_checkpoint_loads_without_us_and_ours_without_it(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        training.accelerator.save_state(str(tmp_path / "plain"))
        with attach(training.accelerator, table=False) as energy:
            training.accelerator.load_state(str(tmp_path / "plain"))
            training.epoch()
        training.accelerator.save_state(str(tmp_path / "ours"))
        energy.detach()
        training.accelerator.load_state(str(tmp_path / "ours"))
        state = json.loads((tmp_path / "ours" / "energy_plugins_0.json").read_text())
        assert state == {"total_j": energy.total_j, "run": ""}

    def test_loading_its_own_state_in_mid_run_changes_nothing(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False) as energy:
            training.epoch()
            time.sleep(0.5)
            training.accelerator.save_state(str(tmp_path / "checkpoint"))
            training.accelerator.load_state(str(tmp_path / "checkpoint"))
        assert energy.total_j == load(tmp_path).total_j

    def test_it_may_be_registered_too(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False) as energy:
            training.accelerator.register_for_checkpointing(energy)
            training.epoch()
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        before_j = energy.total_j
        training.accelerator.load_state(str(tmp_path / "checkpoint"))
        assert energy.total_j == before_j

    def test_a_spoilt_file_does_not_stop_a_resume(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        (tmp_path / "checkpoint" / "energy_plugins_0.json").write_text("{")
        with attach(training.accelerator, table=False), our_warnings() as texts:
            training.accelerator.load_state(str(tmp_path / "checkpoint"))
            training.epoch()
        assert len(texts) == 1
        assert training.steps == 2

    def test_restoring_an_optimizer_is_no_step(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        training.accelerator.register_load_state_pre_hook(lambda *_: training.optimizer.optimizer.step())
        with attach(training.accelerator, table=False):
            training.accelerator.load_state(str(tmp_path / "checkpoint"))
            training.epoch()
        assert load(tmp_path).steps.rows == 2

    def test_attaching_again_begins_anew(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        first = attach(training.accelerator, table=False)
        training.epoch()
        with attach(training.accelerator, table=False) as second:
            training.epoch()
        training.accelerator.save_state(str(tmp_path / "checkpoint"))
        assert (load(tmp_path, 1).steps.rows, load(tmp_path, 2).steps.rows) == (2, 2)
        assert first.report is not None
        state = json.loads((tmp_path / "checkpoint" / "energy_plugins_0.json").read_text())
        assert state["total_j"] == second.total_j

    def test_a_loader_in_use_can_be_copied(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, table=False):
            for other in (copy.deepcopy(training.loader), pickle.loads(pickle.dumps(training.loader))):  # noqa: S301
                assert len(list(other)) == 2
            assert isinstance(training.loader, DataLoader)


class TestTrouble:
    def test_no_hook_survives(self, simulation: Simulation, tmp_path: Path) -> None:
        from torch.optim import optimizer

        before = [len(vars(optimizer)[f"_global_optimizer_{end}_hooks"]) for end in ("pre", "post")]
        training = Training(tmp_path, loader(8))
        kind = type(training.loader)
        with attach(training.accelerator, table=False):
            training.epoch()
            assert training.model._forward_pre_hooks
        assert not training.model._forward_pre_hooks
        assert [len(vars(optimizer)[f"_global_optimizer_{end}_hooks"]) for end in ("pre", "post")] == before
        assert type(training.loader) is kind

    def test_a_failure_of_ours_warns_once(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError("the meter broke")

        monkeypatch.setattr(EnergyMeter, "end", fail)
        training = Training(tmp_path, loader(8))
        with our_warnings() as texts, attach(training.accelerator, table=False):
            training.epoch()
            training.epoch()
        ours = [text for text in texts if "training goes on" in text]
        assert ours == ["energy: measuring failed, training goes on: the meter broke"]
        assert training.steps == 4

    def test_a_disk_that_cannot_be_written(self, simulation: Simulation, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        training = Training(tmp_path, loader(8))
        with (
            our_warnings() as texts,
            attach(training.accelerator, folder=f"{tmp_path}/file/below", table=False) as energy,
        ):
            training.epoch()
        assert ["not kept on disk" in text for text in texts] == [True]
        assert energy.report is not None
        assert energy.report.steps.rows == 2

    def test_without_a_gpu_there_are_no_joules_rather_than_none_drawn(self, tmp_path: Path) -> None:
        listener = Listener()
        nowhere = Drivers(nvml=str(tmp_path / "no-nvml.so"), cuda=str(tmp_path / "no-cuda.so"))
        with use_drivers(nowhere), our_warnings():
            training = Training(tmp_path, loader(8), log_with=[listener])
            training.accelerator.init_trackers("project")
            energy = attach(training.accelerator, table=False)
            training.epoch(lambda _: training.accelerator.log({"loss": 1.0}))
            assert (energy.is_live, energy.total_j) == (True, None)
            training.accelerator.end_training()
        assert listener.heard == [{"loss": 1.0}] * 2
        assert energy.report is not None
        assert (energy.report.total_j, energy.total_j) == (None, None)

    def test_not_enabled(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, enabled=False) as energy:
            training.epoch()
        assert (energy.report, energy.total_j) == (None, None)
        assert not (tmp_path / "energy").exists()

    def test_a_budget_is_not_kept_and_that_is_said(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ENERGY_MEASURE_ENERGY_BUDGET_KWH", "1")
        training = Training(tmp_path, loader(8))
        with our_warnings() as texts:
            attach(training.accelerator, table=False).finish()
        assert ["ends no loop" in text for text in texts] == [True]

    def test_deepspeed_is_measured_as_a_whole_and_that_is_said(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        state = training.accelerator.state
        state.distributed_type = DistributedType.DEEPSPEED
        state.deepspeed_plugins = {"": SimpleNamespace(selected=True, deepspeed_config={})}
        with our_warnings() as texts, attach(training.accelerator, table=False):
            training.model(torch.ones(4)).backward()
            training.optimizer.optimizer.step()
        report = load(tmp_path)
        assert texts == [f"energy: steps are {report.config['steps']}; the run is measured as a whole"]
        assert "DEEPSPEED" in texts[0]
        assert report.steps.rows == 0
        assert report.total_j is not None

    def test_a_script_that_fails_leaves_its_report(self, tmp_path: Path) -> None:
        script = tmp_path / "fails.py"
        script.write_text(FAILING)
        ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert "ValueError: planned" in ended.stderr
        report = load(tmp_path)
        assert report.complete
        assert report.steps.rows == 3


FAILING = """
import torch
from accelerate import Accelerator
from energy_plugins.accelerate import attach
from energy_plugins.testing import simulated_gpus

with simulated_gpus():
    accelerator = Accelerator(cpu=True)
    layer = torch.nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    attach(accelerator)
    for step in range(5):
        accelerator.backward(model(torch.ones(2, 4)).sum())
        if step == 2:
            raise ValueError("planned")
        optimizer.step()
"""


class TestSettings:
    def test_fields_are_keys_of_the_configuration(self) -> None:
        for one in fields(EnergyPlugin):
            assert one.metadata["help"] == KEYS[one.metadata["key"]].help
            assert one.metadata["key"].endswith(f".{one.name}")
        missing = KEYS.keys() - {one.metadata["key"] for one in fields(EnergyPlugin)}
        assert missing == {"measure.energy_budget_kwh", "report.progress_bar"}

    def test_what_is_not_given_is_the_environments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENERGY_MEASURE_PHASES_EVERY_N_STEPS", "7")
        monkeypatch.setenv("ENERGY_REPORT_NAME", "theirs")
        plugin = EnergyPlugin(name="mine")
        assert (plugin.phases_every_n_steps, plugin.name, plugin.table) == (7, "mine", True)
        assert plugin.config.measure.phases_every_n_steps == 7

    def test_settings_are_over_the_plugins(self, simulation: Simulation, tmp_path: Path) -> None:
        training = Training(tmp_path, loader(8))
        with attach(training.accelerator, EnergyPlugin(name="a", table=False), name="b"):
            pass
        assert (tmp_path / "energy" / "b-1" / "report.json").exists()

    def test_wrong_settings_are_errors(self) -> None:
        accelerator = Accelerator(cpu=True)
        with pytest.raises(ConfigError, match="phases_every_n_steps is -1"):
            attach(accelerator, phases_every_n_steps=-1)
        with pytest.raises(TypeError, match="colour"):
            attach(accelerator, colour="red")

    def test_without_accelerate_the_import_names_the_remedy(self) -> None:
        code = "import sys\nsys.modules['accelerate'] = None\nimport energy_plugins.accelerate"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.stderr.endswith("ImportError: accelerate is missing: pip install energy-plugins[accelerate]\n")
