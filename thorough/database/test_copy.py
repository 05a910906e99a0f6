"""`db copy`: everything is there as it was, in one transaction, while servers go on."""

import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from app.auth.cli.output import progress
from app.auth.database.engine import connect, transaction
from app.auth.database.migrate import upgrade
from app.auth.database.models import api_key_findings, api_key_usage, metadata
from app.auth.errors import StoreUnavailableError
from app.auth.keys.service import KeyService
from app.constants import MISSING_KEY_STATUS
from app.settings import load_settings
from tests.thorough.commands import ROOT, complaint, keys, run
from tests.thorough.databases import Databases, SQLiteDatabases
from tests.thorough.replicas import PATIENCE, Poller, Replica, started, wait_for

NO = MISSING_KEY_STATUS
YOURS = sa.MetaData()
PEOPLE = sa.Table(
    "people",
    YOURS,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("boss", sa.ForeignKey("people.id", name="fk_boss")),
    sa.Column("Name", sa.String(20), key="name"),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("born", sa.Date),
    sa.Column("pay", sa.Numeric(10, 2)),
    sa.Column("share", sa.Float),
    sa.Column("photo", sa.LargeBinary),
    sa.Column("more", sa.JSON),
    sa.Column("uuid", sa.Uuid),
    sa.Column("is_in", sa.Boolean),
    sa.Column("twice", sa.Integer, sa.Computed("id * 2", persisted=True)),
)
late = sa.ForeignKey("people.id", name="fk_late", deferrable=True, initially="IMMEDIATE")
sa.Table("unused", YOURS, sa.Column("id", sa.Integer, primary_key=True), sa.Column("of", late))
ROWS: list[dict[str, Any]] = [
    {"id": 1, "boss": 9, "name": "Ren\u00e9 \U0001f600", "more": sa.null(), "is_in": True},
    {"id": 9, "boss": 1, "name": "it's", "more": None, "is_in": False},
    {"id": 12, "boss": 12, "name": "", "more": {"b": [1, None], "a": "\u20ac"}, "is_in": None},
]
for number, row in enumerate(ROWS):
    zone = timezone(timedelta(hours=number))
    row["at"] = datetime(2026, 11, 30, 12, number, 0, 123456, zone).astimezone(UTC)
    row |= {"born": date(1990, 1, 1), "pay": Decimal("1234.50"), "share": 0.1 + number}
    row |= {"photo": bytes(range(256)), "uuid": UUID(int=number)}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.cli.context.sleep", lambda _: None)


