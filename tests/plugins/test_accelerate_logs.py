"""The joules in what a loop logs, and in trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate_training
import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate_training import Model, Training, loader
from outcomes import load, our_warnings

from energy_plugins.accelerate import Attached, EnergyTracker, attach
from energy_plugins.measure.drivers import Drivers, use_drivers
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation

fresh_state = accelerate_training.fresh_state  # around every test here


REGISTERS = hasattr(tracking, "register_tracker_class")


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
