"""A site with the helper installed as an administrator would, and people of other uids who talk to it."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import energy_plugins
from energy_plugins.control.nvml import Nvml
from energy_plugins.testing import Simulation, library
from energy_plugins.testing.device import SimulatedDevice

T = TypeVar("T")
Answer = dict[str, object]

ALICE, BOB = 10_001, 10_002
PATIENCE_S = 10.0
FORK = multiprocessing.get_context("fork")


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Site:
    """A folder of root's with the helper's code, its configuration, its driver and its journal."""

    def __init__(self, folder: Path, simulation: Simulation) -> None:
        self.folder = folder
        self.simulation = simulation
        folder.chmod(0o755)
        self.code = folder / "code/energy_plugins/powerd"
        self.config = folder / "powerd.toml"
        self.socket = folder / "run/socket"
        self.journal = folder / "journal"
        self.log_file = folder / "log"
        self.nvml = folder / "driver/libnvidia-ml.so.1"
        package = Path(energy_plugins.__file__).parent
        shutil.copytree(package / "powerd", self.code, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(package / "__init__.py", self.code.parent)
        self.nvml.parent.mkdir()
        shutil.copy(library.NVML_PATH, self.nvml)
        (self.nvml.parent / "energy-sim-state").symlink_to(simulation.state)
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755)
        self.configure()
        self._helpers: list[subprocess.Popen[bytes]] = []

    @property
    def gpu(self) -> str:
        return self.simulation.gpus[0].uuid

    def configure(self, *rows: str, **keys: object) -> None:
        """Write the configuration: keys, and whole rows such as tables."""
        values = {
            "nvml": str(self.nvml),
            "socket": str(self.socket),
            "journal": str(self.journal),
            "group": 0,
            "sets_per_minute": 6000,
            **keys,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self.config.write_text("\n".join([*lines, *rows]) + "\n")

    def command(self, *flags: str) -> list[str]:
        return [sys.executable, *(flags or ("-I", "-S")), str(self.code), "--config", str(self.config)]

    def start(self, *, environment: Mapping[str, str] | None = None, open_to_all: bool = True) -> int:
        """Start the helper and return its pid once it serves."""
        with self.log_file.open("ab") as log:
            began = log.tell()
            helper = subprocess.Popen(self.command(), env=dict(environment or {}), stderr=log, cwd="/")
        self._helpers.append(helper)
        wait_until(lambda: "serves" in self.log(began) or helper.poll() is not None)
        assert helper.poll() is None, self.log(began)
        if open_to_all:
            self.socket.chmod(0o666)  # the tests' people are members of no group
        return helper.pid

    def refuse_to_start(self, *, environment: Mapping[str, str] | None = None, flags: Sequence[str] = ()) -> str:
        """Return what the helper says when it does not start."""
        done = subprocess.run(
            self.command(*flags), env=dict(environment or {}), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 3, (done.returncode, done.stderr)
        return done.stderr

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the helper and return its exit code."""
        helper = self._helpers.pop()
        helper.send_signal(number)
        return helper.wait(PATIENCE_S)

    def end(self) -> None:
        while self._helpers:
            self.stop(signal.SIGKILL)

    def log(self, since: int = 0) -> str:
        return self.log_file.read_bytes()[since:].decode() if self.log_file.exists() else ""

    def limit_w(self, gpu: int = 0) -> float:
        with Nvml(self.simulation.nvml_path) as nvml:
            return nvml.card(self.simulation.gpus[gpu].uuid).limit_w()

    def set_limit_w(self, watts: float, gpu: int = 0) -> None:
        """Do what an administrator does with nvidia-smi."""
        with Nvml(self.simulation.nvml_path) as nvml:
            nvml.card(self.simulation.gpus[gpu].uuid).set_limit_w(watts)

    def entries(self) -> list[str]:
        return sorted(path.name for path in self.journal.glob("*.json"))


class Person:
    """A process of some user, which does what it is told; ended by `end` or by being killed."""

    def __init__(self, site: Site, uid: int, *, prepare: Callable[[], None] | None = None) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=_live, args=(theirs, site, uid, prepare))
        self._process.start()
        theirs.close()
        self.pid = int(self.call(os.getpid))

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Have the process call a function."""
        self._pipe.send((function, arguments))
        assert self._pipe.poll(30), "no answer"
        worked, result = self._pipe.recv()
        if not worked:
            raise AssertionError(result)
        return result  # type: ignore[no-any-return]

    def compute(self, gpu: int = 0) -> None:
        """Be listed by the driver as computing on a GPU."""
        self.call(_compute, gpu)

    def connect(self) -> None:
        self.call(_connect)

    def say(self, **message: object) -> Answer:
        """Send a message and return its answer."""
        return self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, data: bytes) -> Answer:
        return self.call(_raw, data)

    def take(self, site: Site, gpu: int = 0) -> Answer:
        return self.say(op="take", gpu=site.simulation.gpus[gpu].uuid)

    def set(self, site: Site, limit_w: float, gpu: int = 0) -> Answer:
        return self.say(op="set", gpu=site.simulation.gpus[gpu].uuid, limit_w=limit_w)

    def limit(self, site: Site, limit_w: float, gpu: int = 0) -> None:
        """Compute, connect, take and set; all of it works."""
        self.compute(gpu)
        self.connect()
        for answer in (self.take(site, gpu), self.set(site, limit_w, gpu)):
            assert answer["ok"], answer
        assert site.limit_w(gpu) == limit_w

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join(PATIENCE_S)


def in_a_group() -> None:
    """Become Alice, as a member of group 20001."""
    os.setgroups([20001])
    os.setresuid(ALICE, ALICE, ALICE)


class _Self:
    """What one process of a `Person` holds."""

    site: Site
    connection: socket.socket
    rest: bytes = b""


def _live(pipe: Connection, site: Site, uid: int, prepare: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if prepare is not None:
        prepare()
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    # After the change of user, which clears it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _Self.site = site
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except Exception as error:  # noqa: BLE001 - it is the test's to judge
            pipe.send((False, repr(error)))


def _compute(gpu: int) -> None:
    device: SimulatedDevice = _Self.site.simulation.gpus[gpu]
    device.launch(ops=1e9)


def _connect() -> None:
    _Self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _Self.connection.settimeout(PATIENCE_S)
    _Self.connection.connect(str(_Self.site.socket))
    _Self.rest = b""


def _raw(data: bytes) -> Answer:
    with suppress(BrokenPipeError):  # whoever is turned away is told why before it says a word
        _Self.connection.sendall(data)
    while b"\n" not in _Self.rest:
        try:
            part = _Self.connection.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            return {"closed": True}
        _Self.rest += part
    line, _, _Self.rest = _Self.rest.partition(b"\n")
    answer: Answer = json.loads(line)
    return answer


def wait_until(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> float:
    """Wait until something holds, and return how many seconds that took."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < within_s, "it did not come true"
        time.sleep(0.005)
    return time.monotonic() - began_s
