"""`EnergyMonitor` keeps the plugin contract, and does what is Lightning's own."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from outcomes import counts, load, load_if_any, our_warnings, synchronisations, wait_for
from torch.utils.data import DataLoader, Dataset, IterableDataset

from energy_plugins.errors import ConfigError
from energy_plugins.lightning import EnergyMonitor
from energy_plugins.measure.drivers import Drivers, use_drivers
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Simulation
from energy_plugins.testing.contract import Plan, PluginContract, Trained, Wait


class Rows(Dataset[torch.Tensor]):
    def __init__(self, rows: int, wait_s: float = 0.0, batch_size: int = 4) -> None:
        self.rows, self.wait_s, self.batch_size = rows, wait_s, batch_size

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        if index % self.batch_size == 0:
            time.sleep(self.wait_s)
        return torch.full((4,), float(index))


class Stream(IterableDataset[torch.Tensor]):
    def __init__(self, batches: int, wait_s: float) -> None:
        self.batches, self.wait_s = batches, wait_s

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(self.batches):
            time.sleep(self.wait_s)
            yield torch.ones(4, 4)


def mean_square(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean()


def do_nothing(step: int) -> None:
    pass


class Model(LightningModule):
    """A linear layer, and whatever else a step is to do."""

    def __init__(self, step: Callable[[int], None] = do_nothing, batch_size: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.do_step = step
        self.batch_size = batch_size
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.do_step(self.steps)
        self.steps += 1
        x = batch["input_ids"].float() if isinstance(batch, dict) else batch
        return mean_square(self.layer(x))

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return loader(12, batch_size=self.batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


class Evaluated(Model):
    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).square().mean())

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        return self.layer(batch)


def loader(rows: int, wait_s: float = 0.0, batch_size: int = 4) -> DataLoader[torch.Tensor]:
    return DataLoader(Rows(rows, wait_s, batch_size), batch_size=batch_size)


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **settings})


class Waits(Callback):
    """A callback that waits for the device, as ours must not."""

    def __init__(self, ways: Sequence[Wait]) -> None:
        self.ways = ways

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        wait_for(outputs["loss"], self.ways)


class TestContract(PluginContract):
    def train(self, plan: Plan) -> Trained:
        monitor = EnergyMonitor(log=False, progress_bar=False, table=False)
        among = {"strategy": "ddp", "devices": plan.ranks} if plan.ranks > 1 else {}
        callbacks = [Waits(plan.waits), *([monitor] if plan.with_plugin else [])]
        trainer = make_trainer(plan.folder, *callbacks, max_epochs=1 if plan.resume_from is None else 2, **among)
        model = Model(plan.step)
        hosts = (trainer, trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer.strategy, model)
        failure = None
        with synchronisations() as waited:
            try:
                data = loader(plan.ranks * plan.steps * plan.batch_size, plan.wait_s, plan.batch_size)
                trainer.fit(model, data, ckpt_path=plan.resume_from)
            except Exception as error:  # noqa: BLE001 - the contract judges it
                failure = error
        checkpoint = plan.folder / "end.ckpt"
        if failure is None:
            trainer.save_checkpoint(checkpoint)
        total_j = trainer.callback_metrics.get("energy/total_j")
        return Trained(
            steps=model.steps,
            report=load_if_any(plan.folder),
            total_j=None if total_j is None else float(total_j),
            checkpoint=checkpoint,
            failure=failure,
            hosts=hosts,
            synchronisations=waited,
        )


class TestSteps:
    def test_a_fetch_that_finds_the_data_exhausted_is_no_step(self, simulation: Simulation, tmp_path: Path) -> None:
        data = DataLoader(Stream(3, wait_s=0.02), batch_size=None)
        make_trainer(tmp_path, EnergyMonitor(), max_epochs=2).fit(Model(), data)
        report = load(tmp_path)
        assert report.steps.rows == 6
        # Without a length Lightning fetches one batch ahead: the last step of an epoch only finds the end.
        assert [wait > 0.01 for wait in report.steps["end_s"] - report.steps["start_s"]] == [True, True, False] * 2

    @pytest.mark.filterwarnings("ignore:.*dataloader_iter")
    def test_a_loader_read_by_the_training_step(self, simulation: Simulation, tmp_path: Path) -> None:
        class Reads(Model):
            def training_step(self, dataloader_iter: Iterator[Any]) -> torch.Tensor:  # type: ignore[override]
                batch, *_ = next(dataloader_iter)
                return mean_square(self.layer(batch))

        make_trainer(tmp_path, EnergyMonitor(), log_every_n_steps=1).fit(Reads(), loader(12, wait_s=0.02))
        report = load(tmp_path)
        assert report.steps.rows == report.work.steps
        assert report.work.samples == 12
        assert counts(report)["data_wait"] >= 3

    def test_a_skipped_epoch_does_not_leave_a_step_open(self, simulation: Simulation, tmp_path: Path) -> None:
        class Skips(Model):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
                return -1 if batch_idx == 1 else None

        make_trainer(tmp_path, EnergyMonitor(), max_epochs=2).fit(Skips(), loader(12))
        report = load(tmp_path)
        assert report.steps.rows == 4
        assert not [text for text in report.warnings if "never ended" in text]

    def test_tokens_are_counted(self, simulation: Simulation, tmp_path: Path) -> None:
        class Texts(Rows):
            def __getitem__(self, index: int) -> Any:
                return {"input_ids": torch.ones(4, dtype=torch.long)}

        data: DataLoader[Any] = DataLoader(Texts(8), batch_size=2)
        make_trainer(tmp_path, EnergyMonitor()).fit(Model(), data)
        work = load(tmp_path).work
        assert (work.samples, work.tokens) == (8, 32)

    def test_a_batch_without_tensors_has_no_samples(self, simulation: Simulation, tmp_path: Path) -> None:
        class Names(Model):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                return mean_square(self.layer(torch.ones(4)))

        data: DataLoader[Any] = DataLoader(["a", "b"], batch_size=1, collate_fn=lambda rows: rows)  # type: ignore[arg-type]
        make_trainer(tmp_path, EnergyMonitor()).fit(Names(), data)
        report = load(tmp_path)
        assert report.steps.rows == 2
        assert report.work.samples is None

    def test_phases_of_every_nth_optimizer_step(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, EnergyMonitor(phases_every_n_steps=2), accumulate_grad_batches=2)
        trainer.fit(Model(), loader(32))
        # Optimizer steps 0 and 2 of 4, two batches each.
        found = counts(load(tmp_path))
        assert (found["forward"], found["backward"], found["optimizer"]) == (4, 4, 2)

    def test_no_phases(self, simulation: Simulation, tmp_path: Path) -> None:
        make_trainer(tmp_path, EnergyMonitor(phases_every_n_steps=0)).fit(Model(), loader(8))
        assert "forward" not in counts(load(tmp_path))

    def test_negative_phases_are_refused(self) -> None:
        with pytest.raises(ValueError, match="phases_every_n_steps is -1"):
            EnergyMonitor(phases_every_n_steps=-1)


class TestSpans:
    def test_validation_and_checkpoints(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(
            tmp_path, EnergyMonitor(), ModelCheckpoint(tmp_path), max_epochs=2, enable_checkpointing=True
        )
        trainer.fit(Evaluated(), loader(8), loader(8))
        found = counts(load(tmp_path))
        assert found["validate"] == 2  # the sanity check is none
        assert found["checkpoint"] == 2
        assert found["fit"] == 1

    @pytest.mark.parametrize("stage", ["validate", "test", "predict"])
    def test_a_stage_alone(self, simulation: Simulation, tmp_path: Path, stage: str) -> None:
        trainer = make_trainer(tmp_path, EnergyMonitor())
        getattr(trainer, stage)(Evaluated(), loader(8))
        report = load(tmp_path)
        assert counts(report) == {"run": 1, stage: 1}
        assert report.config["stage"] == stage


class TestFigures:
    def test_they_reach_loggers_callbacks_and_progress_bar(self, simulation: Simulation, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path)
        trainer = make_trainer(tmp_path, EnergyMonitor(), logger=logger, log_every_n_steps=10)
        trainer.fit(Model(lambda _: simulation.gpus[0].launch(ops=2e13, wait=True)), loader(4 * 120))
        header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
        names = {"total_j", "step_j", "avg_power_w", "samples_per_j", "gpu0/total_j", "gpu0/power_w"}
        assert {f"energy/{name}" for name in names} <= {*header}
        metrics = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("energy/")}
        assert "energy/step_j" in metrics
        # On the host there is nothing to wait for, and single precision would round joules away.
        assert {(value.device.type, value.dtype) for value in metrics.values()} == {("cpu", torch.float64)}
        assert float(metrics["energy/total_j"]) == load(tmp_path).total_j
        assert "energy/step_j" in trainer.progress_bar_metrics  # the total is part of a text: test_lightning_budget.py

    def test_early_stopping_can_watch_them(self, simulation: Simulation, tmp_path: Path) -> None:
        stop = EarlyStopping("energy/total_j", stopping_threshold=1.0, mode="max", check_on_train_epoch_end=True)
        trainer = make_trainer(tmp_path, EnergyMonitor(), stop, max_epochs=50)
        trainer.fit(Model(lambda _: simulation.gpus[0].launch(ops=8e13, wait=True)), loader(4 * 8))
        assert 1 <= trainer.current_epoch < 50

    def test_without_a_gpu_watching_them_ends_nothing_and_loggers_hear_of_no_joules(self, tmp_path: Path) -> None:
        stop = EarlyStopping("energy/total_j", stopping_threshold=1.0, mode="max", patience=9)
        nowhere = Drivers(nvml=str(tmp_path / "no-nvml.so"), cuda=str(tmp_path / "no-cuda.so"))
        logger = CSVLogger(tmp_path)
        with use_drivers(nowhere), our_warnings():
            trainer = make_trainer(tmp_path, EnergyMonitor(), stop, max_epochs=2, logger=logger)
            trainer.fit(Model(), loader(8))
        assert trainer.current_epoch == 2
        assert "energy/" not in "".join(path.read_text() for path in tmp_path.rglob("metrics.csv"))

    def test_barebones_stays_silent(self, simulation: Simulation, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*barebones")
            Trainer(
                accelerator="cpu", barebones=True, max_epochs=1, callbacks=[monitor := EnergyMonitor(str(tmp_path))]
            ).fit(Model(), loader(8))
        assert monitor.report is not None

    def test_activity_if_asked_for(self, simulation: Simulation, tmp_path: Path) -> None:
        model = Model(lambda _: simulation.gpus[0].launch(ops=8e13, wait=True))
        make_trainer(tmp_path, EnergyMonitor(activity=True)).fit(model, loader(20))
        (columns,) = load(tmp_path).activity.values()
        assert columns.rows >= 1
        assert columns["tensor"].max() > 0.5

    def test_one_table_and_where_the_report_is(
        self, simulation: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_trainer(tmp_path, EnergyMonitor()).fit(Model(), loader(8))
        shown = capsys.readouterr().out
        assert str(load(tmp_path)) in shown
        assert shown.count(f"Report: {tmp_path / 'energy' / 'run-1'}") == 1


class TestState:
    def test_it_loads_with_weights_only(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, EnergyMonitor())
        trainer.fit(Model(), loader(8))
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        state = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["EnergyMonitor"]
        assert state == {"total_j": load(tmp_path).total_j, "run": ""}

    def test_loading_twice_counts_once(self, simulation: Simulation, tmp_path: Path) -> None:
        monitor = EnergyMonitor()
        for _ in range(2):
            monitor.load_state_dict({"total_j": 100.0, "run": "before"})
        assert monitor.state_dict()["total_j"] == 100.0

    def test_its_own_state_changes_nothing_in_mid_run(self, simulation: Simulation, tmp_path: Path) -> None:
        class Reloads(Callback):
            def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
                time.sleep(1.5)
                monitor.load_state_dict(monitor.state_dict())

        monitor = EnergyMonitor()
        trainer = make_trainer(tmp_path, monitor, Reloads())
        trainer.fit(Model(), loader(8))
        assert float(trainer.callback_metrics["energy/total_j"]) == load(tmp_path).total_j

    def test_batch_size_finder(self, simulation: Simulation, tmp_path: Path) -> None:
        finder = BatchSizeFinder(mode="power", steps_per_trial=1, init_val=2, max_trials=2)
        trainer = make_trainer(tmp_path, EnergyMonitor(), finder)
        trainer.fit(model := Model(batch_size=2))
        report = load(tmp_path)
        assert report.work.samples == 12
        assert report.steps.rows == -(-12 // model.batch_size)
        assert report.config["earlier_j"] == 0

    def test_copies_are_of_the_settings(self, simulation: Simulation, tmp_path: Path) -> None:
        class Copies(Callback):
            def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
                assert monitor._monitor.run is not None
                assert copy.deepcopy(monitor)._monitor.run is None
                assert pickle.loads(pickle.dumps(monitor))._monitor.run is None  # noqa: S301 - our own bytes

        monitor = EnergyMonitor(name="mine")
        make_trainer(tmp_path, monitor, Copies()).fit(Model(), loader(8))
        assert (tmp_path / "energy" / "mine-1" / "report.json").exists()


class TestTrouble:
    def test_keyboard_interrupt(self, simulation: Simulation, tmp_path: Path) -> None:
        def interrupt(step: int) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(SystemExit):
            make_trainer(tmp_path, EnergyMonitor()).fit(Model(interrupt), loader(32))
        report = load(tmp_path)
        assert report.complete
        assert report.work.samples == 8

    def test_a_forked_child_that_exits_leaves_the_run_alone(
        self, simulation: Simulation, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def fork(step: int) -> None:
            if (child := os.fork()) == 0:
                monitor._monitor.finish()  # as atexit does
                os._exit(0)
            os.waitpid(child, 0)

        monitor = EnergyMonitor()
        make_trainer(tmp_path, monitor).fit(Model(fork), loader(8))
        assert load(tmp_path).steps.rows == 2
        assert capfd.readouterr().out.count("Report: ") == 1

    def test_the_state_of_another_version_does_not_stop_a_resume(self) -> None:
        with our_warnings() as texts:
            EnergyMonitor().load_state_dict({"joules": 1.0})
        assert len(texts) == 1

    @pytest.mark.parametrize("lost", [float("nan"), float("inf")])
    def test_joules_in_a_checkpoint_that_are_no_numbers_are_not_counted(self, lost: float) -> None:
        monitor = EnergyMonitor()
        with our_warnings() as texts:
            monitor.load_state_dict({"total_j": 5.0, "run": "", "fit_j": lost})
            assert monitor.state_dict() == {"total_j": 5.0, "run": ""}
            monitor.load_state_dict({"total_j": lost, "run": "", "fit_j": 7.0})
            assert monitor.state_dict() == {"total_j": 5.0, "run": "", "fit_j": 7.0}
        assert ["are no numbers" in text for text in texts] == [True, True]

    def test_a_failure_of_ours_warns_once(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError("the meter broke")

        monkeypatch.setattr(EnergyMeter, "end", fail)
        trainer = make_trainer(tmp_path, EnergyMonitor(), max_epochs=3)
        with our_warnings() as texts:
            trainer.fit(model := Model(), loader(8))
        assert model.steps == 6
        ours = [text for text in texts if "training goes on" in text]
        assert ours == ["energy: measuring failed, training goes on: the meter broke"]
        assert "save_checkpoint" not in vars(trainer)

    def test_another_lightning_without_the_bracket(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = make_trainer(tmp_path, EnergyMonitor())
        loop = type(trainer.fit_loop.epoch_loop)
        monkeypatch.setattr(loop, "on_run_start", lambda _loop, _fetcher: None)
        monkeypatch.delattr(loop, "_on_before_fetch")
        monkeypatch.delattr(loop, "_on_after_fetch")
        trainer.fit(Model(), loader(8))
        report = load(tmp_path)
        assert report.steps.rows == 2
        assert report.data_wait_j is None
        assert "around a fetch" in str(report.config["data_wait"])

    def test_a_disk_that_cannot_be_written(self, simulation: Simulation, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        monitor = EnergyMonitor(folder=str(tmp_path / "file" / "below"))
        with our_warnings() as texts:
            make_trainer(tmp_path, monitor).fit(Model(), loader(8))
        assert ["not kept on disk" in text for text in texts] == [True]
        assert monitor.report is not None
        assert monitor.report.steps.rows == 2

    def test_a_folder_that_cannot_be_is_only_no_folder(self, simulation: Simulation, tmp_path: Path) -> None:
        # Whatever goes wrong with it, the other ranks wait to be told the folder.
        with pytest.raises(ConfigError, match="report.folder is"):
            EnergyMonitor(folder="no\0folder")
        monitor = EnergyMonitor(folder="n" * 300)
        with our_warnings() as texts:
            make_trainer(tmp_path, monitor).fit(Model(), loader(8))
        assert ["not kept on disk" in text for text in texts] == [True]
        assert monitor.report is not None
        assert monitor.report.steps.rows == 2

    def test_training_goes_on_where_warnings_are_errors(
        self, simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError("the meter broke")

        (tmp_path / "file").touch()
        monkeypatch.setattr(EnergyMeter, "end", fail)
        monitor = EnergyMonitor(folder=str(tmp_path / "file" / "below"))
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            make_trainer(tmp_path, monitor).fit(model := Model(), loader(8))
        assert model.steps == 2

    def test_what_another_put_over_ours_stays(self, simulation: Simulation, tmp_path: Path) -> None:
        class Shadows(Callback):
            def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
                vars(trainer)["save_checkpoint"] = theirs

        def theirs(*args: object) -> None:
            pass

        trainer = make_trainer(tmp_path, EnergyMonitor(), Shadows())
        trainer.fit(Model(), loader(8))
        assert vars(trainer)["save_checkpoint"] is theirs


class TestSettings:
    def test_lightning_cli(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py"])
        cli = LightningCLI(
            Model,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            args=[
                "--trainer.callbacks+=energy_plugins.lightning.EnergyMonitor",
                "--trainer.callbacks.phases_every_n_steps=7",
                "--trainer.callbacks.devices=[0]",
                "--trainer.callbacks.activity=true",
                f"--trainer.callbacks.folder={tmp_path}",
            ],
        )
        monitor = next(callback for callback in vars(cli.trainer)["callbacks"] if isinstance(callback, EnergyMonitor))
        assert monitor._monitor.config.measure.phases_every_n_steps == 7
        assert monitor._monitor.config.measure.devices == (0,)
        assert monitor._monitor.config.measure.activity

    def test_without_lightning_the_import_names_the_remedy(self) -> None:
        code = (
            "import sys\n"
            "sys.modules.update(dict.fromkeys(['lightning', 'lightning.pytorch', 'pytorch_lightning']))\n"
            "import energy_plugins.lightning"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.stderr.endswith("ImportError: Lightning is missing: pip install energy-plugins[lightning]\n")

    @pytest.mark.slow
    def test_pytorch_lightning_if_that_is_loaded(self) -> None:
        code = (
            "import pytorch_lightning\n"
            "from energy_plugins.lightning import EnergyMonitor\n"
            "assert issubclass(EnergyMonitor, pytorch_lightning.Callback)\n"
            "pytorch_lightning.Trainer(callbacks=EnergyMonitor(), logger=False, accelerator='cpu')"
        )
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)

    @pytest.mark.slow
    def test_each_rank_keeps_its_report(self, simulation: Simulation, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, EnergyMonitor(), strategy="ddp_spawn", devices=2)
        trainer.fit(Model(), loader(16))
        assert load(tmp_path).steps.rows == 2
        assert Report.load(tmp_path / "energy" / "run-1" / "rank-1").config["rank"] == 1
