"""`energy-plugins run`: the command notices nothing, its end becomes ours, and the report is always written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import COMMAND, Simulated, call, first_line, started, surroundings, wait_until
from terminal import at_terminal

from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant, GpuLost, Hang

TELLS_OF_SIGNALS = """
import signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: heard.append(number))
print("ready", flush=True)
wanted = int(sys.argv[1])
while len(heard) < wanted:
    time.sleep(0.01)
time.sleep(0.3)  # for more than was wanted
print(",".join(signal.Signals(number).name for number in heard), flush=True)
sys.exit(5)
"""

# A handler would be called once for two signals that come at once.
TELLS_WHO_INTERRUPTS = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print(input("say: "), "heard", flush=True)
came = [signal.sigwaitinfo({signal.SIGINT})]
while more := signal.sigtimedwait({signal.SIGINT}, 0.5):
    came.append(more)
print("interrupted by", [one.si_code for one in came], flush=True)
sys.exit(5)
"""


def python(program: str, *arguments: str) -> list[str]:
    return ["--", sys.executable, "-c", program, *arguments]


def test_measures_a_command_and_its_children(simulated: Simulated, tmp_path: Path) -> None:
    simulation = simulated([Constant(200), Constant(300)])
    done = call("run", "-o", tmp_path / "out", "--name", "nap", "--", "sh", "-c", "sleep 0.7 & wait", on=simulation)
    assert (done.returncode, done.stdout) == (0, "")
    report = Report.load(tmp_path / "out")
    assert (report.name, report.complete, report.simulated) == ("nap", True, True)
    assert report.config == {"command": ["sh", "-c", "sleep 0.7 & wait"]}
    assert 0.7 <= report.duration_s < 1.5
    assert report.gpu_j == {
        gpu.uuid: pytest.approx(power_w * report.duration_s, rel=0.1)
        for gpu, power_w in zip(simulation.gpus, (200, 300), strict=True)
    }
    assert str(report) in done.stderr
    assert done.stderr.endswith(f"the report is in {tmp_path / 'out'}\n")


