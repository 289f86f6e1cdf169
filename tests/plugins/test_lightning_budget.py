"""What `EnergyMonitor` says of the rest of a fit, and how it ends one whose energy budget is spent."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from outcomes import load, our_warnings
from test_lightning import Evaluated, Model, Rows, Stream, loader, make_trainer
from torch.utils.data import DataLoader

from energy_plugins.lightning import EnergyMonitor
from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant, GpuLost, Simulation, simulated_gpus

POWER_W = 360.0
STEP_S = 0.5
STEP_J = POWER_W * STEP_S
KWH = 3.6e6


@pytest.fixture
def virtual() -> Iterator[Simulation]:
    """Give a GPU of a steady power, in virtual time: every step takes as long as `Takes` says, and none of ours."""
    with simulated_gpus(Constant(POWER_W), virtual=True, start_s=10) as simulation:
        yield simulation


class Takes(Model):
    """Steps that take half a second of virtual time."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(lambda _: simulation.advance(STEP_S), batch_size=1)
        self.simulation = simulation


class Validates(Takes, Evaluated):
    """And validations of two seconds."""

    def on_validation_epoch_end(self) -> None:
        self.simulation.advance(2)


class Metrics(Callback):
    """Keeps what was logged, and what the bar shows."""

    def __init__(self) -> None:
        self.forecasts: dict[int, tuple[float, float]] = {}
        self.bars: list[str] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        seen = trainer.callback_metrics
        if "energy/forecast_kwh" in seen:
            self.forecasts[trainer.global_step] = float(seen["energy/forecast_kwh"]), float(seen["energy/forecast_s"])
        if (bar := trainer.progress_bar_callback) is not None:
            self.bars.append(str(bar.get_metrics(trainer, pl_module).get("energy")))


def batches(count: int) -> DataLoader[torch.Tensor]:
    return loader(count, batch_size=1)


def fit_with_budget(
    simulation: Simulation, folder: Path, steps: float, *others: Callback, resume: Path | None = None, **settings: Any
) -> tuple[Trainer, EnergyMonitor]:
    """Train for up to 200 steps on a budget for ``steps``."""
    monitor = EnergyMonitor(table=False, energy_budget_kwh=steps * STEP_J / KWH)
    trainer = make_trainer(folder, monitor, *others, log_every_n_steps=10, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Takes(simulation), batches(200), ckpt_path=resume)
    return trainer, monitor


