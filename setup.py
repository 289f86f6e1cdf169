"""Builds the native parts: ``energy_plugins._native`` and the two simulated driver libraries.

Everything is compiled in a temporary folder that is removed afterwards: nothing an earlier build left behind can
reach a wheel or the source tree.
"""

from __future__ import annotations

import atexit
import shlex
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import pybind11
from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# `make warnings` makes warnings errors; the headers of Python and pybind11 are the system's.
COMPILE = [
    "-O2",
    "-pthread",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-isystem",
    pybind11.get_include(),
    "-isystem",
    sysconfig.get_path("include"),
]
# A libstdc++ that the compiler links statically must not mix with the one that torch brought along.
LINK = ["-Wl,--exclude-libs,ALL"]
SIMULATED = {"nvml": "libnvidia-ml.so.1", "cuda": "libcuda.so.1"}
LIBRARY_PACKAGE = "energy_plugins.testing.lib"


def sources(folder: str) -> list[str]:
    """The C++ files of a folder, relative to this file."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("*.cpp"))


def headers(folder: str) -> list[str]:
    """The headers of a folder, relative to this file."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("*.hpp"))


def native() -> Extension:
    """The Python module."""
    extension: Extension = Pybind11Extension(
        "energy_plugins._native",
        sources("csrc"),
        depends=headers("csrc"),
        cxx_std=17,
        extra_compile_args=COMPILE,
        extra_link_args=["-pthread", "-ldl", *LINK],
    )
    return extension


def simulated(driver: str) -> Extension:
    """One simulated driver library: its own source file and those that both share."""
    others = [f"csrc/sim/{name}.cpp" for name in SIMULATED if name != driver]
    return Extension(
        f"{LIBRARY_PACKAGE}.{driver}",
        [source for source in sources("csrc/sim") if source not in others],
        depends=headers("csrc/sim"),
        language="c++",
        extra_compile_args=["-std=c++17", *COMPILE],
        # A call inside a library stays in it, whatever other copy of the driver is loaded; and no program that asks
        # for the driver by its bare name is answered by a copy loaded from its path.
        extra_link_args=["-pthread", "-ldl", *LINK, "-Wl,-Bsymbolic", f"-Wl,-soname,libenergy-plugins-{driver}.so"],
    )


class FreshBuild(build):
    """A build whose intermediate files live in a temporary folder."""

    def initialize_options(self) -> None:
        """Starts from nothing."""
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix="energy-plugins-build-")
        atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)


class BuildNative(build_ext):
    """Compiles, and says in one sentence what is wrong when there is no compiler."""

    def get_ext_filename(self, fullname: str) -> str:
        """The simulated libraries are called what the real ones are called."""
        package, _, driver = fullname.rpartition(".")
        if package == LIBRARY_PACKAGE or (not package and driver in SIMULATED):
            return str(Path(*package.split("."), SIMULATED[driver]))
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Looks for the compiler first."""
        command = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
        compiler = command[0] if isinstance(command, list) else shlex.split(command)[0]
        if shutil.which(compiler) is None:
            sys.exit(
                f"energy-plugins needs a C++17 compiler, and {compiler!r} was not found: install one "
                "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name yours in CXX."
            )
        super().build_extensions()

    def copy_extensions_to_source(self) -> None:
        """Makes the folder of the simulated libraries, which no checkout has."""
        (ROOT / Path(*LIBRARY_PACKAGE.split("."))).mkdir(parents=True, exist_ok=True)
        super().copy_extensions_to_source()


setup(
    ext_modules=[native(), *(simulated(driver) for driver in SIMULATED if (ROOT / f"csrc/sim/{driver}.cpp").exists())],
    cmdclass={"build": FreshBuild, "build_ext": BuildNative},
)
