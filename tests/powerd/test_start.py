"""The helper starts only where root alone can change what it runs and believes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from powerd_site import ALICE, BOB, Person, Site, in_a_group

from energy_plugins.powerd import trust

People = Callable[..., Person]

pytest_plugins = ["powerd_fixtures"]


@pytest.mark.parametrize(
    "place",
    [
        "powerd.toml",
        "code/energy_plugins/powerd/leases.py",
        "code/energy_plugins/powerd",
        "code/energy_plugins/__init__.py",
        "code",
        "driver/libnvidia-ml.so.1",
        "driver",
        ".",
    ],
)
@pytest.mark.parametrize("how", ["owner", "group", "everybody"])
def test_what_a_user_could_write_is_not_run_nor_believed(site: Site, place: str, how: str) -> None:
    path = site.folder / place
    if how == "owner":
        os.chown(path, ALICE, 0)
    else:
        path.chmod(0o775 if how == "group" else 0o757)
    said = site.refuse_to_start()
    assert f"{path.resolve()} " in said
    assert ("belongs to uid" if how == "owner" else "can be written by") in said
    assert not site.socket.exists()


@pytest.mark.parametrize("key", ["journal", "socket"])
def test_a_journal_or_socket_in_a_users_folder_is_refused(site: Site, key: str) -> None:
    folder = site.folder / "users"
    folder.mkdir()
    os.chown(folder, ALICE, ALICE)
    site.configure(**{key: str(folder / "deep/er")})
    assert f"{folder} belongs to uid {ALICE}" in site.refuse_to_start()


def test_a_link_is_followed_and_everything_on_its_way_counts(site: Site) -> None:
    users = site.folder / "users"
    users.mkdir()
    (users / "there.toml").symlink_to(site.config)
    link = site.folder / "link.toml"
    link.symlink_to("users/there.toml")
    site.config = link
    os.chown(users, ALICE, ALICE)
    assert f"{users} belongs to uid {ALICE}" in site.refuse_to_start()
    os.chown(users, 0, 0)
    os.lchown(users / "there.toml", ALICE, ALICE)
    assert f"{users}/there.toml belongs to uid {ALICE}" in site.refuse_to_start()


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert any("too many links" in fault for fault in trust.faults(tmp_path / "a", proprietor=os.geteuid()))


def test_a_file_in_a_folder_for_all_is_refused_though_its_owner_alone_may_move_it(site: Site) -> None:
    """Others could have linked a file of root's there: a folder cannot be linked, so it may lie there."""
    folder = site.folder / "for-all"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "sub").mkdir()
    for place in (folder, folder / "sub"):
        shutil.copy(site.config, place / "powerd.toml")
    site.config = folder / "powerd.toml"
    assert f"{folder} can be written by everybody" in site.refuse_to_start()
    site.config = folder / "sub/powerd.toml"
    site.start()


def test_every_fault_is_told_at_once(site: Site) -> None:
    site.config.chmod(0o666)
    os.chown(site.code, ALICE, 0)
    said = site.refuse_to_start()
    assert str(site.config) in said
    assert str(site.code) in said


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT"])
def test_variables_of_the_loader_are_refused(site: Site, name: str) -> None:
    """What they have loaded is in the process already: it can only be said."""
    assert f"{name} is set" in site.refuse_to_start(environment={name: "/nowhere"})


def test_python_must_be_isolated(site: Site) -> None:
    said = site.refuse_to_start(flags=["-S"])
    assert "python -I" in said


def test_nothing_in_the_environment_counts(site: Site, person: People, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for module in ("json", "selectors", "energy_plugins", "sitecustomize", "usercustomize"):
        (evil / f"{module}.py").write_text("raise SystemExit('the environment decided what runs')")
    site.start(
        environment={
            "PYTHONPATH": str(evil),
            "PYTHONHOME": str(evil),
            "PYTHONSTARTUP": str(evil / "json.py"),
            "PYTHONINSPECT": "1",
            "HOME": str(evil),
            "ENERGY_NVML": "/nowhere/libnvidia-ml.so.1",
            "NVML_LIBRARY": "/nowhere/libnvidia-ml.so.1",
            "ENERGY_SIM_STATE": "/nowhere",
            "ENERGY_POWERD_SOCKET": "/nowhere",
            "TMPDIR": str(evil),
        }
    )
    assert "serves 2 GPUs" in site.log()  # those of the library that the configuration names
    person(ALICE).limit(site, 450.0)


def test_the_folder_it_is_started_in_does_not_count(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the folder decided what runs')")
    monkeypatch.chdir(tmp_path)
    site.config.chmod(0o666)
    assert "can be written" in site.refuse_to_start()


def test_it_needs_nothing_but_the_standard_library(site: Site) -> None:
    helper = site.start()
    with Path(f"/proc/{helper}/maps").open() as maps:
        mapped = {line.split()[-1] for line in maps if "/" in line}
    assert not [path for path in mapped if "site-packages" in path or "_native" in path]
    imports = (
        "import sys; sys.path.append(sys.argv[1]); import energy_plugins.powerd.start;"
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    command = [sys.executable, "-I", "-S", "-c", imports, str(site.code.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"energy_plugins", "__main__"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nvml = 'x'", "nvml must be a full path"),
        ("", "nvml is missing"),
        ("nvml = '/x'\nnvlm = 1", "nvlm is no key"),
        ("nvml = '/x'\nlease_s = true", "lease_s must be a number"),
        ("nvml = '/x'\nlease_s = nan", "lease_s must be a number"),
        ("nvml = '/x'\nabove_found = 1", "above_found must be true or false"),
        ("nvml = '/x'\ngroup = 'no such group'", "there is no 'no such group' here"),
        ("nvml = '/x'\nrange = 5", "range must be a list"),
        ("nvml = '/x'\n[[range]]\nmin_w = 5\nmax_w = 4", "range.min_w is above"),
        ("nvml = '/x'\n[[range]]\nmin_w = 5\nmax_w = 6\ngpu = '*'", "range.gpu is no key"),
        ("nvml = '/x'\n[[grant]]\ngpus = ['*']", "neither users nor groups"),
        ("nvml = '/x'\n[[grant]]\ngpus = ['0']\nusers = [1]", "UUIDs"),
        ("nvml = '/x'\n[[grant]]\ngpus = ['*']\nusers = [4294967295]", "name or a number"),
        ("nvml = ", "Invalid value"),
    ],
)
def test_a_configuration_with_a_mistake_is_refused_in_a_sentence(site: Site, text: str, why: str) -> None:
    site.config.write_text(text)
    assert why in site.refuse_to_start()


def test_the_socket_is_for_root_and_the_sites_group(site: Site, person: People) -> None:
    site.configure(group=20001)
    site.start(open_to_all=False)
    about = site.socket.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (0, 20001, 0o660)
    member = person(0, in_a_group)
    member.connect()
    with pytest.raises(AssertionError, match="PermissionError"):
        person(BOB).connect()
    assert site.journal.stat().st_mode & 0o777 == 0o700


def test_what_is_not_there_is_named_by_its_own_path(tmp_path: Path) -> None:
    missing = tmp_path / "energy-plugins"
    said = list(trust.faults(missing / "powerd.toml"))
    assert f"{missing} cannot be examined: No such file or directory" in said
