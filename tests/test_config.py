"""One meaning from every source: a file, the environment, flags, code and HfArgumentParser; and clear errors."""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_plugins.config import (
    KEYS,
    OTHER_VARIABLES,
    VARIABLES,
    EnergyArguments,
    EnergyConfig,
    Key,
    MeasureConfig,
    MicroBatchConfig,
    PowerLimitConfig,
    ReportConfig,
    add_flags,
    effective,
    flags_of,
    to_environment,
)
from energy_plugins.config.schema import EFFECTIVE_BATCH, FILE_VARIABLE, KNOB, LEARNING_RATE_RULE, OBJECTIVE
from energy_plugins.config.values import (
    AT_LEAST_ONE,
    COUNT,
    DEVICES,
    NOT_NEGATIVE,
    PORT,
    POSITIVE,
    SHARE,
    TEXT,
    WHOLE,
    YES_NO,
    Kind,
    Value,
    as_text,
)
from energy_plugins.errors import ConfigError

ROOT = Path(__file__).parents[1]
ACTIVITY, EVERY, FOLDER = KEYS["measure.activity"], KEYS["measure.phases_every_n_steps"], KEYS["report.folder"]

LINE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(str.strip)
VALUES: Mapping[Kind, st.SearchStrategy[Value]] = {
    YES_NO: st.booleans(),
    COUNT: st.integers(0, 10**12),
    WHOLE: st.integers(1, 10**12),
    PORT: st.integers(1, 65_535),
    POSITIVE: st.floats(0, exclude_min=True, allow_infinity=False),
    NOT_NEGATIVE: st.floats(0, allow_infinity=False).map(abs),
    AT_LEAST_ONE: st.floats(1, allow_infinity=False),
    SHARE: st.floats(0, 1).map(abs),
    OBJECTIVE: st.sampled_from(["energy", "energy_delay", "zeus"]),
    KNOB: st.sampled_from(["limit", "clocks", "auto"]),
    EFFECTIVE_BATCH: st.sampled_from(["keep", "grow"]),
    LEARNING_RATE_RULE: st.sampled_from(["linear", "sqrt", "none"]),
    TEXT: LINE,
    DEVICES: st.lists(st.integers(0, 99) | st.from_regex(r"GPU-[0-9a-f]{1,8}", fullmatch=True), min_size=1).map(tuple),
}
SETTINGS = st.sampled_from(list(KEYS.values())).flatmap(lambda key: st.tuples(st.just(key), VALUES[key.kind]))
CONFIGS = st.fixed_dictionaries({}, optional={dotted: VALUES[key.kind] for dotted, key in KEYS.items()})


def written(folder: Path, values: Mapping[str, object]) -> Path:
    """Write a file that gives values by their dotted names."""
    sections: dict[str, dict[str, object]] = {}
    for dotted, value in values.items():
        section, _, name = dotted.partition(".")
        sections.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    path = folder / "energy.yaml"
    path.write_text(yaml.safe_dump(sections, allow_unicode=True), encoding="utf-8")
    return path


def flag(key: Key, value: Value) -> str:
    return f"{key.flag}={as_text(value)}"


def value_of(config: EnergyConfig, key: Key) -> Value | None:
    return {one.dotted: value for one, value in config.values()}[key.dotted]


@given(setting=SETTINGS)
@settings(max_examples=150)
def test_a_value_means_the_same_wherever_it_is_given(setting: tuple[Key, Value], tmp_path: Path) -> None:
    key, value = setting
    expected = effective(environ={}, arguments={key.dotted: value}).config
    assert value_of(expected, key) == value
    text = as_text(value)
    assert effective(written(tmp_path, {key.dotted: value}), {}).config == expected
    assert effective(environ={key.variable: text}).config == expected
    assert effective(environ={}, flags=[flag(key, value)]).config == expected
    assert effective(environ={}, flags=[f"--{key.argument}={text}"]).config == expected
    if not text.startswith("--"):
        assert effective(environ={}, flags=[key.flag, text]).config == expected
    in_code: dict[str, Any] = {key.argument: value}
    assert EnergyArguments(**in_code).config({}) == expected


