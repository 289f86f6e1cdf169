"""`energy-plugins compare`: folders held against each other, and commands run in turn."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from commands import Simulated, call, started
from reporting import make_report

from energy_plugins.measure.report import Report
from energy_plugins.testing import Constant


def python(program: str) -> str:
    return f"{sys.executable} -c '{program}'"


class TestRunner:
    def test_interleaves_measures_and_compares(self, simulated: Simulated, tmp_path: Path) -> None:
        simulation = simulated(Constant(300))
        done = call(
            *("compare", "--json", "--repeats", "2", "-o", tmp_path / "out", "--html", tmp_path / "page.html"),
            *("--run", python('import time; time.sleep(0.3); print("said", "by", "a")')),
            *("--run", python("import time; time.sleep(0.6)")),
            on=simulation,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["simulated"], found["unit"]) == (True, "run")
        assert [len(side["runs"]) for side in found["sides"]] == [2, 2]
        assert [side["label"] for side in found["sides"]] == ["A", "B"]
        energy, took, _ = found["differences"]
        assert energy["corrected_for"][0] == "round"
        assert energy["difference"] > 0.3
        assert took["difference"] > 0.3
        assert done.stderr.count("said by a") == 2
        assert "round 2 of 2, run 4 of 4, about " in done.stderr
        assert "SIMULATED" in (tmp_path / "page.html").read_text()
        reports = {path.parent: Report.load(path) for path in (tmp_path / "out").rglob("report.json")}
        assert {path.relative_to(tmp_path / "out").as_posix() for path in reports} == {
            *("A/round-1", "A/round-2", "B/round-1", "B/round-2"),
        }
        by_start = sorted(reports.values(), key=lambda report: report.started)
        rounds = [report.config["interleaved"]["round"] for report in by_start]  # type: ignore[index, call-overload]
        assert rounds == [1, 1, 2, 2]
        again = call("compare", tmp_path / "out" / "A", tmp_path / "out" / "B", "--json")
        assert json.loads(again.stdout)["differences"] == found["differences"]

    def test_a_command_that_fails_ends_it_and_keeps_what_there_is(self, tmp_path: Path) -> None:
        fails = python("raise SystemExit(3)")
        done = call("compare", "-o", tmp_path / "out", "--run", fails, "--run", fails)
        assert done.returncode == 1
        assert "ended with exit code 3 in round 1" in done.stderr
        assert len(list((tmp_path / "out").rglob("report.json"))) == 1
        assert "Traceback" not in done.stderr

    def test_without_a_gpu_it_ends_with_the_first_run(self, tmp_path: Path) -> None:
        done = call("compare", "-o", tmp_path / "out", "--run", "true", "--run", "true")
        assert (done.returncode, done.stdout) == (1, "")
        assert "was run, but its energy was not measured: cannot open the NVIDIA driver library" in done.stderr
        assert done.stderr.count("round 1 of 5") == 1

    def test_a_signal_reaches_the_command_and_ends_it(self, tmp_path: Path) -> None:
        sleeps = python('import time; print("read" + "y", flush=True); time.sleep(30)')
        with started("compare", "-o", tmp_path / "out", "--run", sleeps, "--run", sleeps) as process:
            assert process.stderr is not None
            while "ready" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
        (report,) = (tmp_path / "out").rglob("report.json")
        assert Report.load(report).complete

    def test_a_command_that_is_not_there_is_found_before_any_is_run(self, tmp_path: Path) -> None:
        touched = tmp_path / "touched"
        done = call("compare", "-o", tmp_path / "out", "--run", f"touch {touched}", "--run", "no-such-program")
        assert done.returncode == 1
        assert "no-such-program: command not found" in done.stderr
        assert not touched.exists()


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "two folders at least"),
            (["x"], "two folders at least"),
            (["x", "y", "--repeats", "3"], "about --run"),
            (["--run", "true"], "given 1 times"),
            (["--run", "true", "--run", ""], "empty"),
            (["--run", "true", "--run", "echo 'x"], "cannot be split"),
            (["x", "--run", "true", "--run", "true"], "not both"),
            (["--run", "true", "--run", "true", "--repeats", "0"], "0"),
            (["x", "y", "--unit", "epoch"], "epoch"),
            (["--run", "true", "--run", "true", "--unit", "token"], "leave --unit out"),
            (["-o", __file__, "--run", "true", "--run", "true"], "is a file"),
        ],
    )
    def test_wrong_use(self, arguments: list[str], said: str) -> None:
        done = call("compare", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr

    def test_a_reference_without_reports(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            make_report().save(tmp_path / name)
        done = call("compare", tmp_path / "a", tmp_path / "b", "--reference", tmp_path / "nowhere")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"cannot read {tmp_path / 'nowhere'}" in done.stderr

    def test_folders_without_reports(self, tmp_path: Path) -> None:
        done = call("compare", tmp_path, tmp_path / "nowhere")
        assert (done.returncode, done.stdout) == (1, "")
        assert "holds no report.json" in done.stderr

    def test_a_folder_that_is_in_use(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = call("compare", "-o", tmp_path, "--run", "true", "--run", "true")
        assert done.returncode == 2
        assert "not empty" in done.stderr

    def test_a_page_that_cannot_be_written_costs_no_comparison(self, simulated: Simulated, tmp_path: Path) -> None:
        done = call(
            *("compare", "-o", tmp_path / "out", "--repeats", "1", "--html", tmp_path / "none" / "page.html"),
            *("--run", "sleep 0.2", "--run", "sleep 0.2"),
            on=simulated(Constant(300)),
        )
        assert done.returncode == 1
        assert "against A" in done.stdout
        assert "cannot write" in done.stderr
