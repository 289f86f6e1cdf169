"""`energy-plugins watch`: at a terminal, in a pipe, once, and with drivers that fall silent."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, Simulated, call, first_line, started, surroundings, wait_until
from hypothesis import given
from hypothesis import strategies as st
from terminal import at_terminal

from energy_plugins.cli.frame import Frame, Row
from energy_plugins.testing import Constant, GpuLost, Hang, NoCounter, NoPermission, NoSampleBuffer, NotSupported

maybe = st.none() | st.floats(0, 1e12)


def test_looks_once(simulated: Simulated) -> None:
    simulation = simulated([Constant(200), Constant(300)])
    done = call("watch", "--once", "--json", on=simulation)
    assert (done.returncode, done.stderr) == (0, "")
    frame = json.loads(done.stdout)
    assert [row["uuid"] for row in frame["gpus"]] == [gpu.uuid for gpu in simulation.gpus]
    for row, power_w in zip(frame["gpus"], (200, 300), strict=True):
        assert row["power_w"] == pytest.approx(power_w, rel=0.05)
        assert row["energy_j"] == pytest.approx(power_w * frame["elapsed_s"], rel=0.3)
        assert (row["limit_w"], row["sm_clock_mhz"], row["utilisation"]) == (700.0, 1980, 1.0)
        assert 30 < row["temperature_c"] < 60
    assert frame["notes"] == []


def test_looks_once_for_people(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    lines = call("watch", "--once", on=simulation, variables={"CUDA_VISIBLE_DEVICES": "1"}).stdout.splitlines()
    assert lines[1].split() == ["gpu", "name", "power", "limit", "SM", "clock", "temp", "busy", "energy"]
    assert lines[2].startswith("  1  NVIDIA H200 (SIMULATED)")
    assert "700.0 W  1980 MHz" in lines[2]
    assert len(lines) == 3


def test_a_slice_has_no_joules_of_its_own(simulated: Simulated) -> None:
    simulation = simulated()
    part = f"MIG-{simulation.gpus[0].uuid}/1/0"
    done = call("watch", "--once", "--json", on=simulation, variables={"CUDA_VISIBLE_DEVICES": part})
    (row,) = json.loads(done.stdout)["gpus"]
    assert (row["uuid"], row["power_w"], row["energy_j"]) == (part, None, None)


def test_a_gpu_without_sensors_has_no_joules_rather_than_none_drawn(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    for fault in (NoSampleBuffer(), NoCounter()):
        simulation.gpus[1].inject(fault)
    for name in ("nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"):
        simulation.gpus[1].inject(NotSupported(name))
    done = call("watch", "--once", "--json", on=simulation)
    seen, blind = json.loads(done.stdout)["gpus"]
    assert seen["energy_j"] > 0
    assert (blind["power_w"], blind["energy_j"]) == (None, None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1)])
def test_in_a_pipe_each_look_is_a_line_until_a_signal(
    simulated: Simulated, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with started("watch", "--interval", "0.2", on=simulated(), variables={"TMPDIR": str(tmp_path)}) as process:
        line = first_line(process)
        while " J" not in line:
            line = first_line(process)
        assert "gpu 0: 1" in line
        assert "\x1b" not in line
        files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
        assert [name for name in files if name == "power_w.f8"] == []  # a watch may last for weeks
        process.send_signal(number)
        assert process.wait() == code
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


def test_at_a_terminal_the_table_is_drawn_over_itself(simulated: Simulated) -> None:
    with at_terminal([*COMMAND, "watch", "--interval", "0.2"], surroundings(simulated(), TERM="xterm")) as terminal:
        before = terminal.settings()
        terminal.wait_for("SM clock", times=4)
        terminal.type("\x03")
        assert terminal.exit_code() == 0
        assert terminal.settings() == before
    frames = terminal.screen.split("\x1b[3F\x1b[J")
    assert len(frames) >= 4
    assert [frame.count("NVIDIA H200 (SIMULATED)") for frame in frames] == [1] * len(frames)
    assert "\x1b[?" not in terminal.screen  # no cursor hidden, no screen switched


@pytest.mark.parametrize(
    ("variables", "said"),
    [({"CUDA_VISIBLE_DEVICES": ""}, "no GPU is visible"), ({"CUDA_VISIBLE_DEVICES": "5"}, "names GPU 5")],
)
def test_no_gpu_to_watch_is_a_sentence(simulated: Simulated, variables: dict[str, str], said: str) -> None:
    done = call("watch", on=simulated(), variables=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_driver_is_a_sentence() -> None:
    done = call("watch")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot open the NVIDIA driver library")


def looks(process: Any) -> Any:
    return json.loads(first_line(process))


def test_what_one_gpu_does_not_tell_is_null(simulated: Simulated) -> None:
    simulation = simulated(faults=[NoPermission("nvmlDeviceGetTemperature")])
    (row,) = json.loads(call("watch", "--once", "--json", on=simulation).stdout)["gpus"]
    assert (row["temperature_c"], row["sm_clock_mhz"]) == (None, 1980)


def test_a_gpu_that_is_lost_has_no_power_now(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    with started("watch", "--interval", "0.2", "--json", on=simulation) as process:
        wait_until(lambda: looks(process)["gpus"][0]["power_w"] is not None)
        simulation.gpus[0].inject(GpuLost())
        wait_until(lambda: looks(process)["gpus"][0]["power_w"] is None)
        lost, other = looks(process)["gpus"]
        assert (lost["limit_w"], lost["sm_clock_mhz"]) == (None, None)
        assert lost["energy_j"] > 0
        assert other["power_w"] == pytest.approx(120, rel=0.05)


def test_a_driver_that_falls_silent_is_said_and_can_be_left(simulated: Simulated) -> None:
    simulation = simulated()
    with started("watch", "--interval", "0.2", "--json", on=simulation) as process:
        wait_until(lambda: looks(process)["gpus"][0]["power_w"] is not None)
        simulation.gpus[0].inject(Hang("nvmlDeviceGetTemperature", 3600))
        wait_until(lambda: any("has not answered" in note for note in looks(process)["notes"]))
        assert looks(process)["gpus"][0]["power_w"] is None
        began_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert time.monotonic() - began_s < 10


@given(
    st.lists(
        st.builds(
            Row,
            index=st.integers(0, 99),
            uuid=st.text(),
            name=st.text(st.characters(codec="ascii", categories=("L", "N"))),
            power_w=maybe,
            limit_w=maybe,
            sm_clock_mhz=st.none() | st.integers(0, 9999),
            temperature_c=st.none() | st.integers(-50, 150),
            utilisation=st.none() | st.floats(0, 1),
            energy_j=maybe,
        ),
        min_size=1,
        max_size=9,
    )
)
def test_any_frame_can_be_shown(rows: list[Row]) -> None:
    frame = Frame("2026-11-22T08:00:00+00:00", 12.5, tuple(rows), ("a note",))
    table = frame.table()
    assert len(table) == len(rows) + 3
    assert len({len(line) for line in table[1:-1]}) == 1
    assert "\n" not in frame.line()
    again = json.loads(frame.json())
    assert [row["energy_j"] for row in again["gpus"]] == [row.energy_j for row in rows]