@pytest.fixture
def target(
    databases: Databases, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[sa.URL]:
    """An empty database of the other kind."""
    other = "postgresql" if isinstance(databases, SQLiteDatabases) else "sqlite"
    there: Databases = request.getfixturevalue(f"{other}_databases")
    folder = tmp_path / "there"
    folder.mkdir()
    with there.empty(folder) as url:
        yield url
        connect(url).dispose()


def spelled(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture
def yours(database_url: sa.URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables of the owner, whose migrations fill one of them."""

    def upgrade_tables(url: sa.URL, _: object) -> bool:
        with connect(url).begin() as connection:
            YOURS.create_all(connection)
            if not connection.scalar(sa.select(sa.func.count()).select_from(PEOPLE)):
                connection.execute(sa.insert(PEOPLE).values(id=77, name="from a migration"))
        return True

    monkeypatch.setattr("app.transfer.copy.Base", SimpleNamespace(metadata=YOURS))
    monkeypatch.setattr("app.transfer.copy.upgrade_tables", upgrade_tables)
    engine = connect(database_url)
    with engine.begin() as connection:
        YOURS.create_all(connection)
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        without = [{**row, "boss": None} for row in ROWS]
        connection.execute(sa.insert(PEOPLE), without)
        for row in ROWS:
            mine = sa.update(PEOPLE).where(PEOPLE.c.id == row["id"])
            connection.execute(mine.values(boss=row["boss"]))
    yield
    with engine.begin() as connection:
        YOURS.drop_all(connection)


def content(url: sa.URL, tables: sa.MetaData = metadata) -> dict[str, list[Any]]:
    with connect(url).connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in tables.sorted_tables
            if table.name != "api_key_servers"
        }


def fill(url: sa.URL) -> dict[str, str]:
    """Keys in every state, used and unusual. Returns what each is worth."""
    first, gone, off = (keys("create", name) for name in ("first", "gone", "off"))
    renewed = keys("rotate", first["id"])
    keys("update", first["id"], "--add-scope", "a:b")
    keys("revoke", gone["id"])
    keys("pause", off["id"])
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with transaction(connect(url), write=True) as connection:
        usage = {"digest": b"\x01" * 32, "hours": 1, "served": 2**40, "refused": 1, "limited": 0}
        hours = [{**usage, "starts_at": now - timedelta(hours=hour)} for hour in range(2500)]
        connection.execute(sa.insert(api_key_usage), hours)
        connection.execute(sa.insert(api_key_findings).values(key_id="", problem="x", since=now))
    good = dict.fromkeys((first["key"], renewed["key"]), 200)
    return {**good, gone["key"]: NO, off["key"]: NO}  # type: ignore[dict-item]


@pytest.mark.usefixtures("yours")
def test_everything_is_there_as_it_was(
    database_url: sa.URL, target: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth = fill(database_url)
    before = content(database_url)
    with connect(database_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE of_another_service (id INTEGER)")
    result = run("db", "copy", "--to", spelled(target))
    with connect(database_url).begin() as connection:
        connection.exec_driver_sql("DROP TABLE of_another_service")
    assert result.exit_code == 0, result.stderr
    assert "Not copied, since no model declares them: of_another_service" in result.stderr
    assert f"{len(ROWS):>12}  people\n" in result.stdout
    assert content(target) == before
    with connect(target).begin() as connection:
        if target.get_backend_name() == "postgresql":
            connection.exec_driver_sql("SET TIME ZONE 'UTC'")
        people = connection.execute(sa.select(PEOPLE).order_by(PEOPLE.c.id))
        found = [{column.key: row._mapping[column] for column in PEOPLE.c} for row in people]
        nulls = "SELECT id FROM people WHERE more IS NULL"
        assert connection.exec_driver_sql(nulls).scalars().all() == [1]
        for row, there in zip(ROWS, found, strict=True):
            expected = {**row, "more": None if row["id"] < 10 else row["more"]}
            expected["twice"] = 2 * row["id"]
            at = there["at"] if there["at"].tzinfo else there["at"].replace(tzinfo=UTC)
            assert {**there, "at": at} == expected
        added = sa.insert(PEOPLE).values(name="new").returning(PEOPLE.c.id)
        assert connection.scalar(added) == 13
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.insert(PEOPLE).values(id=99, boss=1234))  # at once, as before
    monkeypatch.setenv("DATABASE_URL", spelled(target))
    with started(Replica()) as [replica]:
        for secret, status in worth.items():
            assert replica.request(secret) == int(status)
    keys("create", "after")


def test_only_an_empty_database_is_filled(
    database_url: sa.URL, target: sa.URL, tmp_path: Path
) -> None:
    assert "the database itself" in complaint("db", "copy", "--to", spelled(database_url))
    assert complaint("db", "copy", "--to", "mysql://x").startswith("--to: write sqlite:///FILE")
    alias = f"{spelled(database_url)}?application_name=another"
    if database_url.get_backend_name() == "sqlite":
        (tmp_path / "alias.db").symlink_to(f"{database_url.database}")
        alias = f"sqlite:///{tmp_path}/alias.db"
    for other in (alias, f"sqlite:///{tmp_path}/no/such/folder.db"):
        said = complaint("db", "copy", "--to", other)
        assert said.startswith("--to: out of reach: ")
        assert said.endswith("; name an empty database that nobody else uses")
    upgrade(target)
    KeyService(load_settings().model_copy(update={"database_url": target})).create("x", actor="x")
    before = content(target)
    assert " has rows (a broken copy?); name another" in complaint(
        "db", "copy", "--to", spelled(target)
    )
    assert content(target) == before


def test_tables_of_another_revision_are_not_copied(database_url: sa.URL, target: sa.URL) -> None:
    with connect(database_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('old')")
    try:
        assert "run `db upgrade` first" in complaint("db", "copy", "--to", spelled(target))
    finally:
        with connect(database_url).begin() as connection:
            connection.exec_driver_sql("DELETE FROM alembic_version")


@pytest.mark.usefixtures("yours")
def test_a_row_that_does_not_fit_leaves_nothing(database_url: sa.URL, target: sa.URL) -> None:
    fill(database_url)

    @sa.event.listens_for(sa.Engine, "before_cursor_execute", retval=True)
    def spoil(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> Any:
        return statement.replace("INSERT INTO people (id, boss", "INSERT INTO none (id"), parameters

    try:
        said = complaint("db", "copy", "--to", spelled(target))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", spoil)
    assert said.startswith("--to: people: ")
    assert said.endswith("none is there")
    assert not any(content(target).values())


def test_a_row_that_refers_to_none_is_told_before_anything_is_copied(
    sqlite_databases: SQLiteDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite_databases.fresh(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", spelled(url))
        # Another program checks no foreign keys, unless it asks for that.
        with closing(sqlite3.connect(f"{url.database}")) as other, other:
            row = (bytes(32), "none", "2026-11-30 12:00:00.000000")
            other.execute(
                "INSERT INTO api_key_secrets (digest, key_id, created_at) VALUES (?, ?, ?)", row
            )
        said = complaint("db", "copy", "--to", f"sqlite:///{tmp_path}/other.db")
        assert said.startswith("DATABASE_URL: a row of api_key_secrets refers to one")
        assert not any(content(sa.make_url(f"sqlite:///{tmp_path}/other.db")).values())


@pytest.mark.usefixtures("yours")
def test_what_comes_out_otherwise_is_not_kept(
    database_url: sa.URL, target: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database_url)
    monkeypatch.setattr("app.transfer.copy._fingerprint", id)
    assert "came out otherwise" in complaint("db", "copy", "--to", spelled(target))
    assert not any(content(target).values())


# It stops in the middle until there is a file `go`.
SLOWLY = """
import pathlib, time
from app.transfer import copy
from app.cli import main
rows = copy._rows
def slowly(connection, table):
    for some in rows(connection, table):
        yield some
        pathlib.Path(table.name).touch()
        while table.name == "api_key_usage" and not pathlib.Path("go").exists():
            time.sleep(0.01)
copy._rows = slowly
main()
"""


def start_copy(target: sa.URL, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "db", "copy", "--to", spelled(target)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def holds_writers_off(url: sa.URL) -> bool:
    try:
        with transaction(connect(url, timeout=0.3), write=True):
            return False
    except StoreUnavailableError:
        return True


@pytest.mark.parametrize("end", [None, signal.SIGINT, signal.SIGKILL], ids=str)
def test_servers_go_on_while_it_runs_and_nothing_is_left_half(
    database_url: sa.URL, target: sa.URL, tmp_path: Path, end: signal.Signals | None
) -> None:
    good, _, bad, *_ = worth = [*fill(database_url)]
    before = content(database_url)
    with started(Replica()) as [replica]:
        replica.until(200, good)
        with ExitStack() as stack:
            copying = stack.enter_context(start_copy(target, tmp_path))
            stack.callback(copying.kill)
            poller = Poller(replica)
            poller.key = good
            stack.enter_context(poller)
            wait_for((tmp_path / "api_key_usage").exists)
            assert holds_writers_off(database_url)
            with pytest.raises(StoreUnavailableError):  # which is 503 over HTTP
                KeyService(load_settings()).create("x", actor="x")
            replica.until(200, good)  # on a new connection, since the old one was idle
            assert [replica.request(secret) for secret in worth] == [200, 200, NO, NO]
            assert copying.poll() is None
            copying.send_signal(end) if end else (tmp_path / "go").touch()
            _, said = copying.communicate(timeout=PATIENCE)
        assert {*poller.statuses(good)} == {200}
        assert [replica.request(secret) for secret in (good, bad)] == [200, NO]
    assert copying.returncode == {None: 0, signal.SIGINT: 130, signal.SIGKILL: -9}[end], said
    if end:
        assert not any(content(target).values())
        assert not holds_writers_off(database_url)
        assert run("db", "copy", "--to", spelled(target)).exit_code == 0
    if end == signal.SIGINT:
        assert said.splitlines()[-1] == "Interrupted: nothing has changed."
    assert content(target)["api_key_events"] == before["api_key_events"]


def test_long_work_shows_a_bar_in_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [*progress(range(3))] == [0, 1, 2]
    assert capsys.readouterr().err == ""
    main, side = pty.openpty()
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        assert [*progress(range(3), 3)] == [0, 1, 2]
        monkeypatch.undo()
    said = b""
    with suppress(OSError):  # how the end of a terminal is told
        while some := os.read(main, 10_000):
            said += some
    assert b"100%" in said
    os.close(main)
