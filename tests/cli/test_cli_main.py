"""The command itself: its help teaches, its errors are sentences, and it is there under both names."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from commands import COMMAND, call

from energy_plugins import __version__

ROOT = Path(__file__).parents[2]
VERBS = ("doctor", "run", "report", "watch", "ledger", "sweep", "config", "hierarchy", "demo")


def test_help_names_every_verb_and_where_to_begin() -> None:
    done = call("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert [verb for verb in VERBS if f"  {verb}  " not in done.stdout] == []
    assert "energy-plugins doctor" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example_and_exit_codes(verb: str) -> None:
    done = call(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Example" in done.stdout
    assert f"energy-plugins {verb}" in done.stdout
    assert "Exit codes:" in done.stdout


def test_help_imports_no_verb() -> None:
    program = (
        "import sys; from energy_plugins.cli.main import cli; cli.main(['--help'], standalone_mode=False); "
        "sys.exit(bool({'numpy', 'pynvml', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure"],
        ["doctor", "--jason"],
        ["doctor", "--timeout", "nan"],
        ["run"],
        ["report"],
        ["watch", "--interval", "0"],
        ["watch", "--interval", "inf"],
    ],
)
def test_wrong_use_is_a_sentence_and_code_2(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_version() -> None:
    assert call("--version").stdout == f"energy-plugins, version {__version__}\n"


def test_the_installed_script_calls_what_the_module_calls() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["energy-plugins"].partition(":")
    assert getattr(import_module(module), name) is import_module("energy_plugins.__main__").main


@pytest.mark.parametrize("package", ["torch", "lightning.pytorch"])
def test_the_demo_says_what_it_lacks(package: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from energy_plugins.cli.main import main; main(['demo'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"Error: the demo needs {package.partition('.')[0]}, which is not installed: pip install"
    )
    assert len(done.stderr.splitlines()) == 1


def test_a_demo_that_has_nowhere_to_write_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call("demo", "--quick", "--folder", tmp_path / "file" / "folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: cannot make {tmp_path}/file/folder: Not a directory; name a folder with --folder\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
