"""What is shipped: all that is needed, nothing that lay about; and a clear sentence when it cannot be built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FAKE_COMPILER = """#!/bin/sh
# Compiles nothing: says what it is, and writes a word where the output should be.
case "$*" in *--version*|*-dumpversion*) echo "fake 12.0"; exit 0;; esac
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then echo fresh > "$2"; fi
    shift
done
"""

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"

LIBRARIES = ("energy_plugins/testing/lib/libnvidia-ml.so.1", "energy_plugins/testing/lib/libcuda.so.1")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the tree without anything that was built."""
    copy = tmp_path / "sources"
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.so.1", "build", ".*", "*.egg-info")
    copy.mkdir()
    for name in ("csrc", "docs", "energy_plugins", "examples", "requirements", "scripts", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    for path in ROOT.glob("*.*"):
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    for name in ("LICENSE", "Makefile"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def fake_compiler(tmp_path: Path) -> Path:
    path = tmp_path / "fake-c++"
    path.write_text(FAKE_COMPILER)
    path.chmod(0o755)
    return path


def build(sources: Path, hook: str, compiler: Path | str) -> subprocess.CompletedProcess[str]:
    """Call one of the build back end's hooks, as pip does, with a compiler of the test's choice."""
    environment = dict.fromkeys(("CC", "CXX"), str(compiler))
    environment |= dict.fromkeys(("LDSHARED", "LDCXXSHARED"), f"{compiler} -shared")
    return subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(sources.parent)],
        cwd=sources,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def build_wheel(sources: Path, compiler: Path) -> zipfile.ZipFile:
    done = build(sources, "build_wheel", compiler)
    assert done.returncode == 0, done.stderr
    (wheel,) = sources.parent.glob("energy_plugins-*.whl")
    return zipfile.ZipFile(wheel)


def test_the_wheel_holds_what_is_needed_and_nothing_else(sources: Path, fake_compiler: Path) -> None:
    with build_wheel(sources, fake_compiler) as wheel:
        names = set(wheel.namelist())
    modules = {str(path.relative_to(sources)) for path in (sources / "energy_plugins").rglob("*.py")}
    assert {*modules, *LIBRARIES, "energy_plugins/py.typed", "energy_plugins/_native.pyi"} <= names
    page = {str(path.relative_to(sources)) for path in (sources / "energy_plugins/report/page").iterdir()}
    assert {"energy_plugins/report/page/echarts.min.js", *page} <= names
    assert {"energy_plugins/powerd/energy-powerd.service", "energy_plugins/powerd/powerd.toml"} <= names
    assert "energy_plugins/report/carbon/grid_intensity.csv" in names
    assert [name for name in names if name.startswith("energy_plugins/_native.") and name.endswith(".so")]
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"energy_plugins"}
    assert not [name for name in names if name.endswith((".cpp", ".hpp", ".h"))]


def test_what_an_earlier_build_left_behind_is_not_shipped(sources: Path, fake_compiler: Path) -> None:
    build_wheel(sources, fake_compiler).close()
    # All of it newer than the sources: a build that goes by dates would take it for its own.
    left_behind = [path for path in (sources / "build").rglob("*") if path.suffix in {".so", ".1", ".o"}]
    assert left_behind or not (sources / "build").exists()
    for path in [*left_behind, *(sources / "energy_plugins").rglob("*.so*")]:
        path.write_text("stale")
    for folder in [sources / "energy_plugins", *(sources / "build").glob("lib*/energy_plugins")]:
        (folder / "_native.stale.so").write_text("stale")
    for folder in (sources / "build").glob("lib*/energy_plugins"):
        (folder / "gone.py").write_text("stale")
    with build_wheel(sources, fake_compiler) as wheel:
        contents = {name: wheel.read(name) for name in wheel.namelist()}
    assert not [name for name, content in contents.items() if content.strip() == b"stale"]
    assert [name for name, content in contents.items() if content.strip() == b"fresh"]


def test_without_a_compiler_the_build_says_so_in_one_sentence(sources: Path) -> None:
    done = build(sources, "build_wheel", "/nonexistent/c++")
    assert done.returncode != 0
    last_line = done.stderr.strip().splitlines()[-1]
    assert re.search(r"needs a C\+\+17 compiler, and '/nonexistent/c\+\+' was not found", last_line), done.stderr


def test_the_source_distribution_can_be_built_from(sources: Path, fake_compiler: Path) -> None:
    done = build(sources, "build_sdist", fake_compiler)
    assert done.returncode == 0, done.stderr
    (archive,) = sources.parent.glob("energy_plugins-*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    native = {str(path.relative_to(sources)) for path in (sources / "csrc").rglob("*") if path.is_file()}
    assert {*native, "setup.py", "energy_plugins/_native.pyi", "energy_plugins/py.typed", "Makefile"} <= names
    assert not [name for name in names if name.endswith((".so", ".so.1"))]