@pytest.mark.parametrize(
    ("ending", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9), ("kill -TERM $$", 128 + 15)]
)
def test_the_end_of_the_command_is_ours(tmp_path: Path, ending: str, code: int) -> None:
    done = call("run", "--quiet", "-o", tmp_path / "out", "--", "sh", "-c", ending)
    assert (done.returncode, done.stderr) == (code, "")
    assert Report.load(tmp_path / "out").complete


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["no-such-program"], 127, "no-such-program: command not found"),
        (["./not-there"], 127, "./not-there: command not found"),
        ([__file__], 126, f"{__file__}: is not executable"),
        (["/"], 126, "/: is not executable"),
    ],
)
def test_a_command_that_cannot_be_run_leaves_nothing_behind(
    tmp_path: Path, command: list[str], code: int, said: str
) -> None:
    done = call("run", "--", *command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, f"energy-plugins run: {said}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "code"), [("#!/no/such/interpreter\n", 127), ("\x7fELF is not what this is", 126)])
def test_a_program_that_the_system_refuses(tmp_path: Path, text: str, code: int) -> None:
    program = tmp_path / "program"
    program.write_text(text)
    program.chmod(0o755)
    done = call("run", "--quiet", "--", program, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith(f"energy-plugins run: {program}: ")
    assert len(done.stderr.splitlines()) == 1


def test_input_output_and_open_files_are_the_commands_own(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    third = f"{sys.executable} -c 'import os; os.write({writer}, b\"third\")'"
    done = call(
        *("run", "--quiet", "-o", tmp_path / "out", "--", "sh", "-c", f"cat; echo aside >&2; {third}"),
        input="through and through\n",
        pass_fds=[writer],
    )
    os.close(writer)
    assert (done.stdout, done.stderr) == ("through and through\n", "aside\n")
    assert os.read(reader, 100) == b"third"
    os.close(reader)


def test_the_command_starts_with_the_signals_that_we_started_with(tmp_path: Path) -> None:
    show = ["grep", "-E", "Sig(Blk|Ign)|ShdPnd", "/proc/self/status"]
    plain = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    below = call("run", "--quiet", "-o", tmp_path / "out", "--", *show).stdout
    assert signal_sets(below) == signal_sets(plain)


def signal_sets(status: str) -> dict[str, int]:
    """Return sets of signals by name, less the two that glibc keeps to itself: its posix_spawn always ignores them."""
    own = 1 << (32 - 1) | 1 << (33 - 1)
    lines = (line.split(":") for line in status.splitlines() if re.match("Sig(Blk|Ign)|ShdPnd", line))
    return {name: int(value, 16) & ~own for name, value in lines}


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2],
    ids=lambda number: number.name,
)
def test_a_signal_sent_to_us_is_passed_on(simulated: Simulated, tmp_path: Path, number: signal.Signals) -> None:
    arguments = ("run", "--quiet", "-o", str(tmp_path / "out"), *python(TELLS_OF_SIGNALS, "1"))
    with started(*arguments, on=simulated()) as process:
        assert first_line(process) == "ready\n"
        process.send_signal(number)
        assert first_line(process) == f"{number.name}\n"
        assert process.wait() == 5
    assert Report.load(tmp_path / "out").complete


def test_a_command_that_does_not_end_gets_every_signal_and_is_never_killed(tmp_path: Path) -> None:
    arguments = ("run", "--quiet", "-o", str(tmp_path / "out"), *python(TELLS_OF_SIGNALS, "3"))
    with started(*arguments) as process:
        assert first_line(process) == "ready\n"
        heard = Path(f"/proc/{child_of(process)}/status")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            signal.sigtimedwait([], 0.2)
            assert heard.exists()
        assert first_line(process) == "SIGTERM,SIGINT,SIGTERM\n"
        assert process.wait() == 5


def child_of(process: subprocess.Popen[str]) -> int:
    """Return the command's pid."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def test_ctrl_c_before_the_command_runs_is_not_lost(simulated: Simulated, tmp_path: Path) -> None:
    slow = simulated(faults=[Hang("nvmlDeviceGetName", 1.0)])
    arguments = [*COMMAND, "run", "--quiet", "-o", str(tmp_path / "out"), "--", "touch", str(tmp_path / "marker")]
    with at_terminal(arguments, surroundings(slow)) as terminal:
        status, interrupt = Path(f"/proc/{terminal.pid}/status"), 1 << (signal.SIGINT - 1)
        wait_until(lambda: signal_sets(status.read_text())["SigBlk"] & interrupt != 0)
        terminal.type("\x03")
        assert terminal.exit_code() == 128 + signal.SIGINT
    assert not (tmp_path / "marker").exists()
    assert Report.load(tmp_path / "out").complete


def test_ctrl_c_reaches_the_command_once_and_the_report_is_written(simulated: Simulated, tmp_path: Path) -> None:
    arguments = [*COMMAND, "run", "-o", str(tmp_path / "out"), *python(TELLS_WHO_INTERRUPTS)]
    with at_terminal(arguments, surroundings(simulated())) as terminal:
        terminal.wait_for("say: ")
        terminal.type("hello\n")  # the command reads the terminal
        terminal.wait_for("hello heard")
        terminal.type("\x03")
        assert terminal.exit_code() == 5
    assert "interrupted by [128]" in terminal.screen  # SI_KERNEL, sigaction(2): by the terminal, and by nobody else
    assert "the report is in" in terminal.screen
    assert Report.load(tmp_path / "out").complete


def test_json_is_the_last_line(tmp_path: Path) -> None:
    done = call("run", "--json", "-o", tmp_path / "out", "--", "sh", "-c", "echo noise >&2; exit 3")
    said = json.loads(done.stderr.splitlines()[-1])
    assert (said["folder"], said["exit_code"]) == (str(tmp_path / "out"), 3)
    assert said["report"] == Report.load(tmp_path / "out").header()


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for _ in range(3):
        assert call("run", "--quiet", "--", "/bin/true", cwd=tmp_path).returncode == 0
    folders = list((tmp_path / "energy-reports").iterdir())
    assert len(folders) == 3
    assert [folder.name for folder in folders if "-true" not in folder.name] == []


def test_a_folder_that_holds_a_report_is_not_overwritten(tmp_path: Path) -> None:
    first = call("run", "--quiet", "-o", tmp_path / "out", "--", "true")
    report = (tmp_path / "out" / "report.json").read_text()
    again = call("run", "-o", tmp_path / "out", "--", "touch", tmp_path / "marker")
    assert (first.returncode, again.returncode) == (0, 2)
    assert "holds a report already" in again.stderr
    assert not (tmp_path / "marker").exists()
    assert (tmp_path / "out" / "report.json").read_text() == report


def test_where_reports_would_go_to_a_link_to_nowhere_the_command_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "energy-reports").symlink_to("unmounted")
    done = call("run", "--", "touch", tmp_path / "marker", cwd=tmp_path)
    assert done.returncode == 125
    assert done.stderr.endswith("the command was not run\n")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("where", [["-o", "file/out"], []])
def test_where_no_report_can_be_written_the_command_is_not_run(tmp_path: Path, where: Sequence[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "energy-reports").touch()
    done = call("run", *where, "--", "touch", tmp_path / "marker", cwd=tmp_path)
    assert done.returncode == 125
    assert done.stderr.endswith("the command was not run\n")
    assert not (tmp_path / "marker").exists()


def test_what_cannot_be_measured_does_not_stop_the_command(simulated: Simulated, tmp_path: Path) -> None:
    done = call("run", "-o", tmp_path / "none", "--", "sh", "-c", "echo ran; exit 4")
    assert (done.returncode, done.stdout) == (4, "ran\n")
    assert "energy-plugins: cannot open the NVIDIA driver library" in done.stderr
    assert Report.load(tmp_path / "none").total_j is None
    lost = simulated(faults=[GpuLost(0.3)])
    assert (
        call("run", "--quiet", "-o", tmp_path / "lost", "--", "sh", "-c", "sleep 0.5; exit 4", on=lost).returncode == 4
    )


def test_a_reader_of_the_table_that_goes_away_changes_no_exit_code(tmp_path: Path) -> None:
    with started(
        "run", "-o", tmp_path / "out", "--", "sh", "-c", "echo begun; read line; exit 9", stdin=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert first_line(process) == "begun\n"
        process.stderr.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait() == 9
    assert Report.load(tmp_path / "out").complete
