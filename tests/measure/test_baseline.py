"""Idle power: measured only when idle, remembered for a node, trusted only as far as it should be."""

from __future__ import annotations

import json
import os
import platform
import re
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import Simulated

from energy_plugins.errors import BusyError, DeviceError
from energy_plugins.measure.baseline_store import IdlePower, recall, remember, store_path
from energy_plugins.measure.meter import EnergyMeter
from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant, GpuLost, HiddenProcesses, Simulation, Square

NOBODY = 65534
IDLE = IdlePower(
    uuid="GPU-a",
    power_w=118.5,
    error_bound_w=0.4,
    measured="2026-11-21T10:00:00.000+00:00",
    seconds=10.0,
    driver="580.159.04",
)


def idle(simulated: Simulated, *watts: float) -> Simulation:
    return simulated([Constant(one_w) for one_w in watts or (125.0,)], virtual=True, start_s=10)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


class TestMeasuring:
    def test_it_is_the_power_of_each_gpu_and_remembered(self, simulated: Simulated) -> None:
        simulation = idle(simulated, 120, 80)
        baseline = EnergyMeter.baseline(10)
        uuids = [gpu.uuid for gpu in simulation.gpus]
        assert baseline.node == platform.node()
        assert [baseline.idle_w[uuid] for uuid in uuids] == pytest.approx([120, 80], rel=0.01)
        assert recall(uuids).idle_w == dict(baseline.idle_w)
        assert baseline.gpus[0].seconds == pytest.approx(10, abs=0.5)
        assert 0 < baseline.gpus[0].error_bound_w < 5

    def test_one_gpu_of_several(self, simulated: Simulated) -> None:
        simulation = idle(simulated, 120, 80)
        assert list(EnergyMeter.baseline(2, [1]).idle_w) == [simulation.gpus[1].uuid]

    @pytest.mark.parametrize(
        ("load", "why"),
        [(Constant(400), "its utilisation was 100 %"), (Square(90, 140, 0.4), "its power went from 90 to 1")],
    )
    def test_a_gpu_at_work_is_refused(self, simulated: Simulated, load: Constant | Square, why: str) -> None:
        simulated(load, virtual=True, start_s=10)
        with pytest.raises(BusyError, match=f"GPU .* is not idle: {why}"):
            EnergyMeter.baseline(5)
        assert not store_path().exists()

    def test_work_of_our_own_is_refused(self, simulated: Simulated) -> None:
        simulation = idle(simulated)
        simulation.gpus[0].launch(ops=1e9)
        with pytest.raises(BusyError, match="this process computes on GPU"):
            EnergyMeter.baseline(5)

    @pytest.mark.parametrize(
        ("faults", "who"), [([], "process [0-9]+ "), ([HiddenProcesses(foreign_pids=True)], "not visible")]
    )
    def test_work_of_others_is_refused(self, simulated: Simulated, faults: list[HiddenProcesses], who: str) -> None:
        simulation = simulated(Constant(125), faults=faults)
        program = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1').ep_sim_launch(0); print(flush=True); input()"
        # Measured in a process beside the busy one: what is started from here is of our own tree.
        asks = "import sys; from energy_plugins import EnergyMeter; EnergyMeter.baseline(2)"
        with subprocess.Popen(
            [sys.executable, "-c", program], env=simulation.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as busy:
            assert busy.stdout is not None
            busy.stdout.readline()
            done = subprocess.run(
                [sys.executable, "-c", asks], env=simulation.environment(), capture_output=True, text=True, check=False
            )
            busy.communicate(b"\n")
        assert done.returncode == 1
        assert "BusyError" in done.stderr
        assert re.search(who, done.stderr)

    @pytest.mark.parametrize("seconds", [0, 1.9, -1, float("nan"), float("inf")])
    def test_too_short_a_time(self, simulated: Simulated, seconds: float) -> None:
        idle(simulated)
        with pytest.raises(ValueError, match=r"a baseline takes at least 2.0 seconds, got"):
            EnergyMeter.baseline(seconds)

    @pytest.mark.filterwarnings("ignore:energy")
    def test_a_gpu_that_is_lost_has_none(self, simulated: Simulated) -> None:
        idle(simulated).gpus[0].inject(GpuLost(at_s=1))
        with pytest.raises(DeviceError, match="the idle power of GPU .* was not measured"):
            EnergyMeter.baseline(10)

    @pytest.mark.filterwarnings("ignore:energy")
    def test_no_gpu_has_none(self, simulated: Simulated) -> None:
        simulated(count=0, virtual=True)
        with pytest.raises(DeviceError, match="no whole GPU"):
            EnergyMeter.baseline(2)

    def test_a_cache_that_cannot_be_written_does_not_lose_it(self, simulated: Simulated, cache_home: Path) -> None:
        idle(simulated)
        (cache_home / "energy-plugins").touch()
        with pytest.warns(RuntimeWarning, match="are not used"), pytest.warns(RuntimeWarning, match="not remembered"):
            baseline = EnergyMeter.baseline(2)
        assert len(baseline.gpus) == 1


class TestReports:
    def measured(self, simulation: Simulation, seconds: float = 10) -> Report:
        with EnergyMeter() as meter:
            simulation.advance(seconds)
        return meter.report()

    def test_a_run_is_told_what_is_above_idle(self, simulated: Simulated, tmp_path: Path) -> None:
        simulation = idle(simulated)
        EnergyMeter.baseline(10)
        simulation.advance(7200)
        simulation.gpus[0].play(Constant(300))
        report = self.measured(simulation)
        assert report.idle_j == pytest.approx(125 * report.duration_s, rel=0.01)
        assert report.above_idle_j == pytest.approx(175 * report.duration_s, rel=0.02)
        assert "idle_j" not in report.missing
        assert "W; idle power measured 2 h 00 min before)" in " ".join(str(report).split())
        loaded = Report.load(report.save(tmp_path / "kept"))
        assert (loaded.idle_j, loaded.devices) == (report.idle_j, report.devices)

    def test_without_one_there_is_a_reason(self, simulated: Simulated) -> None:
        simulation = idle(simulated, 120, 80)
        EnergyMeter.baseline(2, [0])
        report = self.measured(simulation, 2)
        assert (report.idle_j, report.above_idle_j) == (None, None)
        assert simulation.gpus[1].uuid in report.missing["idle_j"]
        assert simulation.gpus[0].uuid not in report.missing["idle_j"]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"measured": "2020-01-01T00:00:00+00:00"}, "days old: measure it again"),
            ({"driver": "535.1"}, "was measured with driver 535.1, and this is 580.159.04"),
        ],
    )
    def test_an_old_one_is_used_with_a_warning(self, simulated: Simulated, change: dict[str, Any], said: str) -> None:
        simulation = idle(simulated)
        now = EnergyMeter.baseline(2).gpus[0]
        remember([replace(now, **change)])
        with pytest.warns(RuntimeWarning, match=said):
            report = self.measured(simulation, 2)
        assert report.idle_j is not None
        assert [said in text for text in report.warnings] == [True]

    def test_a_file_that_is_not_trusted_is_said(self, simulated: Simulated) -> None:
        simulation = idle(simulated)
        remember([IDLE])
        store_path().write_text("{")
        with pytest.warns(RuntimeWarning, match="the idle baselines are not used: .*no JSON"):
            report = self.measured(simulation, 2)
        assert report.idle_j is None


