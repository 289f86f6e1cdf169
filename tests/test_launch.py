"""`energy_plugins.run` and `energy-launch`: unchanged programs are measured, once, and notice nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from energy_plugins.lightning import EnergyMonitor
from energy_plugins.lightning_factory import callbacks
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report
from energy_plugins.run.imports import Imports
from energy_plugins.testing import Simulation

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0
Simulated = Callable[..., Simulation]

LOOP = """
    import sys
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    def main():
        accelerator = Accelerator(cpu=True, project_dir=sys.argv[1])
        layer = torch.nn.Linear(4, 1)
        model, optimizer, loader = accelerator.prepare(
            layer, torch.optim.SGD(layer.parameters(), lr=1e-6), DataLoader(torch.ones(24, 4), batch_size=4)
        )
        for batch in loader:
            accelerator.backward(model(batch).sum())
            optimizer.step()
            optimizer.zero_grad()
        print(f"rank {accelerator.process_index} of {accelerator.num_processes} is done", flush=True)
        accelerator.end_training()

    if __name__ == "__main__":
        main()
"""

ATTACHES = """
    import sys
    import torch
    from accelerate import Accelerator
    from energy_plugins.accelerate import attach

    accelerator = Accelerator(cpu=True, project_dir=sys.argv[1])
    layer = torch.nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=1e-6))
    with attach(accelerator, name="mine"):
        accelerator.backward(model(torch.ones(4)).sum())
        optimizer.step()
"""

TRAINER = """
    import sys
    import torch
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x):
            return {"loss": self.layer(x).square().mean()}

    rows = [{"x": torch.ones(4)} for _ in range(24)]
    arguments = TrainingArguments(
        sys.argv[1], use_cpu=True, per_device_train_batch_size=4, num_train_epochs=1, save_strategy="no",
        disable_tqdm=True, report_to="none",
    )
    callbacks = []
    if "--explicit" in sys.argv:
        from energy_plugins.transformers import EnergyCallback
        callbacks = [EnergyCallback(name="mine")]
    Trainer(Model(), arguments, train_dataset=rows, callbacks=callbacks).train()
"""

LIGHTNING = """
    import sys
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    callbacks = []
    if "--explicit" in sys.argv:
        from energy_plugins.lightning import EnergyMonitor
        callbacks = [EnergyMonitor(name="mine")]
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=sys.argv[1], callbacks=callbacks,
    )
    trainer.fit(Model(), DataLoader(torch.ones(24, 4), batch_size=4))
"""

PLAIN = """
    import multiprocessing
    import os
    import sys
    from neighbour import WORD  # beside this file

    def work(number):
        return number * number

    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            squares = pool.map(work, [1, 2, 3])
        print(WORD, squares, sys.argv, __file__, __name__, flush=True)
        if "fail" in sys.argv:
            raise ValueError("planned")
        sys.exit(int(sys.argv[1]))
