"""A ledger that cannot be used says why and what to do; and no run is lost by it."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ledgering import entry, spooled
from sqlalchemy import Column, Connection, Integer, MetaData, create_engine, inspect, text

from energy_plugins.errors import LedgerError
from energy_plugins.report.ledger import Ledger
from energy_plugins.report.ledger.database import _LOCK, Database
from energy_plugins.report.ledger.place import file_system_of, refuse_network
from energy_plugins.report.ledger.schema import RUNS, TABLES, upgrade, version_of

pytest_plugins = ["ledger_fixtures"]

Sql = Callable[..., list[tuple[object, ...]]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return spooled(tmp_path / "spool", *(entry(f"run-{n:03}") for n in range(300)))


def import_(path: Path, spool: Path, patience_s: float = 5.0, *, remove: bool = False) -> int:
    with Ledger(f"sqlite:///{path}", patience_s=patience_s) as ledger:
        return ledger.import_spool(spool, remove=remove).new


def refused(path: Path, spool: Path, patience_s: float = 5.0) -> str:
    files = sorted(spool.iterdir())
    with pytest.raises(LedgerError) as caught:
        import_(path, spool, patience_s, remove=True)
    assert sorted(spool.iterdir()) == files
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_ledger_that_another_process_holds_is_waited_for(path: Path, spool: Path) -> None:
    import_(path, spool)
    spooled(spool, entry("new"))
    with sqlite3.connect(path, isolation_level=None, check_same_thread=False) as other:
        other.execute("BEGIN IMMEDIATE")
        let_go = threading.Timer(0.5, lambda: other.execute("COMMIT"))
        let_go.start()
        began_s = time.monotonic()
        assert import_(path, spool) == 1
        assert time.monotonic() - began_s > 0.3
        let_go.join()


def test_a_ledger_that_stays_locked_is_said(path: Path, spool: Path) -> None:
    import_(path, spool)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        said = refused(path, spool, patience_s=0.2)
        with Ledger(f"sqlite:///{path}") as ledger:  # reading goes on
            assert len(ledger.runs()) == 300
        other.execute("ROLLBACK")
    assert "database is locked; another process is writing and does not end" in said


def test_a_server_on_which_another_writes_and_does_not_end_is_said(server: str, spool: Path) -> None:
    other = create_engine(server)
    with other.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        with (
            pytest.raises(LedgerError, match="lock timeout; another process is writing and does not end"),
            Ledger(server, patience_s=0.2) as ledger,
        ):
            ledger.import_spool(spool)
    other.dispose()


def test_a_full_disk_is_said_and_what_fitted_is_there(path: Path, spool: Path) -> None:
    with Ledger(f"sqlite:///{path}") as ledger:
        ledger.import_spool(spool.parent / "none")
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from energy_plugins.errors import LedgerError
from energy_plugins.report.ledger import Ledger
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
try:
    Ledger({f"sqlite:///{path}"!r}).import_spool(Path({str(spool)!r}), remove=True)
except LedgerError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "make room, and do it again" in done.stdout, done
    with Ledger(f"sqlite:///{path}") as ledger:
        there = {run.run_id for run in ledger.runs()}
        kept = {file.stem for file in spool.iterdir()}
        assert there | kept == {f"run-{n:03}" for n in range(300)}
        ledger.import_spool(spool)
        assert len(ledger.runs()) == 300


@pytest.mark.parametrize(
    "content", [b"these are notes, and no database\n" * 100, b"SQLite format 3\0" + b"\xff" * 8000]
)
def test_a_file_that_is_no_ledger_is_left_alone(path: Path, spool: Path, content: bytes) -> None:
    path.write_bytes(content)
    said = refused(path, spool)
    assert "move it away, and the ledger is made anew from the spool" in said
    assert path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may not write")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_ledger_that_may_not_be_written_is_said(tmp_path_factory: pytest.TempPathFactory, what: str) -> None:
    folder = tmp_path_factory.mktemp("site") / "ledger"
    folder.mkdir()
    for parent in (folder, *folder.parents[:4]):
        parent.chmod(0o755)
    path = folder / "ledger.sqlite"
    if what == "file":
        import_(path, folder / "none")
    said = as_nobody(lambda: import_(path, folder / "none"))
    assert said.startswith(f"cannot use the ledger {path}: ")
    assert said.endswith(("you may not write there", "the folder is not there, or may not be written"))


def as_nobody(body: Callable[[], object]) -> str:
    hears, tells = os.pipe()
    if os.fork() == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            body()
        except LedgerError as error:
            os.write(tells, str(error).encode())
        finally:
            os._exit(0)
    os.close(tells)
    os.wait()
    with os.fdopen(hears, "rb") as file:
        return file.read().decode()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("nonsense", "is no URL of a database; expected"),
        ("", "is no URL of a database; expected"),
        ("sqlite://", "keeps nothing: name a file"),
        ("sqlite:///:memory:", "keeps nothing: name a file"),
        ("nosuch://host/name", "there is no driver"),
        ("postgresql://secret:hunter2@127.0.0.1:1/x", "refused"),
        ("sqlite:////proc/nowhere/ledger.sqlite", "No such file or directory"),
    ],
)
def test_a_url_that_cannot_be_used_is_said_without_its_password(url: str, complaint: str, tmp_path: Path) -> None:
    def use() -> None:
        with Ledger(url) as ledger:
            ledger.import_spool(tmp_path)

    with pytest.raises(LedgerError) as caught:
        use()
    assert complaint in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_reading_makes_no_ledger(path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger of this version"), Ledger(f"sqlite:///{path}") as ledger:
        ledger.runs()
    assert not path.exists()


# Versions.

LATER = MetaData()
for _table in TABLES.tables.values():
    _copy = _table.to_metadata(LATER)
    if _table is RUNS:
        _copy.append_column(Column("trees", Integer))


def plant(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE energy_runs ADD COLUMN trees INTEGER"))


def fail(connection: Connection) -> None:
    plant(connection)
    raise RuntimeError("the machine went off")


def columns(url: str) -> dict[str, set[tuple[str, str]]]:
    engine = create_engine(url)
    found = inspect(engine)
    tables = {
        name: {(column["name"], str(column["type"])) for column in found.get_columns(name)}
        for name in ("energy_runs", "energy_run_gpus")
    }
    engine.dispose()
    return tables


def test_an_earlier_ledger_becomes_what_a_new_one_is_and_keeps_its_runs(url: str, spool: Path, sql: Sql) -> None:
    database = Database(url)
    database.write(lambda connection: None)
    with Ledger(url) as ledger:
        ledger.import_spool(spool)
    before = columns(url)
    with pytest.raises(RuntimeError, match="went off"):
        database.write(lambda connection: upgrade(connection, LATER, [fail]))
    assert columns(url) == before  # all of a step or none of it
    database.write(lambda connection: upgrade(connection, LATER, [plant]))
    assert sql("SELECT count(*), max(trees) FROM energy_runs") == [(300, None)]
    upgraded = columns(url)
    sql("DROP TABLE energy_run_gpus", "DROP TABLE energy_runs", "DROP TABLE energy_ledger_version")
    engine = create_engine(database.url)
    with engine.begin() as connection:
        upgrade(connection, LATER, [plant])
        assert version_of(connection) == 2
    engine.dispose()
    assert columns(url) == upgraded != before
    database.close()


def test_a_newer_ledger_is_neither_read_nor_written(url: str, spool: Path, sql: Sql) -> None:
    with Ledger(url) as ledger:
        ledger.import_spool(spool)
        sql("INSERT INTO energy_ledger_version VALUES (7)")
        with pytest.raises(LedgerError, match="is of version 7; this version of energy-plugins knows 1: use a newer"):
            ledger.runs()
        with pytest.raises(LedgerError, match="is of version 7"):
            ledger.import_spool(spool)


def test_many_may_make_a_ledger_at_once(url: str, spool: Path) -> None:
    pids = []
    for _ in range(8):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                with Ledger(url) as ledger:
                    ledger.import_spool(spool)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    with Ledger(url) as ledger:
        assert len(ledger.runs()) == 300


# Network file systems.

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:50 / /home rw,relatime shared:3 - nfs4 fileserver:/home rw,vers=4.2
41 40 0:51 / /home/local rw - xfs /dev/sdb rw
42 22 0:52 / /my\040data rw - fuse.sshfs me@host: rw
43 22 0:53 / /scratch rw - ext4 /dev/sdc rw
44 22 0:54 / /scratch rw - lustre mds:/fs rw
nonsense
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/x", "ext4"),
        ("/home", "nfs4"),
        ("/home/alice/.local/state/x", "nfs4"),
        ("/homestead", "ext4"),
        ("/home/local/x", "xfs"),
        ("/my data/x", "fuse.sshfs"),
        ("/scratch/x", "lustre"),  # what was mounted later covers what was there
    ],
)
def test_the_file_system_of_a_path(place: str, kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(place), mounts) == kind
    if kind in {"ext4", "xfs"}:
        refuse_network(Path(place), mounts)
    else:
        with pytest.raises(LedgerError, match=f"is on a network file system \\({kind}\\).*--url"):
            refuse_network(Path(place), mounts)


def test_the_file_system_is_that_behind_a_link(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    (tmp_path / "link").symlink_to("/home/alice")
    assert file_system_of(tmp_path / "link" / "ledger.sqlite", mounts) == "nfs4"


def test_this_machine_tells_its_file_systems() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/"), Path("/nowhere")) == ""


def test_without_sqlalchemy_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; from energy_plugins.cli.main import main; main(['ledger'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: the ledger needs SQLAlchemy: pip install 'energy-plugins[ledger]'\n"


def test_no_limit_on_files_was_left_behind() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
