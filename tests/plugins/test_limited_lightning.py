"""Fits of Lightning under a power limit: what it saves, what it promises, and that the GPU is as it was found."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from limiting import (
    FOUND_W,
    OTHER,
    SHARE,
    STEP,
    STEPS,
    assert_saved,
    limit_w,
    limited_gpu,
    limits_during,
    operator_sets,
    part_of,
    work,
)
from outcomes import load, our_warnings
from test_lightning import Evaluated, Model, Stream, loader, make_trainer
from torch.utils.data import DataLoader

from energy_plugins.errors import ConfigError
from energy_plugins.lightning import EnergyMonitor, PowerLimitTuner
from energy_plugins.measure.report import Report
from energy_plugins.testing import H200, NoPermission


def fit(folder: Path, step: Callable[[int], None], *callbacks: Callback, steps: int = STEPS, **settings: Any) -> Report:
    """Train for so many steps and return the report."""
    trainer = make_trainer(folder, *callbacks, **{"log_every_n_steps": 50, **settings})
    trainer.fit(Model(step, batch_size=1), loader(steps, batch_size=1))
    return load(folder)


def quiet() -> EnergyMonitor:
    return EnergyMonitor(table=False, log=False, progress_bar=False)


def tuner(**settings: Any) -> PowerLimitTuner:
    return PowerLimitTuner(**{"search_share": SHARE, **settings})


class TestASearch:
    def test_it_saves_energy_keeps_the_slowdown_and_leaves_the_gpu_as_found(self, tmp_path: Path) -> None:
        reports = []
        for name, callbacks in (("plain", [quiet()]), ("limited", [quiet(), tuner()])):
            with limited_gpu() as simulation:
                reports.append(fit(tmp_path / name, work(simulation), *callbacks))
                assert limit_w() == FOUND_W
        plain, limited = reports
        assert_saved(limited, plain)
        part = part_of(limited)
        assert (part.source, part.found, part.back_end, part.searches, part.binding) == (
            "search", FOUND_W, "NVML", 1, True,
        )  # fmt: skip
        assert part.put_back == f"the limit is {FOUND_W:g} W again, as it was found"
        assert part.search_s <= SHARE * limited.duration_s
        assert len(part.tried) >= 3
        assert part.tried[0].limit == FOUND_W
        assert part.turn_s < 0.1
        text = str(limited)
        assert f"limited       to {part.chosen:g} W of the {FOUND_W:g} W found" in text
        assert "SIMULATED" in text
        assert limited.power_limit == Report.load(limited.save(tmp_path / "copy")).power_limit

    def test_the_environment_may_ask_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "energy.yaml").write_text(f"power_limit: {{search_share: {SHARE}}}\nreport: {{table: false}}\n")
        monkeypatch.setenv("ENERGY_CONFIG", str(tmp_path / "energy.yaml"))
        with limited_gpu() as simulation:
            report = fit(tmp_path, work(simulation), EnergyMonitor())
        assert part_of(report).source == "search"

    def test_without_being_asked_for_no_limit_is_touched(self, tmp_path: Path) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            report = fit(tmp_path, limits_during(simulation, seen), quiet(), steps=50)
            assert not list(simulation.journal.iterdir()) if simulation.journal.exists() else True
        assert set(seen) == {FOUND_W}
        assert report.power_limit is None

    def test_the_tuner_brings_a_monitor_if_there_is_none(self, tmp_path: Path) -> None:
        with limited_gpu() as simulation:
            one = tuner(fixed=500)
            report = fit(tmp_path, work(simulation), one, steps=40)
        assert one.report is not None
        assert one.report.run_id == report.run_id
        assert part_of(report).chosen == 500

    def test_what_is_no_step_does_not_count(self, tmp_path: Path) -> None:
        """Long first steps, validations at another power and checkpoints change neither choice nor expectation."""

        class Busy(Evaluated):
            def on_validation_epoch_end(self) -> None:
                simulation.gpus[0].launch(ops=4e15, wait=True)

            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                simulation.advance(2)

        class Saves(Callback):
            def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
                if trainer.global_step % 25 == 0:
                    trainer.save_checkpoint(tmp_path / "some.ckpt")

        def step(number: int) -> None:
            simulation.gpus[0].launch(ops=4e14 if number > 8 else 4e15, bytes=4.3e12, wait=True)
            if number % 57 == 50:
                simulation.advance(6)  # something compiles

        with limited_gpu() as simulation:
            trainer = make_trainer(
                tmp_path, quiet(), tuner(), Saves(), val_check_interval=15, num_sanity_val_steps=0, max_epochs=5
            )
            trainer.fit(Busy(step, batch_size=1), loader(60, batch_size=1), loader(1))
        part = part_of(load(tmp_path))
        assert part.source == "search"
        assert part.expected_saving == pytest.approx(0.135, abs=0.02)
        assert {round(one.step_time_s, 2) for one in part.tried if one.limit == FOUND_W} == {1.0}

    def test_a_limit_that_would_not_bind_is_not_chosen(self, tmp_path: Path) -> None:
        with limited_gpu() as simulation:
            report = fit(tmp_path, work(simulation, bytes=8.6e11), quiet(), tuner(max_slowdown=0.0), steps=1000)
        part = part_of(report)
        assert part.drawn_w is not None
        if part.chosen != FOUND_W:
            assert part.chosen is not None
            assert part.chosen < part.drawn_w + 20

    def test_a_training_that_is_too_short_is_left_alone(self, tmp_path: Path) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            report = fit(tmp_path, limits_during(simulation, seen), quiet(), PowerLimitTuner(), steps=100)
        assert set(seen) == {FOUND_W}
        assert "which is planned to take 100 s in all, is too short to search" in part_of(report).why

    def test_a_training_without_an_end_searches_when_its_share_is_enough(self, tmp_path: Path) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            trainer = make_trainer(tmp_path, quiet(), tuner(), max_epochs=-1, max_time="00:10:00:00", max_steps=-1)
            trainer.fit_loop.max_epochs = 1
            trainer.fit(
                Model(limits_during(simulation, seen), batch_size=1), DataLoader(Stream(320, 0.0), batch_size=None)
            )
        changed = next(place for place, limit in enumerate(seen) if limit != FOUND_W)
        assert part_of(load(tmp_path)).source == "search"
        assert changed >= 1


class TestLogs:
    @pytest.mark.parametrize("may", [True, False])
    def test_loggers_hear_of_the_limit_in_force(self, tmp_path: Path, may: bool) -> None:
        logger = CSVLogger(tmp_path)
        with limited_gpu() as simulation:
            if not may:
                simulation.gpus[0].inject(NoPermission("nvmlDeviceSetPowerManagementLimit"))
            monitor = EnergyMonitor(table=False, progress_bar=False)
            fit(tmp_path, work(simulation), monitor, tuner(fixed=500), steps=60, logger=logger, log_every_n_steps=10)
        rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
        of_steps = [row for row in rows if row["energy/step_j"]]
        assert len(of_steps) >= 5
        assert {row.get("energy/power_limit_w") for row in of_steps} == ({"500.0"} if may else {None})


class TestEnds:
    @pytest.mark.parametrize("error", [RuntimeError("of the training"), KeyboardInterrupt()])
    @pytest.mark.parametrize("at", [25, 150])
    def test_the_limit_is_put_back_whatever_ends_the_fit(self, tmp_path: Path, error: BaseException, at: int) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            do = limits_during(simulation, seen)

            def step(number: int) -> None:
                do(number)
                if seen[-1] != FOUND_W and number >= at:
                    raise error

            with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
                fit(tmp_path, step, quiet(), tuner())
            assert seen[-1] < FOUND_W
            assert limit_w() == FOUND_W
        assert part_of(load(tmp_path)).put_back == f"the limit is {FOUND_W:g} W again, as it was found"

    def test_measuring_that_fails_puts_it_back_and_the_fit_goes_on(self, tmp_path: Path) -> None:
        class Refuses(dict[str, torch.Tensor]):
            def get(self, *args: Any) -> Any:
                if self["number"] == 150:
                    raise RuntimeError("not to be counted")
                return None

        class Other(Model):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                return super().training_step(batch["input_ids"], batch_idx)

        def collate(rows: list[torch.Tensor]) -> Refuses:
            return Refuses(input_ids=torch.stack(rows), number=rows[0].flatten()[0])

        seen: list[float] = []
        with limited_gpu() as simulation, our_warnings() as texts:
            model = Other(limits_during(simulation, seen), batch_size=1)
            data = loader(STEPS, batch_size=1)
            make_trainer(tmp_path, quiet(), tuner()).fit(
                model, DataLoader(data.dataset, batch_size=1, collate_fn=collate)
            )
            assert model.steps == STEPS
            assert limit_w() == FOUND_W
        assert any("not to be counted" in text for text in texts)
        assert min(seen[:151]) < FOUND_W
        assert set(seen[152:]) == {FOUND_W}

    def test_an_operators_change_is_respected(self, tmp_path: Path) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            do = limits_during(simulation, seen)

            def step(number: int) -> None:
                if number == 150:
                    operator_sets(400)
                do(number)

            with our_warnings() as texts:
                fit(tmp_path, step, quiet(), tuner(), steps=350)
            assert limit_w() == 400
        assert set(seen[150:]) == {400}
        assert any("changed the limit to 400 W" in text for text in texts)
        assert "changed the limit to 400 W" in part_of(load(tmp_path)).why


class TestFixed:
    def test_it_is_set_and_it_is_said_whether_it_binds(self, tmp_path: Path) -> None:
        found = {}
        for name, ops in (("heavy", {}), ("light", {"bytes": 8.6e11})):
            seen: list[float] = []
            with limited_gpu() as simulation:
                report = fit(
                    tmp_path / name, limits_during(simulation, seen, **ops), quiet(), tuner(fixed=500), steps=60
                )
                assert limit_w() == FOUND_W
            assert set(seen) == {500}
            part = part_of(report)
            assert (part.chosen, part.source, part.found) == (500, "fixed", FOUND_W)
            found[name] = part.binding, "NOT BINDING" in str(report)
        assert found == {"heavy": (True, False), "light": (False, True)}

    @pytest.mark.parametrize("watts", [100.0, 695.0])
    def test_what_the_gpu_does_not_take_is_said_and_the_fit_goes_on(self, tmp_path: Path, watts: float) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation, our_warnings() as texts:
            report = fit(tmp_path, limits_during(simulation, seen), quiet(), tuner(fixed=watts), steps=40)
        assert set(seen) == {FOUND_W}
        assert any("takes limits of 200-690 W" in text for text in texts)
        assert "takes limits of 200-690 W" in part_of(report).why
        assert part_of(report).chosen is None


class TestNoPermission:
    @pytest.mark.parametrize("settings", [{}, {"fixed": 500}])
    def test_the_fit_goes_on_and_the_report_has_advice(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            simulation.gpus[0].inject(NoPermission("nvmlDeviceSetPowerManagementLimit"))
            report = fit(tmp_path, limits_during(simulation, seen), quiet(), tuner(**settings), steps=60)
        part = part_of(report)
        assert set(seen) == {FOUND_W}
        assert part.chosen is None
        assert part.back_end == "advice"
        assert "the driver refuses" in part.why
        assert f"a GPU may draw {FOUND_W:g} W and draws 689 W in steps" in part.advice
        assert "run as root" in part.advice
        assert ("a limit of 500 W would bind" if settings else "only limits below") in part.advice


class TestClocks:
    def test_they_are_searched_and_unlocked_again(self, tmp_path: Path) -> None:
        with limited_gpu() as simulation:
            report = fit(tmp_path, work(simulation), quiet(), tuner(knob="clocks", clocks_unlocked=True))
            after = fit(tmp_path / "after", work(simulation), quiet(), steps=40)
        part = part_of(report)
        assert (part.unit, part.found, part.source) == ("MHz", 1980, "search")
        assert part.chosen is not None
        assert part.chosen < 1200
        assert part.expected_saving is not None
        assert part.expected_saving > 0.1
        assert part.put_back == "the clocks are unlocked again"
        assert after.gpu_states[0].sm_clock_mhz is not None
        assert after.gpu_states[0].sm_clock_mhz > part.chosen + 100

    def test_without_the_users_word_they_are_not_locked(self, tmp_path: Path) -> None:
        with limited_gpu() as simulation:
            report = fit(tmp_path, work(simulation), quiet(), tuner(knob="clocks"), steps=40)
        assert "NVML does not tell whether somebody has locked the clocks" in part_of(report).why
        assert part_of(report).chosen is None

    @pytest.mark.parametrize(("ops", "unit"), [({}, "W"), ({"ops": 4e13}, "MHz")])
    def test_where_no_limit_binds_auto_takes_them(self, tmp_path: Path, ops: dict[str, float], unit: str) -> None:
        """Work that draws less than the lowest limit, which a power limit cannot touch."""
        profile = replace(H200, min_limit_w=550.0)
        with limited_gpu(profile=profile) as simulation:
            step = work(simulation, **(ops and {"ops": 8e13, "bytes": 4.3e12}))
            report = fit(tmp_path, step, quiet(), tuner(knob="auto", clocks_unlocked=True))
            assert limit_w() == FOUND_W
        part = part_of(report)
        assert (part.unit, part.source) == (unit, "search")


class TestMemory:
    def twice(
        self, folder: Path, between: Callable[[], None] = lambda: None, second: Mapping[str, float] = STEP
    ) -> Report:
        with limited_gpu() as simulation:
            fit(folder / "first", work(simulation), quiet(), tuner())
        between()
        with limited_gpu() as simulation:
            report = fit(folder / "second", work(simulation, **second), quiet(), tuner())
            assert limit_w() == FOUND_W
        return report

    def test_a_limit_is_used_again_once_it_is_checked(self, tmp_path: Path) -> None:
        part = part_of(self.twice(tmp_path))
        assert (part.source, part.searches, len(part.tried)) == ("memory", 0, 3)
        assert part.expected_saving == pytest.approx(0.135, abs=0.02)

    def test_one_that_saves_nothing_any_more_is_searched_for_again(self, tmp_path: Path) -> None:
        part = part_of(self.twice(tmp_path, second=OTHER))  # now the clocks are what it waits for
        assert part.source == "search"
        assert (part.searches, len(part.tried) > 3) == (1, True)

    @pytest.mark.parametrize("other", [{"precision": "bf16-true"}, {"batch_size": 2}, {"model": True}, {}])
    def test_another_training_does_not_take_it(self, tmp_path: Path, other: dict[str, Any]) -> None:
        """What is remembered is of one model, batch and precision."""
        size, precision = other.get("batch_size", 1), other.get("precision", "32-true")
        with limited_gpu() as simulation:
            fit(tmp_path / "first", work(simulation), quiet(), tuner())
        with limited_gpu() as simulation:
            model = Model(work(simulation), batch_size=size)
            if other.get("model"):
                model.added = torch.nn.Parameter(torch.zeros(3))
            trainer = make_trainer(tmp_path / "second", quiet(), tuner(), precision=precision)
            trainer.fit(model, loader(size * STEPS, batch_size=size))
        assert part_of(load(tmp_path / "second")).source == ("search" if other else "memory")

    def test_a_file_that_cannot_be_trusted_is_left_aside(self, tmp_path: Path, cache_home: Path) -> None:
        path = cache_home / "energy-plugins" / "power_limits.json"
        with our_warnings() as texts:
            part = part_of(self.twice(tmp_path, lambda: path.chmod(0o666)))
        assert part.source == "search"
        assert any("may be written by others" in text for text in texts)


class TestAfterwards:
    def test_other_work_is_searched_for_again(self, tmp_path: Path) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            (gpu,) = simulation.gpus

            def step(number: int) -> None:
                seen.append(limit_w())
                gpu.launch(**(STEP if number < 250 else OTHER), wait=True)

            report = fit(tmp_path, step, quiet(), tuner(), steps=750)
            assert limit_w() == FOUND_W
        part = part_of(report)
        assert part.searches == 2
        assert seen[249] < 600  # the memory was what it waited for
        assert seen[-1] > 640  # now it is the clocks
        assert part.expected_slowdown is not None
        assert part.expected_slowdown <= 0.035

    def test_without_time_to_search_again_the_limit_found_is_back(self, tmp_path: Path) -> None:
        seen: list[float] = []
        with limited_gpu() as simulation:
            (gpu,) = simulation.gpus

            def step(number: int) -> None:
                seen.append(limit_w())
                gpu.launch(**(STEP if number < 250 else OTHER), wait=True)

            report = fit(tmp_path, step, quiet(), tuner(search_share=0.07), steps=500)
        assert min(seen[:250]) < FOUND_W
        assert seen[-1] == FOUND_W
        assert "too short to search again" in part_of(report).why


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"max_slowdown": -0.1}, "max_slowdown is -0.1; expected a number, 0 or more"),
            ({"objective": "speed"}, "objective is 'speed'; expected one of energy, energy_delay, zeus"),
            ({"fixed": 0}, "fixed is 0; expected a positive number"),
            ({"knob": "fan"}, "knob is 'fan'; expected one of limit, clocks, auto"),
            ({"search_share": 2}, "search_share is 2; expected a number from 0 to 1"),
        ],
    )
    def test_what_makes_no_sense_is_refused_at_once(self, settings: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ConfigError, match=f"power_limit.{complaint}"):
            PowerLimitTuner(**settings)

    @pytest.mark.parametrize("objective", ["energy_delay", "zeus"])
    def test_other_objectives(self, tmp_path: Path, objective: str) -> None:
        with limited_gpu() as simulation:
            report = fit(tmp_path, work(simulation), quiet(), tuner(objective=objective, max_slowdown=0.2))
        part = part_of(report)
        assert part.source == "search"
        assert part.binding
        assert part.expected_slowdown is not None
        assert part.expected_slowdown < 0.1  # more would cost more than it saves

    def test_what_the_host_draws_counts_against_slow_steps(self, tmp_path: Path) -> None:
        limits = {}
        for host_w in (0.0, 3000.0):
            with limited_gpu() as simulation:
                report = fit(
                    tmp_path / str(host_w), work(simulation), quiet(), tuner(max_slowdown=0.3, host_power_w=host_w)
                )
            limits[host_w] = part_of(report).chosen
        assert limits[0.0] is not None
        assert limits[3000.0] is not None
        assert limits[0.0] < limits[3000.0] - 50
