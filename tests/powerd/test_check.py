"""What administrators are told, and the unit that they install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from powerd_site import ALICE, BOB, Person, Site, wait_until

from energy_plugins.powerd import config
from energy_plugins.testing import GpuLost

People = Callable[..., Person]

pytest_plugins = ["powerd_fixtures"]
UNIT = Path(config.__file__).with_name("energy-powerd.service")
EXAMPLE = Path(config.__file__).with_name("powerd.toml")


def check(site: Site) -> tuple[int, str]:
    done = subprocess.run([*site.command(), "--check"], env={}, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_sound_site_is_described(site: Site, person: People) -> None:
    site.configure(f'[[grant]]\nusers = [{BOB}]\ngpus = ["{site.gpu}"]\n', group=20001)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    code, said = check(site)
    assert code == 0, said
    assert "root and group 20001 may connect; a helper answers there" in said
    assert f"granted to user uid {BOB}: {site.gpu}" in said
    assert f"set to 700 W or 450 W for uid {ALICE} (pid {alice.pid}); 700 W found" in said
    assert f"pid {alice.pid} (python" in said
    assert f"of uid {ALICE}: allowed: you alone compute on it" in said
    assert f"{site.simulation.gpus[1].uuid}: nobody computes on it" in said
    assert site.limit_w() == 450.0


def test_a_shared_gpu_is_told(site: Site, person: People) -> None:
    for uid in (ALICE, BOB):
        person(uid).compute()
    code, said = check(site)
    assert code == 0
    assert said.count("refused: others compute on the GPU") == 2
    assert "nobody answers there" in said


def test_what_would_keep_it_from_starting_is_told(site: Site) -> None:
    site.config.chmod(0o666)
    code, said = check(site)
    assert code == 1
    assert f"WRONG  will not start: {site.config} can be written by everybody" in said
    site.config.write_text("nvml = 5")
    assert "nvml must be a full path" in check(site)[1]


def test_a_driver_that_does_not_answer_is_told(site: Site) -> None:
    site.simulation.gpus[0].inject(GpuLost())
    code, said = check(site)
    assert (code, "GPU is lost" in said) == (1, True)


def test_a_spoilt_journal_is_told(site: Site) -> None:
    site.journal.mkdir()
    (site.journal / f"{site.gpu}.json").write_text("{")
    code, said = check(site)
    assert (code, "cannot be read, so nobody gets it" in said) == (1, True)


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "energy_plugins", "powerd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_the_verb_has_the_helper_itself_check(tmp_path: Path) -> None:
    path = tmp_path / "powerd.toml"
    path.write_text("nvml = '/nowhere/libnvidia-ml.so.1'\n")
    done = command_line("--check", "--config", str(path))
    assert done.returncode == 1
    assert "WRONG" in done.stdout
    assert "/nowhere" in done.stdout


def test_the_verb_wants_to_know_what_for() -> None:
    assert command_line().returncode == 2
    assert command_line("--unit", "--check").returncode == 2


def test_the_example_is_a_configuration_also_with_all_its_examples() -> None:
    text = command_line("--example").stdout
    assert text == EXAMPLE.read_text()
    assert config.parse(text).grants == ()
    lines = [
        line[2:] if line[:2] == "# " and line[2:3].islower() | (line[2:4] == "[[") else line
        for line in text.split("\n")
    ]
    keys = [line for line in lines if not line.startswith("#") and (" = " in line or line.startswith("[["))]
    full = "\n".join(keys).replace('"energy"', "0").replace('"alice"', "1").replace('"ml"', "2")
    assert len(config.parse(full).grants) == 1
    assert len(config.parse(full).ranges) == 1
    assert {line.partition(" ")[0] for line in keys if " = " in line} >= {
        "nvml",
        "group",
        "socket",
        "journal",
        "lease_s",
    }


def test_the_unit_names_this_installation(tmp_path: Path) -> None:
    text = command_line("--unit").stdout
    assert f"ExecStart={sys.executable} -I -S {UNIT.parent} --config {config.DEFAULT_PATH}\n" in text
    assert "@" not in text.replace("@system-service", "").replace("~@", "").replace(" @", "")
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    path = tmp_path / "energy-powerd.service"
    path.write_text(text)
    verified = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    security = [analyze, "security", "--offline=true", "--threshold=30", str(path)]  # in tenths of its scale of ten
    assert subprocess.run(security, capture_output=True, check=False).returncode == 0


def test_the_rights_that_the_unit_leaves_are_enough(
    site: Site, person: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv")
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    names = [f"+{name.removeprefix('CAP_').lower()}" for name in line.partition("=")[2].split()]
    plain = Site.command
    limited = [setpriv, f"--bounding-set=-all,{','.join(names)}", "--inh-caps=-all", "--no-new-privs"]
    monkeypatch.setattr(Site, "command", lambda self, *flags: [*limited, *plain(self, *flags)])
    site.configure(group=20001)
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    alice.kill()
    wait_until(lambda: site.limit_w() == 700.0, 2.0)