class TestForecast:
    def test_it_is_logged_and_right(self, virtual: Simulation, tmp_path: Path) -> None:
        metrics, logger = Metrics(), CSVLogger(tmp_path)
        trainer = make_trainer(
            tmp_path, EnergyMonitor(table=False), metrics, max_epochs=4, log_every_n_steps=10, logger=logger
        )
        trainer.fit(Takes(virtual), batches(50))
        first = min(metrics.forecasts)
        assert 20 <= first <= 50
        for step, (kwh, seconds) in metrics.forecasts.items():
            left = 200 - step // 10 * 10  # as of the last logging step
            assert kwh * KWH == pytest.approx(200 * STEP_J, rel=0.01)
            assert seconds == pytest.approx(left * STEP_S, rel=0.01, abs=0.1)
        assert load(tmp_path).total_j == pytest.approx(200 * STEP_J, rel=0.02)
        assert "energy/forecast_kwh" in (Path(logger.log_dir) / "metrics.csv").read_text()

    def test_validations_count_once_they_are_seen(self, virtual: Simulation, tmp_path: Path) -> None:
        metrics = Metrics()
        trainer = make_trainer(
            tmp_path, EnergyMonitor(table=False), metrics, max_epochs=10, log_every_n_steps=10, num_sanity_val_steps=0
        )
        trainer.fit(Validates(virtual), batches(20), batches(1))
        # Ten epochs of 20 steps and a validation; the last forecasts know nearly all.
        whole_j = 10 * (20 * STEP_J + 2 * POWER_W)
        assert metrics.forecasts[200][0] * KWH == pytest.approx(whole_j, rel=0.03)
        assert metrics.forecasts[101][0] * KWH == pytest.approx(whole_j, rel=0.05)

    def test_it_is_in_the_progress_bar(self, virtual: Simulation, tmp_path: Path) -> None:
        metrics = Metrics()
        trainer = make_trainer(
            tmp_path, EnergyMonitor(table=False), metrics, TQDMProgressBar(), log_every_n_steps=10,
            enable_progress_bar=True,
        )  # fmt: skip
        trainer.fit(Takes(virtual), batches(100))
        assert metrics.bars[0] == "None"
        assert any(text.endswith((" J", " kJ")) for text in metrics.bars)
        assert metrics.bars[-1].endswith("kJ of ~0.005 kWh, 0 s left")
        bar = trainer.progress_bar_callback
        assert bar is not None
        assert "get_metrics" not in vars(bar)

    @pytest.mark.parametrize(
        ("settings", "steps"),
        [
            ({"max_steps": 60, "max_epochs": -1}, 60),
            ({"max_epochs": 2, "limit_train_batches": 30}, 60),
            ({"max_epochs": 3, "limit_train_batches": 0.1}, 60),
            ({"max_steps": 15, "max_epochs": -1, "accumulate_grad_batches": 4}, 60),
        ],
    )
    def test_whatever_ends_the_fit(
        self, virtual: Simulation, tmp_path: Path, settings: dict[str, Any], steps: int
    ) -> None:
        metrics = Metrics()
        trainer = make_trainer(tmp_path, EnergyMonitor(table=False), metrics, log_every_n_steps=1, **settings)
        model = Takes(virtual)
        trainer.fit(model, batches(200))
        assert model.steps == steps
        assert [kwh * KWH for kwh, _ in metrics.forecasts.values()] == pytest.approx(
            [steps * STEP_J] * len(metrics.forecasts), rel=0.02
        )
        assert metrics.forecasts

    def test_without_an_end_there_is_none(self, virtual: Simulation, tmp_path: Path) -> None:
        class Ends(Callback):
            def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
                trainer.should_stop = trainer.global_step >= 60

        metrics = Metrics()
        trainer = make_trainer(
            tmp_path, EnergyMonitor(table=False), metrics, Ends(), max_epochs=-1, log_every_n_steps=10
        )
        trainer.fit(Takes(virtual), DataLoader(Stream(1000, 0.0), batch_size=None))
        assert metrics.forecasts == {}
        assert load(tmp_path).steps.rows == 60

    def test_a_limit_of_time_is_an_end(self, virtual: Simulation, tmp_path: Path) -> None:
        metrics = Metrics()
        trainer = make_trainer(
            tmp_path, EnergyMonitor(table=False), metrics, max_epochs=-1, max_steps=100, max_time="00:01:00:00",
            log_every_n_steps=10,
        )  # fmt: skip
        trainer.fit(Takes(virtual), batches(200))
        assert metrics.forecasts[100][1] == pytest.approx(0, abs=0.1)

    def test_manual_optimization(self, virtual: Simulation, tmp_path: Path) -> None:
        class Twice(Takes):
            def __init__(self, simulation: Simulation) -> None:
                super().__init__(simulation)
                self.automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                for _ in range(2):
                    optimizer = self.optimizers()
                    assert not isinstance(optimizer, list)
                    optimizer.step()
                return super().training_step(batch, batch_idx)

        metrics = Metrics()
        trainer = make_trainer(
            tmp_path, EnergyMonitor(table=False), metrics, max_epochs=-1, max_steps=120, log_every_n_steps=10
        )
        trainer.fit(Twice(virtual), batches(200))
        assert metrics.forecasts[120][0] * KWH == pytest.approx(60 * STEP_J, rel=0.02)