@given(given_to=st.dictionaries(st.sampled_from(["file", "environment", "flag", "argument"]), st.integers(0, 99)))
def test_the_strongest_source_counts_and_is_named(given_to: Mapping[str, int], tmp_path: Path) -> None:
    path = written(tmp_path, {EVERY.dotted: given_to["file"]} if "file" in given_to else {})
    found = effective(
        path,
        {EVERY.variable: str(given_to["environment"])} if "environment" in given_to else {},
        [EVERY.flag, str(given_to["flag"])] if "flag" in given_to else [],
        arguments={EVERY.dotted: given_to.get("argument")},
    )
    strongest = next((name for name in ("argument", "flag", "environment", "file") if name in given_to), "default")
    assert found.config.measure.phases_every_n_steps == given_to.get(strongest, 50)
    origins = {
        "argument": f"argument {EVERY.dotted}",
        "flag": f"flag {EVERY.flag}",
        "environment": f"environment {EVERY.variable}",
        "file": f"{path} line 2",
        "default": "default",
    }
    assert found.origins == {**dict.fromkeys(KEYS, "default"), EVERY.dotted: origins[strongest]}


@given(file=CONFIGS, variables=CONFIGS, flags=CONFIGS)
def test_a_child_process_gets_the_same_configuration(
    file: Mapping[str, Value], variables: Mapping[str, Value], flags: Mapping[str, Value], tmp_path: Path
) -> None:
    environ = {KEYS[dotted].variable: as_text(value) for dotted, value in variables.items()}
    environ[FILE_VARIABLE] = str(written(tmp_path, file))
    config = effective(environ=environ, flags=[flag(KEYS[dotted], value) for dotted, value in flags.items()]).config
    assert effective(environ={**environ, **to_environment(config)}).config == config
    assert effective(environ=to_environment(config)).config == config


@pytest.mark.parametrize("text", ["true", "True", "YES", "on", "t", "y", "1", " true "])
def test_many_words_are_true(text: str) -> None:
    assert effective(environ={ACTIVITY.variable: text}).config.measure.activity


