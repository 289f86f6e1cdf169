"""`attach` keeps the plugin contract, and does what is accelerate's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import accelerate_training
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate_training import Batches, Model, Rows, Training, loader
from outcomes import counts, load, load_if_any, synchronisations, wait_for
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler, DataLoader

from energy_plugins.accelerate import attach
from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant, Simulation, simulated_gpus
from energy_plugins.testing.contract import Plan, PluginContract, Trained
from energy_plugins.testing.ranks import in_ranks

fresh_state = accelerate_training.fresh_state  # around every test here


class TestContract(PluginContract):
    def train(self, plan: Plan) -> Trained:
        GradientState._reset_state()
        if plan.ranks > 1:
            AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this was forked from
        data = loader(plan.ranks * plan.steps * plan.batch_size, plan.wait_s, plan.batch_size)
        training = Training(plan.folder, data, Model(plan.step))
        first = next(training.model.parameters())
        training.optimizer.optimizer.register_step_post_hook(lambda *_: wait_for(first, plan.waits))  # as ours is
        failure = energy = None
        with synchronisations() as waited:
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
        return Trained(
            steps=training.steps,
            report=load_if_any(plan.folder),
            total_j=None if energy is None else energy.total_j,
            checkpoint=checkpoint,
            failure=failure,
            hosts=(training.accelerator, training.model, training.optimizer, training.loader, type(training.loader)),
            synchronisations=waited,
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