"""

PROGRAMS = {
    "loop.py": LOOP,
    "attaches.py": ATTACHES,
    "trainer.py": TRAINER,
    "lit.py": LIGHTNING,
    "plain.py": PLAIN,
    "neighbour.py": 'WORD = "found"',
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for name, text in PROGRAMS.items():
        (folder / name).write_text(dedent(text))
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that makes the package look installed, entry points and all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    folder = tmp_path_factory.mktemp("site")
    info = folder / "energy_plugins-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: energy-plugins\nVersion: 0\n")
    lines = [
        line for name, points in groups.items() for line in (f"[{name}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(simulated: Simulated, programs: Path, installed: Path, tmp_path: Path) -> Start:
    """Run a command on simulated GPUs, in an empty folder."""

    def run(*words: str | Path, gpus: int = 1, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **simulated(count=gpus).environment(),
            "PYTHONPATH": os.pathsep.join((str(installed), str(ROOT), str(programs))),
            "HF_HOME": str(tmp_path / "hf"),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    return run


RUN = ("-m", "energy_plugins.run")
LAUNCH = ("-m", "energy_plugins.cli.launch")
"""As the console script."""


def reports(folder: Path) -> dict[str, Report]:
    return {str(path.parent.relative_to(folder)): Report.load(path.parent) for path in folder.rglob("report.json")}


def only(folder: Path) -> Report:
    (report,) = reports(folder).values()
    return report


class TestRun:
    @pytest.mark.slow
    @pytest.mark.parametrize("script", ["loop.py", "trainer.py", "lit.py"])
    def test_every_framework_is_measured_once(self, start: Start, programs: Path, tmp_path: Path, script: str) -> None:
        ended = start(*RUN, programs / script, tmp_path / "out", ENERGY_REPORT_NAME="mine")
        assert ended.returncode == 0, ended.stderr
        (found,) = reports(tmp_path).items()
        assert found[0] == "out/energy/mine-1"
        assert found[1].steps.rows == 6
        assert found[1].work.samples == 24
        assert ended.stdout.count("Report: ") == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("script", "more"), [("attaches.py", ()), ("trainer.py", ("--explicit",)), ("lit.py", ("--explicit",))]
    )
    def test_who_measures_himself_is_left_alone(
        self, start: Start, programs: Path, tmp_path: Path, script: str, more: Sequence[str]
    ) -> None:
        ended = start(*RUN, "--energy-report-table", "false", programs / script, tmp_path / "out", *more)
        assert ended.returncode == 0, ended.stderr
        assert list(reports(tmp_path)) == ["out/energy/mine-1"]
        assert [path.name for path in (tmp_path / "out" / "energy").iterdir()] == ["mine-1"]

    def test_a_program_without_a_framework_is_one_run(self, start: Start, programs: Path, tmp_path: Path) -> None:
        ended = start(*RUN, programs / "plain.py", "7", "--flag")
        assert ended.returncode == 7, ended.stderr
        script = programs / "plain.py"
        assert ended.stdout.startswith(f"found [1, 4, 9] ['{script}', '7', '--flag'] {script} __main__\n")
        report = only(tmp_path / "energy")
        assert report.complete
        assert report.total_j is not None
        assert report.config == {"stage": "process", "command": [str(script), "7", "--flag"]}
        assert ended.stdout.endswith(f"{report}\nReport: {tmp_path / 'energy' / 'run-1'}\n")

    def test_an_exception_is_the_programs_own(self, start: Start, programs: Path, tmp_path: Path) -> None:
        ended = start(*RUN, programs / "plain.py", "fail")
        assert ended.returncode == 1
        assert ended.stderr.endswith("ValueError: planned\n")
        assert only(tmp_path).complete

    def test_a_module(self, start: Start, tmp_path: Path) -> None:
        ended = start(*RUN, "--energy_report_table=false", "-m", "plain", "0", "-m", "--energy-report-name", "x")
        assert ended.returncode == 0, ended.stderr
        assert "'0', '-m', '--energy-report-name', 'x'] " in ended.stdout
        assert list(reports(tmp_path)) == ["energy/run-1"]

    @pytest.mark.slow
    @pytest.mark.parametrize(("script", "chosen"), [("trainer.py", 2), ("lit.py", 2), ("loop.py", None)])
    def test_a_micro_batch_is_tuned_where_it_can_be(
        self, start: Start, programs: Path, tmp_path: Path, script: str, chosen: int | None
    ) -> None:
        ended = start(*RUN, "--energy-micro-batch-size", "2", programs / script, tmp_path / "out")
        assert ended.returncode == 0, ended.stderr
        part = only(tmp_path).micro_batch
        assert part is not None
        assert part.chosen == chosen
        if chosen is None:
            assert "put its loss function into energy_plugins.accelerate.micro_batched(...)" in part.why

    def test_not_enabled(self, start: Start, programs: Path, tmp_path: Path) -> None:
        ended = start(*RUN, "--energy-measure-enabled", "no", programs / "plain.py", "3")
        assert ended.returncode == 3
        assert not reports(tmp_path)

    def test_only_one_process_of_a_machine_measures_all_of_it(
        self, start: Start, programs: Path, tmp_path: Path
    ) -> None:
        assert start(*RUN, programs / "plain.py", "0", LOCAL_RANK="1").returncode == 0
        assert not reports(tmp_path)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "no program"),
            (("--colour", "red"), "--colour: no such option"),
            (("-m",), "no program"),
            (("--energy-report-nam", "x", "plain.py"), "--energy-report-name"),
            (("--energy-config", "nowhere.yaml", "plain.py"), "nowhere.yaml: cannot be read"),
            (("--energy-report-country", "Frence", "plain.py"), "the nearest: France (FR)"),
        ],
    )
    def test_wrong_use(self, start: Start, words: Sequence[str], said: str) -> None:
        ended = start(*RUN, *words)
        assert ended.returncode == 2
        assert said in ended.stderr.splitlines()[0]

    def test_help(self, start: Start) -> None:
        ended = start(*RUN, "--help")
        assert (ended.returncode, ended.stdout.partition(" ")[0]) == (0, "usage:")


class TestLaunch:
    @pytest.mark.slow
    @pytest.mark.parametrize(("script", "chosen"), [("loop.py", None), ("trainer.py", 2), ("lit.py", 2)])
    def test_one_process(self, start: Start, programs: Path, tmp_path: Path, script: str, chosen: int | None) -> None:
        config = tmp_path / "energy.yaml"
        config.write_text("report: {name: mine, table: false}\nmicro_batch: {size: 2}\n")
        words = ("--cpu", "--num-processes=1", "--energy-config", config, programs / script, tmp_path / "out")
        ended = start(*LAUNCH, *words)
        assert ended.returncode == 0, ended.stderr
        assert {name: report.steps.rows for name, report in reports(tmp_path).items()} == {"out/energy/mine-1": 6}
        part = only(tmp_path).micro_batch
        assert part is not None
        assert (part.chosen, bool(part.why)) == (chosen, chosen is None)

    @pytest.mark.slow
    @pytest.mark.parametrize("stock", [False, True])
    def test_two_processes_and_a_section_in_accelerates_file(
        self, start: Start, programs: Path, tmp_path: Path, *, stock: bool
    ) -> None:
        settings = "report: {name: mine, table: false}"
        accelerates = f"compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\n{TWO_PROCESSES}"
        ours, theirs = tmp_path / "energy.yaml", tmp_path / "accelerate.yaml"
        ours.write_text(settings)
        theirs.write_text(accelerates if stock else f"{accelerates}energy_config:\n  {settings}\n")
        words: list[str | Path] = [*LAUNCH, "--config_file", theirs, programs / "loop.py"]
        if stock:
            words = ["-m", "accelerate.commands.launch", *words[2:4], *RUN, "--energy-config", ours, "-m", "loop"]
        ended = start(*words, tmp_path / "out", gpus=2)
        assert ended.returncode == 0, ended.stderr
        assert all(f"rank {rank} of 2 is done" in ended.stdout for rank in (0, 1))
        found = {name: report.steps.rows for name, report in reports(tmp_path).items()}
        assert found == {"out/energy/mine-1": 3, "out/energy/mine-1/rank-1": 3}
        assert both_gpus_once(reports(tmp_path)).steps == 6

    @pytest.mark.slow
    def test_two_processes_without_a_framework(self, start: Start, tmp_path: Path) -> None:
        config = tmp_path / "accelerate.yaml"
        config.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\n{TWO_PROCESSES}")
        ended = start(*LAUNCH, "--config_file", config, "-m", "plain", "0", gpus=2)
        assert ended.returncode == 0, ended.stderr
        found = reports(tmp_path / "energy")
        assert sorted(found) == ["run-1", "run-1/rank-1"]
        assert both_gpus_once(found).complete
        assert ended.stdout.count("Report: ") == 1

    @pytest.mark.slow
    def test_the_scripts_failure_is_the_launchers(self, start: Start, programs: Path) -> None:
        ended = start(*LAUNCH, "--cpu", "--num-processes=1", "--energy-report-table=no", "-m", "plain", "fail")
        assert ended.returncode == 1
        assert "ValueError: planned" in ended.stderr

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--energy-measure-activity", "maybe", "plain.py"), "energy-launch: flag --energy-measure-activity: "),
            (("--config_file", "{}/wrong.yaml", "plain.py"), "wrong.yaml line 2: the key 'report.nam' is not known"),
            (("--no_python", "plain.py"), "energy-launch: --no_python"),
            (("--tpu", "plain.py"), "energy-launch: TPUs are not measured"),
        ],
    )
    def test_wrong_use(self, start: Start, tmp_path: Path, words: Sequence[str], said: str) -> None:
        (tmp_path / "wrong.yaml").write_text("distributed_type: 'NO'\nenergy_config: {report: {nam: x}}\n")
        ended = start(*LAUNCH, *(word.format(tmp_path) for word in words))
        assert ended.returncode == 2
        assert said in ended.stderr


def both_gpus_once(found: dict[str, Report]) -> Ranks:
    """Return the whole of two processes, which have a GPU each and are its parts."""
    whole, other = (found[name] for name in sorted(found))
    assert whole.ranks is not None
    assert len({*whole.gpu_j, *other.gpu_j}) == len([*whole.gpu_j, *other.gpu_j]) == whole.ranks.gpus == 2
    assert whole.ranks.total_j == pytest.approx((whole.total_j or 0) + (other.total_j or 0), rel=1e-12)
    return whole.ranks


TWO_PROCESSES = "num_processes: 2\nnum_machines: 1\nmachine_rank: 0\nuse_cpu: true\nmain_process_port: 0\n"


class TestLightningFactory:
    @pytest.fixture(autouse=True)
    def nothing_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.startswith("ENERGY_"):
                monkeypatch.delenv(name)

    def test_nothing_unless_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert callbacks() == []
        monkeypatch.setenv("ENERGY_NVML_LIBRARY", "of-a-simulation")  # no wish to measure
        assert callbacks() == []

    @pytest.mark.parametrize(("value", "count"), [("yes", 1), ("no", 0), ("", 0)])
    def test_if_asked(self, monkeypatch: pytest.MonkeyPatch, value: str, count: int) -> None:
        monkeypatch.setenv("ENERGY_MEASURE_ENABLED", value)
        assert len(callbacks()) == count

    @pytest.mark.parametrize("action", ["always", "error"])
    def test_it_never_raises(self, monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
        import warnings

        monkeypatch.setenv("ENERGY_MEASURE_ACTIVITY", "maybe")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            assert callbacks() == []
        assert [isinstance(warning.message, RuntimeWarning) for warning in caught] == [True] * (action == "always")

    def test_a_monitor_of_the_environment_survives_a_spawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENERGY_REPORT_NAME", "theirs")
        (monitor,) = callbacks()
        assert type(pickle.loads(pickle.dumps(monitor))) is type(monitor)  # noqa: S301 - our own bytes
        assert monitor.state_key != EnergyMonitor().state_key

    def test_the_entry_points_name_it(self) -> None:
        every = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        groups = {name: points for name, points in every.items() if name.endswith("callbacks_factory")}
        assert groups.keys() == {"lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory"}
        for name, points in groups.items():
            for key, value in points.items():
                assert EntryPoint(key, value, name).load() is callbacks


class TestImports:
    @pytest.fixture
    def imports(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Imports]:
        (tmp_path / "energy_test_module.py").write_text("word = 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        yield (imports := Imports())
        sys.meta_path.remove(imports)
        sys.modules.pop("energy_test_module", None)

    def test_a_module_is_told_of_once_it_is_imported(self, imports: Imports) -> None:
        import importlib

        told: list[Any] = []
        imports.react("energy_test_module", lambda module: told.append(module.word))
        imports.react("energy_test_module_that_is_not", told.append)
        assert told == []
        module = importlib.import_module("energy_test_module")
        assert told == [1]
        assert "exec_module" not in vars(module.__loader__)
        importlib.reload(module)
        assert told == [1]
        imports.react("energy_test_module", lambda module: told.append(module.word))
        assert told == [1, 1]
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("energy_test_module_that_is_not")