class TestBudget:
    @pytest.mark.parametrize("kwh", [0, -1.0, math.nan, "0.2"])
    def test_what_is_no_budget_is_refused_at_once(self, kwh: Any) -> None:
        with pytest.raises(ValueError, match=f"energy_budget_kwh is {kwh!r}"):
            EnergyMonitor(energy_budget_kwh=kwh)

    def test_the_fit_ends_when_it_is_spent(
        self, virtual: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer, monitor = fit_with_budget(virtual, tmp_path, 100)
        assert 98 <= trainer.global_step <= 101
        assert monitor.report is not None
        assert monitor.report.total_j == pytest.approx(100 * STEP_J, rel=0.02)
        assert monitor.report.stopped == "energy budget of 0.005 kWh spent"
        assert load(tmp_path).stopped == monitor.report.stopped
        saved = tmp_path / "energy_budget.ckpt"
        why = f"{monitor.report.stopped}; checkpoint: {saved}"
        said = f"EnergyMonitor ends the fit after step {trainer.global_step}: {why}"
        assert capsys.readouterr().out.count(said) == 1
        state = torch.load(saved, weights_only=True)
        assert state["global_step"] == trainer.global_step
        assert state["callbacks"]["EnergyMonitor"]["fit_j"] >= 100 * STEP_J

    def test_a_budget_that_is_enough_changes_nothing(self, virtual: Simulation, tmp_path: Path) -> None:
        trainer, monitor = fit_with_budget(virtual, tmp_path, 300)
        assert trainer.global_step == 200
        assert monitor.report is not None
        assert monitor.report.stopped == ""
        assert not (tmp_path / "energy_budget.ckpt").exists()

    def test_the_minimum_of_the_trainer_does_not_outweigh_it(self, virtual: Simulation, tmp_path: Path) -> None:
        trainer, _ = fit_with_budget(virtual, tmp_path, 50, min_epochs=2, max_epochs=3, min_steps=150)
        assert 48 <= trainer.global_step <= 51
        assert (trainer.min_epochs, trainer.min_steps) == (2, 150)

    def test_the_checkpoint_is_beside_those_of_the_trainer(self, virtual: Simulation, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        fit_with_budget(virtual, tmp_path, 50, ModelCheckpoint(kept, every_n_train_steps=40), enable_checkpointing=True)
        assert (kept / "energy_budget.ckpt").exists()

    def test_a_resumed_fit_goes_on_in_mid_epoch_and_counts_what_was_spent(
        self, virtual: Simulation, tmp_path: Path
    ) -> None:
        first, _ = fit_with_budget(virtual, tmp_path / "first", 50)
        checkpoint = tmp_path / "first" / "energy_budget.ckpt"
        second, monitor = fit_with_budget(virtual, tmp_path / "second", 80, resume=checkpoint)
        assert first.global_step == pytest.approx(50, abs=2)
        assert second.global_step == pytest.approx(80, abs=3)
        assert monitor.report is not None
        assert monitor.report.steps.rows == second.global_step - first.global_step
        assert float(second.callback_metrics["energy/total_j"]) == pytest.approx(80 * STEP_J, rel=0.03)

    def test_a_fit_resumed_with_nothing_left_makes_no_step(self, virtual: Simulation, tmp_path: Path) -> None:
        first, _ = fit_with_budget(virtual, tmp_path / "first", 50)
        checkpoint = tmp_path / "first" / "energy_budget.ckpt"
        second, monitor = fit_with_budget(virtual, tmp_path / "second", 50, resume=checkpoint)
        assert monitor.report is not None
        assert monitor.report.steps.rows == 0
        assert monitor.report.stopped == "energy budget of 0.0025 kWh spent"
        assert second.global_step == first.global_step

    def test_accumulated_gradients_are_not_cut_off(self, virtual: Simulation, tmp_path: Path) -> None:
        trainer, monitor = fit_with_budget(virtual, tmp_path, 50, accumulate_grad_batches=4)
        assert monitor.report is not None
        assert monitor.report.steps.rows == 4 * trainer.global_step
        assert trainer.global_step == pytest.approx(50 / 4, abs=1)

    def test_a_warning_comes_before_the_end(self, virtual: Simulation, tmp_path: Path) -> None:
        monitor = EnergyMonitor(table=False, log=False, progress_bar=False, energy_budget_kwh=100 * STEP_J / KWH)
        trainer = make_trainer(tmp_path, monitor, log_every_n_steps=0)
        with our_warnings() as texts:
            trainer.fit(Takes(virtual), batches(200))
        assert texts == [
            "energy: this fit will need about 0.01 kWh and be ended when its energy budget of 0.005 kWh is spent"
        ]
        assert 98 <= trainer.global_step <= 101  # logging or not

    def test_without_a_gpu_to_measure_it_is_said(self, tmp_path: Path) -> None:
        monitor = EnergyMonitor(table=False, energy_budget_kwh=1.0)
        with simulated_gpus(count=0), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(tmp_path, monitor).fit(Model(), batches(5))
        assert any("so no energy budget of 1 kWh can be kept" in str(warning.message) for warning in caught)
        assert monitor.report is not None

    def test_a_disk_that_is_full_does_not_keep_the_fit_going(self, virtual: Simulation, tmp_path: Path) -> None:
        (tmp_path / "energy_budget.ckpt").mkdir()
        trainer, monitor = fit_with_budget(virtual, tmp_path, 50)
        assert trainer.global_step == pytest.approx(50, abs=2)
        assert monitor.report is not None
        assert monitor.report.stopped

    @pytest.mark.parametrize("back_s", [None, 60.0])
    def test_gpus_that_are_lost_do_not_end_the_training(
        self, virtual: Simulation, tmp_path: Path, back_s: float | None
    ) -> None:
        virtual.gpus[0].inject(GpuLost(at_s=20, back_s=back_s))
        trainer, monitor = fit_with_budget(virtual, tmp_path, 300)
        assert trainer.global_step == 200
        state = monitor.state_dict()
        assert math.isfinite(state["total_j"])
        assert math.isfinite(state["fit_j"])
        assert state["fit_j"] >= 19 * POWER_W

    def test_what_was_drawn_before_measuring_failed_still_counts(self, virtual: Simulation, tmp_path: Path) -> None:
        class Refuses(dict[str, torch.Tensor]):
            def get(self, *args: Any) -> Any:
                if (self["input_ids"] == 60).all():
                    raise RuntimeError("not to be counted")
                return super().get(*args)

        def collate(rows: list[torch.Tensor]) -> Refuses:
            return Refuses(input_ids=torch.stack(rows))

        monitor = EnergyMonitor(table=False, energy_budget_kwh=300 * STEP_J / KWH)
        checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=150)
        trainer = make_trainer(tmp_path, monitor, checkpoints, enable_checkpointing=True)
        with our_warnings() as texts:
            trainer.fit(Takes(virtual), DataLoader(Rows(200), collate_fn=collate))
        assert any("training goes on: not to be counted" in text for text in texts)
        saved = torch.load(checkpoints.best_model_path, weights_only=True)["callbacks"]["EnergyMonitor"]
        for state in (saved, monitor.state_dict()):
            assert state["run"] == ""
            assert state["total_j"] == pytest.approx(60 * STEP_J, rel=0.03)
            assert state["fit_j"] == pytest.approx(60 * STEP_J, rel=0.03)

    def test_lightning_cli(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.argv", ["train.py"])
        cli = LightningCLI(
            Model,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            args=[
                "--trainer.callbacks+=energy_plugins.lightning.EnergyMonitor",
                "--trainer.callbacks.energy_budget_kwh=0.5",
            ],
        )
        monitor = next(callback for callback in vars(cli.trainer)["callbacks"] if isinstance(callback, EnergyMonitor))
        assert str(monitor._monitor.budget) == "energy budget of 0.5 kWh"


class Records(Callback):
    """Leaves what a rank did, for the process that started it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(trainer.global_step))


class TestRanks:
    @pytest.mark.parametrize("named", [[0, 1], None])
    def test_all_stop_after_the_same_step(self, tmp_path: Path, named: list[int] | None) -> None:
        def work(_: int) -> None:
            time.sleep(0.01)

        # In real time: virtual time is not for several processes. Named GPUs are measured by both ranks and count once,
        # else each measures its own.
        with simulated_gpus([Constant(500), Constant(700)]):
            monitor = EnergyMonitor(table=False, devices=named, energy_budget_kwh=3 * 1200 / KWH)
            trainer = make_trainer(tmp_path, monitor, Records(tmp_path), strategy="ddp_fork", devices=2)
            trainer.fit(Model(work, batch_size=1), loader(4000, batch_size=1))
        first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
        assert first == second
        assert first < 2000
        reports = [load(tmp_path), Report.load(tmp_path / "energy" / "run-1" / "rank-1")]
        assert [report.stopped for report in reports] == ["energy budget of 0.001 kWh spent"] * 2
        assert reports[0].total_j == pytest.approx(3600 if named else 3600 * 5 / 12, rel=0.15)
        assert reports[0].ranks is not None
        assert reports[0].ranks.total_j == pytest.approx(3600, rel=0.15)
        saved = torch.load(tmp_path / "energy_budget.ckpt", weights_only=True)
        assert saved["global_step"] == first
        assert saved["callbacks"]["EnergyMonitor"]["fit_j"] == pytest.approx(3600, rel=0.15)