class TestStore:
    def test_what_is_remembered_is_recalled(self) -> None:
        other = replace(IDLE, uuid="GPU-b", power_w=80.0)
        remember([IDLE])
        remember([other])
        remember([replace(IDLE, power_w=119.0)])
        assert recall(["GPU-a", "GPU-b", "GPU-c"]).idle == {"GPU-a": replace(IDLE, power_w=119.0), "GPU-b": other}
        assert stat.S_IMODE(store_path().stat().st_mode) == 0o600
        assert sorted(path.name for path in store_path().parent.iterdir()) == ["baselines.json", "baselines.lock"]

    def test_nothing_is_recalled_of_other_nodes_which_are_kept(self) -> None:
        path = remember([IDLE])
        values = json.loads(path.read_text())
        values["nodes"]["elsewhere"] = values["nodes"].pop(platform.node())
        path.write_text(json.dumps(values))
        assert recall(["GPU-a"]).idle == {}
        remember([replace(IDLE, uuid="GPU-b")])
        assert json.loads(path.read_text())["nodes"]["elsewhere"] == values["nodes"]["elsewhere"]

    def test_no_file_is_no_trouble(self) -> None:
        assert (recall(["GPU-a"]).idle, recall(["GPU-a"]).trouble) == ({}, "")

    def test_many_at_once_lose_nothing(self) -> None:
        children = []
        for number in range(8):
            if (child := os.fork()) == 0:
                try:
                    remember([replace(IDLE, uuid=f"GPU-{number}")])
                finally:
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        assert len(recall([f"GPU-{number}" for number in range(8)]).idle) == 8

    @pytest.mark.parametrize("home", ["", "relative/path"])
    def test_without_a_cache_folder_it_is_in_the_home(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert store_path() == tmp_path / ".cache" / "energy-plugins" / "baselines.json"

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (lambda path: path.chmod(0o666), "may be written by others"),
            (lambda path: path.write_bytes(b"\xff\x00"), "no JSON"),
            (lambda path: path.write_text("[" * 100_000), "no JSON"),
            (lambda path: path.write_text("[]"), "must hold an object"),
            (lambda path: path.write_text('{"version": 2, "nodes": {}}'), "another version"),
            (lambda path: path.write_text('{"version": 1, "nodes": {"x": 3}}'), "nodes.x must be an object"),
            (lambda path: path.write_text(" " * (1 << 20) + "{}"), "too large"),
            (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "symbolic links"),
            (as_pipe, "no ordinary file"),
            (lambda path: (path.unlink(), path.mkdir()), "no ordinary file"),
        ],
    )
    def test_a_file_that_cannot_be_trusted_is_left_aside(self, spoil: Callable[[Path], object], why: str) -> None:
        spoil(remember([IDLE]))
        found = recall(["GPU-a"])
        assert found.idle == {}
        assert why in found.trouble

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_a_file_of_another_user_is_not_trusted(self) -> None:
        os.chown(remember([IDLE]), NOBODY, -1)
        found = recall(["GPU-a"])
        assert found.idle == {}
        assert f"belongs to user {NOBODY}, not to you" in found.trouble

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("power_w", -1),
            ("power_w", 0),
            ("power_w", 1e9),
            ("power_w", "many"),
            ("power_w", None),
            ("measured", "yesterday"),
            ("measured", "2026-11-21T10:00:00"),
            ("driver", 580),
        ],
    )
    def test_a_wrong_entry_does_not_spoil_the_others(self, key: str, value: object) -> None:
        path = remember([IDLE, replace(IDLE, uuid="GPU-b")])
        values = json.loads(path.read_text())
        values["nodes"][platform.node()]["GPU-a"][key] = value
        path.write_text(json.dumps(values))
        found = recall(["GPU-a", "GPU-b"])
        assert list(found.idle) == ["GPU-b"]
        assert f"GPU-a.{key}" in found.trouble

    @given(st.binary(max_size=64) | st.text().map(str.encode))
    def test_whatever_it_holds_nothing_is_raised(self, content: bytes) -> None:
        remember([IDLE])
        store_path().write_bytes(content)
        assert recall(["GPU-a"]).idle == {}
        remember([IDLE])  # and it can be replaced
        assert recall(["GPU-a"]).idle == {"GPU-a": IDLE}

    def test_no_warning_comes_of_reading(self) -> None:
        remember([IDLE])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert recall(["GPU-a", "GPU-x"]).idle_w == {"GPU-a": 118.5}