@pytest.mark.parametrize("text", ["false", "No", "OFF", "f", "n", "0"])
def test_many_words_are_false(text: str, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(f"report: {{log: {text}, table: '{text}'}}")
    assert effective(tmp_path / "e.yaml", {}).config.report == ReportConfig(log=False, table=False)


def test_a_micro_batch_is_asked_for_as_a_limit_is(tmp_path: Path) -> None:
    for text in ("micro_batch:", "micro_batch: {}", "micro_batch: {search_share: 0.05}"):
        (tmp_path / "e.yaml").write_text(text)
        assert effective(tmp_path / "e.yaml", {}).config == EnergyConfig(micro_batch=MicroBatchConfig(enabled=True))
    assert effective(environ={"ENERGY_MICRO_BATCH_SIZE": "8"}).config.micro_batch == MicroBatchConfig(
        enabled=True, size=8
    )
    (tmp_path / "e.yaml").write_text("micro_batch: {size: 4}")
    assert effective(tmp_path / "e.yaml", {}).config.micro_batch == MicroBatchConfig(enabled=True, size=4)
    (tmp_path / "e.yaml").write_text("micro_batch: {enabled: no, size: 8}")
    assert effective(tmp_path / "e.yaml", {}).config.micro_batch == MicroBatchConfig(size=8)


class TestAskingForALimit:
    """The section, or any value in it, asks for a limit; nothing else does."""

    @pytest.mark.parametrize("text", ["power_limit:", "power_limit: {}", "power_limit: {max_slowdown: 0.03}"])
    def test_a_file_asks(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text(text)
        found = effective(tmp_path / "e.yaml", {})
        assert found.config.power_limit == PowerLimitConfig(enabled=True)
        assert found.origins["power_limit.enabled"] == f"{tmp_path / 'e.yaml'} line 1"

    def test_every_source_asks(self) -> None:
        assert effective(environ={"ENERGY_POWER_LIMIT_FIXED": "450"}).config.power_limit.enabled
        assert effective(environ={}, flags=["--energy-power-limit-max-slowdown", "0"]).config.power_limit.enabled
        assert effective(environ={}, arguments={"power_limit.knob": "auto"}).config.power_limit.enabled
        assert EnergyArguments(energy_power_limit_eta=0.7).config({}).power_limit.enabled

    def test_nothing_else_does(self) -> None:
        assert not effective(environ={"ENERGY_MEASURE_ACTIVITY": "1"}).config.power_limit.enabled
        assert not effective(environ={}, arguments={"power_limit.fixed": None}).config.power_limit.enabled

    def test_saying_no_counts(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text("power_limit: {fixed: 450}")
        off = {"ENERGY_POWER_LIMIT_ENABLED": "false"}
        assert effective(tmp_path / "e.yaml", off).config.power_limit == PowerLimitConfig(fixed=450)
        (tmp_path / "e.yaml").write_text("power_limit: {enabled: false, fixed: 450}")
        assert not effective(tmp_path / "e.yaml", {}).config.power_limit.enabled


def test_which_file_is_read(tmp_path: Path) -> None:
    paths = []
    for name in ("variable", "flag", "argument"):
        (tmp_path / name).mkdir()
        paths.append(written(tmp_path / name, {"report.name": name}))
    environ = {FILE_VARIABLE: str(paths[0])}
    flags = ["--energy-config", str(paths[1])]
    assert effective(environ=environ).config.report.name == "variable"
    assert effective(environ=environ, flags=flags).config.report.name == "flag"
    assert effective(paths[2], environ, flags).config.report.name == "argument"
    assert effective(environ={FILE_VARIABLE: ""}).config == EnergyConfig()


def test_a_section_of_another_programs_file(tmp_path: Path) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text("num_processes: 2\nenergy_config:\n  measure:\n    activity: true\nfsdp_config: {a: [1, {b: c}]}\n")
    found = effective(path, {}, section="energy_config")
    assert found.config == EnergyConfig(measure=MeasureConfig(activity=True))
    assert found.origins["measure.activity"] == f"{path} line 4"
    other = written(tmp_path, {"report.name": "other"})
    path.write_text("num_processes: 2\n")
    assert effective(path, {FILE_VARIABLE: str(other)}, section="energy_config").config.report.name == "other"
    path.write_text("energy_config:\n")
    assert effective(path, {FILE_VARIABLE: str(other)}, section="energy_config").config == EnergyConfig()


@pytest.mark.parametrize(
    "content", ["", "# nothing\n", "{}", "measure:\nreport: {}\n", "\ufeffmeasure: {devices: null}"]
)
def test_a_file_may_give_nothing(content: str, tmp_path: Path) -> None:
    path = tmp_path / "energy.yaml"
    path.write_text(content, encoding="utf-8")
    assert effective(path, {}).config == EnergyConfig()


def test_values_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "energy.yaml"
    path.write_text(
        "x: &gpus [0, GPU-1]\n".replace("x: ", "measure:\n  devices: ") + "report: {name: 1.10, folder: no}\n"
    )
    config = effective(path, {}).config
    assert config.measure.devices == (0, "GPU-1")
    assert (config.report.name, config.report.folder) == ("1.10", "no")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))

HOSTILE = [
    (
        "misspelt key",
        b"measure:\n  activty: true\n",
        2,
        "'measure.activty' is not known; the nearest that is: measure.activity",
    ),
    ("misspelt section", b"\nmesure: {}\n", 2, "'mesure' is not known; the nearest that is: measure"),
    ("key without its section", b"activity: true\n", 1, "the nearest that is: measure.activity"),
    ("key of another section", b"report:\n  devices: 0\n", 2, "the nearest that is: "),
    ("no mapping", b"- measure\n", 1, "the file is a list; expected keys with values"),
    ("only a word", b"measure\n", 1, "the file is 'measure'; expected keys with values"),
    ("section without keys", b"measure: true\n", 1, "measure is 'true'; expected keys with values"),
    (
        "value of the wrong type",
        b"measure:\n  activity: maybe\n",
        2,
        "measure.activity is 'maybe'; expected true or false",
    ),
    ("value that is empty", b"measure:\n  activity:\n", 2, "measure.activity is empty; expected true or false"),
    ("a list for one", b"measure:\n  activity: [true]\n", 2, "measure.activity is ['true']; expected true or false"),
    ("a mapping", b"report:\n  name:\n    a: b\n", 3, "report.name is keys with values; expected one line"),
    ("a list in a list", b"measure: {devices: [[0]]}", 1, "measure.devices is a list; expected CUDA ordinals"),
    ("no GPU", b"measure: {devices: []}", 1, "measure.devices is []; expected CUDA ordinals"),
    ("below the range", b"\n\nmeasure: {phases_every_n_steps: -1}", 3, "is '-1'; expected a whole number, 0 or more"),
    ("a fraction", b"measure: {phases_every_n_steps: 0.5}", 1, "is '0.5'; expected a whole number"),
    ("not finite", b"measure: {energy_budget_kwh: nan}", 1, "is 'nan'; expected a positive number"),
    ("nothing to spend", b"measure: {energy_budget_kwh: 0}", 1, "is '0'; expected a positive number"),
    ("several lines", b'report: {name: "a\\nb"}', 1, "expected one line of text"),
    ("a long value", b"measure: {activity: " + b"x" * 9999 + b"}", 1, "..."),
    (
        "twice the same key",
        b"report:\n  log: true\n  table: true\n  log: false\n",
        4,
        "log stands there twice, first in line 2",
    ),
    (
        "twice the same section",
        b"report: {}\nmeasure: {}\nreport: {}\n",
        3,
        "report stands there twice, first in line 1",
    ),
    ("a merge", b"report: &r {log: true}\nmeasure:\n  <<: *r\n", 3, "'measure.<<' is not known"),
    ("a key that is a list", b"? [a]\n: b\n", 1, "a key is a list; expected a word"),
    ("an object", b"report:\n  name: !!python/object/apply:os.system [touch x]\n", 2, "expected one line of text"),
    ("a tag", b"report:\n  name: !secret x\n", 2, "report.name is !secret 'x'; expected one line of text"),
    ("an unknown alias", b"report:\n  name: *x\n", 2, "undefined alias"),
    ("an alias bomb", BOMB.encode() + b"report:\n  name: *a59\n", 1, "'a0' is not known"),
    ("an alias bomb as a value", b"report:\n  name: &a [*a, *a]\n", 2, "report.name is a list"),
    ("two documents", b"report: {}\n---\nreport: {}\n", 2, "expected YAML"),
    ("broken", b"report:\n  name: [1\n", 3, "expected YAML"),
    ("a tab", b"report:\n\tname: x\n", 2, "expected YAML"),
    ("a control character", b"report:\n  name: \x01\n", 2, "expected YAML"),
    ("latin-1", "report:\n  name: Größe\n".encode("latin-1"), 2, "0xf6 is not UTF-8"),
    ("utf-16", "report: {}\n".encode("utf-16"), 1, "0xff is not UTF-8"),
    (
        "no sample at once",
        b"micro_batch: {size: 0}\n",
        1,
        "micro_batch.size is '0'; expected a whole number, 1 or more",
    ),
    ("of power", b"\npower_limit:\n  watts: 300\n", 3, "the key 'power_limit.watts' is not known; the nearest that is"),
]


@pytest.mark.parametrize(("content", "line", "said"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_wrong_file_is_an_error_with_its_line(content: bytes, line: int, said: str, tmp_path: Path) -> None:
    path = tmp_path / "energy.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        effective(path, {})
    message = str(caught.value)
    assert message.startswith(f"{path} line {line}: ")
    assert said in message
    assert len(message.removeprefix(str(path))) < 250
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 20_000, "nested too deeply"),
        (b'"\\UFFFFFFFF"', "expected YAML"),
        (b"%YAML 1." + b"9" * 5000 + b"\n---\n", "expected YAML"),
        (b"#" * 300_000, "larger than 256 KiB"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_none_is_an_error_with_its_name(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "energy.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}.*{said}"):
        effective(environ={FILE_VARIABLE: str(path)})


def test_a_folder_and_an_impossible_name_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"):
            effective(path, {})


@given(
    content=st.binary(max_size=60) | st.text(st.sampled_from(" \n:-[]{}&*!|>'\"%@a?,#"), max_size=40).map(str.encode)
)
@settings(max_examples=300)
def test_no_file_raises_anything_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "energy.yaml"
    path.write_bytes(content)
    with suppress(ConfigError):
        effective(path, {})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"ENERGY_MEASURE_ACTIVTY": "1"},
            "'ENERGY_MEASURE_ACTIVTY' is not known; the nearest that is: ENERGY_MEASURE_ACTIVITY",
        ),
        ({"ENERGY_CONFG": ""}, "the nearest that is: ENERGY_CONFIG"),
        (
            {"ENERGY_MEASURE_ACTIVITY": "maybe"},
            "environment ENERGY_MEASURE_ACTIVITY: measure.activity is 'maybe'; expected true",
        ),
        ({"ENERGY_MEASURE_DEVICES": "0,,1"}, "is '0,,1'; expected CUDA ordinals or UUIDs"),
        ({"ENERGY_MEASURE_DEVICES": "-1"}, "is '-1'; expected CUDA ordinals or UUIDs"),
        ({"ENERGY_MEASURE_DEVICES": "cuda:0"}, "is 'cuda:0'; expected CUDA ordinals or UUIDs"),
        ({"ENERGY_POWER_LIMIT_WATTS": "300"}, "environment: the variable 'ENERGY_POWER_LIMIT_WATTS' is not known"),
        ({"ENERGY_MICRO_BATCH_SIZ": "8"}, "'ENERGY_MICRO_BATCH_SIZ' is not known; the nearest that is"),
    ],
)
def test_a_wrong_variable_is_an_error_with_its_name(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        effective(environ=environ)
    assert said in str(caught.value)


def test_variables_of_others_and_empty_ones_are_passed_over() -> None:
    environ = {"PATH": "/bin", "ENERGY": "1", **dict.fromkeys(OTHER_VARIABLES, "x"), **dict.fromkeys(VARIABLES, "")}
    assert effective(environ=environ).config == EnergyConfig()


def test_the_packages_other_variables_are_known() -> None:
    sources = [*(ROOT / "energy_plugins").rglob("*.py"), *(ROOT / "csrc").rglob("*.?pp")]
    read = {name for path in sources for name in re.findall(r'"(ENERGY_[A-Z_]+)"', path.read_text(encoding="utf-8"))}
    assert read - {FILE_VARIABLE, *VARIABLES} == OTHER_VARIABLES


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--energy-measure-activty", "1"],
            "'--energy-measure-activty' is not known; the nearest that is: --energy-measure-activity",
        ),
        (["--energy-measure-activity"], "flag --energy-measure-activity: its value is missing; expected true or false"),
        (["--energy-report-log", "--energy-report-table=1"], "flag --energy-report-log: its value is missing"),
        (["--energy-config"], "flag --energy-config: its value is missing; expected a YAML file"),
        (["--energy_report_log", "2"], "report.log is '2'; expected true or false"),
        (["--energy-micro-batch=300"], "flags: '--energy-micro-batch' is not known; the nearest that is"),
        (["train.py"], "'train.py' is not known"),
    ],
)
def test_a_wrong_flag_is_an_error_with_its_name(flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        effective(environ={}, flags=flags)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"measure.activity": 2}, "argument measure.activity: measure.activity is 2; expected true or false"),
        ({"measure.phases_every_n_steps": True}, "is True; expected a whole number"),
        ({"measure.energy_budget_kwh": True}, "is True; expected a positive number"),
        ({"measure.energy_budget_kwh": 10**400}, "expected a positive number"),
        ({"measure.devices": [0, True]}, "expected CUDA ordinals"),
        ({"report.name": 7}, "expected one line of text"),
        ({"report.name": "\ud83d"}, "expected one line of text"),
        ({"report.nam": "x"}, "the nearest that is: report.name"),
    ],
)
def test_a_wrong_argument_is_an_error(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        effective(environ={}, arguments=arguments)
    assert said in str(caught.value)


def test_a_configuration_made_in_code_is_checked_and_frozen() -> None:
    config = EnergyConfig(measure=MeasureConfig(devices=[0, "GPU-1"], energy_budget_kwh=1))  # type: ignore[arg-type]
    assert config.measure.devices == (0, "GPU-1")
    assert hash(config) == hash(copy.deepcopy(config))
    with pytest.raises(ConfigError, match=r"MeasureConfig: phases_every_n_steps is -1; expected a whole number"):
        MeasureConfig(phases_every_n_steps=-1)
    with pytest.raises(AttributeError):
        config.measure.activity = True  # type: ignore[misc]


# argparse and transformers.


def test_flags_of_an_argument_parser() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    parsed = parser.parse_args(["--energy_measure_activity", "1", "--energy-report-name=x", "train.py", "--lr", "1"])
    assert flags_of(parsed) == ("--energy-measure-activity=1", "--energy-report-name=x")
    assert parsed.rest == ["train.py", "--lr", "1"]
    assert all(key.help.split()[0] in parser.format_help() for key in KEYS.values())


@pytest.fixture(scope="module")
def hf_parser() -> Any:
    import transformers

    parser: Any = transformers.HfArgumentParser
    return parser(EnergyArguments)


def test_every_key_is_an_argument_of_transformers(hf_parser: Any, tmp_path: Path) -> None:
    samples: dict[Kind, Value] = {YES_NO: False, COUNT: 7, POSITIVE: 1.5, TEXT: "a b", DEVICES: (0, "GPU-1")}
    samples |= {NOT_NEGATIVE: 0.5, AT_LEAST_ONE: 1.5, SHARE: 0.25, OBJECTIVE: "zeus", KNOB: "auto"}
    samples |= {WHOLE: 4, EFFECTIVE_BATCH: "grow", LEARNING_RATE_RULE: "sqrt"}
    samples |= {PORT: 9750, NOT_NEGATIVE: 0.5, SHARE: 0.25, OBJECTIVE: "zeus", KNOB: "auto"}
    values = {dotted: samples[key.kind] for dotted, key in KEYS.items()}
    expected = effective(environ={}, arguments=values).config
    words = [word for dotted, value in values.items() for word in (KEYS[dotted].flag, as_text(value))]
    (by_flags,) = hf_parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    assert by_flags.config({}) == expected
    assert set(by_flags.effective({}).origins.values()) == {f"flag {key.flag}" for key in KEYS.values()}
    flat = {
        KEYS[dotted].argument: list(value) if isinstance(value, tuple) else value for dotted, value in values.items()
    }
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(flat))
    (tmp_path / "training.json").write_text(json.dumps(flat))
    (by_yaml,) = hf_parser.parse_yaml_file(tmp_path / "training.yaml")
    (by_json,) = hf_parser.parse_json_file(tmp_path / "training.json")
    assert by_yaml.config({}) == by_json.config({}) == expected
    assert pickle.loads(pickle.dumps(by_flags)).effective({}) == by_flags.effective({})  # noqa: S301 - our own
    help_text = " ".join(hf_parser.format_help().split())
    assert [dotted for dotted, key in KEYS.items() if key.help not in help_text] == []


