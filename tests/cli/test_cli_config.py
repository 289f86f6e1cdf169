"""`energy-plugins config`: what counts, where it came from, and one sentence about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call

from energy_plugins.config import KEYS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "energy.yaml"
    path.write_text("measure:\n  activity: true\n  devices: [0, 1]\nreport: {name: file, log: false}\n")
    return path


VARIABLES = {"ENERGY_REPORT_NAME": "environment", "ENERGY_REPORT_LOG": "no"}
FLAGS = ("--energy-report-name", "flag")


def test_shows_every_value_and_its_origin(file: Path) -> None:
    done = call("config", "--energy-config", file, *FLAGS, variables=VARIABLES)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {key: (value, " ".join(origin)) for key, value, *origin in map(str.split, done.stdout.splitlines())}
    assert list(rows) == list(KEYS)
    assert rows["measure.activity"] == ("true", f"{file} line 2")
    assert rows["measure.devices"] == ("0,1", f"{file} line 3")
    assert rows["report.name"] == ("flag", "flag --energy-report-name")
    assert rows["report.log"] == ("false", "environment ENERGY_REPORT_LOG")
    assert rows["report.table"] == ("true", "default")
    assert rows["report.folder"] == ("-", "default")


def test_shows_the_same_as_json(file: Path) -> None:
    found = json.loads(call("config", "--json", *FLAGS, variables={**VARIABLES, "ENERGY_CONFIG": str(file)}).stdout)
    assert found["config"]["measure"]["devices"] == [0, 1]
    assert found["config"]["report"]["name"] == "flag"
    assert found["config"]["report"]["folder"] is None
    assert list(found["origins"]) == list(KEYS)
    assert found["origins"]["measure.activity"] == f"{file} line 2"


def test_help_explains_every_key() -> None:
    text = " ".join(call("config", "--help").stdout.split())
    assert [key.dotted for key in KEYS.values() if key.flag not in text or key.help.split(";")[0] not in text] == []


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (
            ["--energy-report-nam", "x"],
            {},
            "'--energy-report-nam' is not known; the nearest that is: --energy-report-name",
        ),
        (["--energy_report_log=2"], {}, "flag --energy-report-log: report.log is '2'; expected true or false"),
        (["--energy-micro-batch-size", "0"], {}, "micro_batch.size is '0'; expected a whole number, 1 or more"),
        (["--energy-config", "/nonexistent.yaml"], {}, "/nonexistent.yaml: cannot be read: No such file or directory"),
        (["word"], {}, "'word' is not known"),
        ([], {"ENERGY_MEASURE_ACTIVITY": "maybe"}, "environment ENERGY_MEASURE_ACTIVITY: measure.activity is 'maybe'"),
        ([], {"ENERGY_MESURE_ACTIVITY": "1"}, "the nearest that is: ENERGY_MEASURE_ACTIVITY"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_code_2(arguments: list[str], variables: dict[str, str], said: str) -> None:
    done = call("config", *arguments, variables=variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