def test_in_transformers_flags_beat_the_environment_and_that_beats_a_file(hf_parser: Any, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(
        json.dumps({EVERY.argument: 1, "energy_config": str(tmp_path / "energy.yaml")})
    )
    written(tmp_path, {EVERY.dotted: 0, FOLDER.dotted: "of the file"})
    (by_json,) = hf_parser.parse_json_file(tmp_path / "training.json")
    (by_flag,) = hf_parser.parse_args_into_dataclasses([EVERY.flag, "3"], look_for_args_file=False)
    environ = {EVERY.variable: "2"}
    assert by_flag.config(environ).measure.phases_every_n_steps == 3
    assert by_json.config(environ).measure.phases_every_n_steps == 2
    assert by_json.config({}).measure.phases_every_n_steps == 1
    assert by_json.config({}).report.folder == "of the file"
    assert by_json.effective({}).origins[EVERY.dotted] == f"argument {EVERY.argument}"


def test_in_transformers_a_wrong_value_is_an_error_with_its_name(hf_parser: Any) -> None:
    (by_flag,) = hf_parser.parse_args_into_dataclasses([EVERY.flag, "-3"], look_for_args_file=False)
    with pytest.raises(ConfigError, match=f"flag {EVERY.flag}: {EVERY.dotted} is -3; expected a whole number"):
        by_flag.config({})
    with pytest.raises(ConfigError, match=f"argument {ACTIVITY.argument}: {ACTIVITY.dotted} is 'maybe'"):
        EnergyArguments(energy_measure_activity="maybe").config({})  # type: ignore[arg-type]


# Documents, and the cost of importing.


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.dotted)
def test_every_key_has_help_and_a_row_in_the_documents(key: Key) -> None:
    assert re.fullmatch(r"[A-Z].+\.", key.help)
    assert "%" not in key.help, "argparse would take it for a format"
    default = "" if key.default is None else f"`{as_text(key.default)}`"
    row = f"| `{key.dotted}` | {default} | {key.kind.expected} | {key.help} |"
    assert row in (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


def test_importing_it_is_light() -> None:
    program = (
        "import sys, energy_plugins.config; print({'yaml', 'numpy', 'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["ENERGY_STAR_RATING", "ENERGY_MARKET", "ENERGYLABEL"])
def test_variables_of_other_programs_are_none_of_our_business(name: str) -> None:
    assert effective(environ={name: "whatever"}) == effective(environ={})


@pytest.mark.parametrize("name", ["ENERGY_MEASURE_POWER", "ENERGY_REPORT_X", "ENERGY_MESURE_ACTIVITY", "ENERGY_CONFG"])
def test_misspelt_variables_of_ours_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*nearest"):
        effective(environ={name: "1"})
