"""Databases as they are run: backups that come back, standbys, roles, hosts."""

import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa

from app.auth.database import engine
from app.auth.database.engine import transaction
from app.auth.database.migrate import upgrade
from app.auth.errors import NotFoundError, SettingsError, StoreUnavailableError
from app.auth.key import new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.auth.usage import report
from app.constants import MISSING_KEY_STATUS
from app.settings import load_settings
from tests.callers import status_of
from tests.thorough.commands import complaint, run
from tests.thorough.databases import TOOLS, PostgreSQLDatabases, SQLiteDatabases, remove
from tests.thorough.replicas import Poller, Replica, started
from tests.thorough.services import make_service, patient_settings
from tests.thorough.test_store import forget_when_it_asked, make, until_status

NO = MISSING_KEY_STATUS


@pytest.fixture
def postgresql_url(
    postgresql_databases: PostgreSQLDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sa.URL]:
    with postgresql_databases.empty(tmp_path) as url:
        upgrade(url)
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        yield url


def tool(name: str, url: sa.URL, *options: str) -> str:
    """The output of a program of PostgreSQL's."""
    uri = url.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [f"{TOOLS / name}", f"--dbname={uri}", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# A restore in pieces.


def pieces(dump: str) -> list[str]:
    """The statements of a dump in their order. Each brings a row, a table or a rule."""
    lines = (line for line in dump.splitlines() if not line.startswith(("--", "\\")))
    return [piece for piece in "\n".join(lines).split(";\n") if piece.strip()]


@pytest.mark.parametrize("is_data_only", [False, True], ids=["all", "data only"])
@pytest.mark.parametrize("backup", ["older", "newer", "as old"])
async def test_while_a_backup_comes_back_piece_by_piece_everybody_waits_or_gets_the_truth(
    postgresql_url: sa.URL, backup: str, is_data_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pg_restore --clean` without a transaction. The backup is older than what the server knows, or
    newer, or as old, and then the server has to look up each key."""
    monkeypatch.setattr("app.auth.store.cache.RECHECK", 0.0)
    service = make_service(patient_settings())
    store, key_service = service.keys, service.state.key_service
    assert isinstance(store, DatabaseKeyStore)
    (kept, kept_secret), (revoked, revoked_secret) = make(key_service), make(key_service)
    truth = dict.fromkeys((kept_secret, revoked_secret, make(key_service)[1]), 200)
    await store.refresh()
    assert [await status_of(service, secret) for secret in (kept_secret, revoked_secret)] == [
        200
    ] * 2

    def change() -> None:
        truth[key_service.rotate(kept.id, actor="test").key.encode()] = (
            200 if backup == "newer" else NO
        )
        truth[make(key_service)[1]] = 200 if backup == "newer" else NO
        key_service.revoke(revoked.id, actor="test")
        truth[revoked_secret] = NO if backup == "newer" else 200

    def back_up() -> list[str]:
        if is_data_only:
            empty = "SET session_replication_role = replica;\nTRUNCATE api_keys CASCADE;\n"
            options = ["--data-only", "--rows-per-insert=1000", "--exclude-table=api_keys_schema"]
            return pieces(empty + tool("pg_dump", postgresql_url, *options))
        options = ["--inserts", "--clean", "--if-exists", "--no-owner"]
        return pieces(tool("pg_dump", postgresql_url, *options))

    if backup == "newer":
        change()
    dump = back_up()
    if backup == "older":
        change()
        await store.refresh()
    owner = sa.create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    has_begun, seen = False, set[int]()
    with owner.connect() as connection:
        for piece in dump:
            connection.exec_driver_sql(piece.replace("%", "%%"))
            has_begun |= ("INSERT" if is_data_only else "EXISTS public.api_key_events") in piece
            for secret, right in truth.items() if has_begun else ():
                if backup == "as old":
                    store._secrets.clear()
                else:
                    forget_when_it_asked(store)  # as if the bound had passed
                status = await status_of(service, secret)
                assert status in (right, 503), piece
                seen.add(status)
    owner.dispose()
    assert 503 in seen
    await store.refresh()
    for secret, right in truth.items():
        assert await status_of(service, secret) == right


def test_a_service_follows_a_backup_that_pg_restore_brings_back(
    postgresql_url: sa.URL, tmp_path: Path
) -> None:
    key_service = KeyService(load_settings())
    kept, other = (key_service.create("key", actor="test") for _ in range(2))
    file = f"{tmp_path / 'backup'}"
    tool("pg_dump", postgresql_url, "--format=custom", f"--file={file}")
    lost = key_service.create("key", actor="test")
    with started(Replica()) as [server]:
        for issued in (kept, lost):
            server.until(200, issued.key)
        tool("pg_restore", postgresql_url, "--clean", "--if-exists", file)
        for issued in (kept, other):
            server.until(200, issued.key)
        server.until(NO, lost.key)
        server.until(200, key_service.create("key", actor="test").key)


# A standby.


class Copy:
    """A copy of the server, in a folder of its own. At first it is a standby."""

    def __init__(self, of: sa.URL, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = of.set(host="127.0.0.1", port=port, query={})
        self._data, self._user, self._options = folder / "data", None, f"-p {port} -k {folder}"
        tool(
            "pg_basebackup",
            of,
            f"--pgdata={self._data}",
            "--write-recovery-conf",
            "--checkpoint=fast",
        )
        if os.geteuid() == 0:  # as which PostgreSQL does not run
            self._user = "embedded_postgres"
            for path in (folder, self._data, *self._data.rglob("*")):
                shutil.chown(path, self._user)

    def start(self) -> None:
        self.run(f"--log={self._data / 'log'}", f"--options=-h 127.0.0.1 {self._options}", "start")

    def run(self, *command: str) -> None:
        control = [f"{TOOLS / 'pg_ctl'}", f"--pgdata={self._data}", "--wait", *command]
        output, folder = subprocess.DEVNULL, self._data.parent
        subprocess.run(control, check=True, user=self._user, stdout=output, cwd=folder)

    def become_standby(self) -> None:
        self.run("--mode=fast", "stop")
        (self._data / "standby.signal").touch()
        self.start()


@pytest.fixture
def copy(postgresql_url: sa.URL) -> Iterator[Copy]:
    with TemporaryDirectory() as folder:
        copy = Copy(postgresql_url, Path(folder))
        copy.start()
        try:
            yield copy
        finally:
            copy.run("--mode=immediate", "stop")


async def test_a_standby_stops_the_start_and_lets_nobody_in(
    copy: Copy, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", copy.url.render_as_string(hide_password=False))
    with pytest.raises(StoreUnavailableError, match="server is in hot standby mode"):
        make_service(load_settings())
    copy.run("promote")
    service, secret = make_service(patient_settings()), secrets[0].encode()
    store = service.keys
    assert isinstance(store, DatabaseKeyStore)
    assert await status_of(service, secret) == 200
    copy.become_standby()
    forget_when_it_asked(store)
    assert await status_of(service, secret) == 503
    # A pooler may lead an open connection to another server.
    pooled = {**engine.OPTIONS, "target_session_attrs": "any"}
    monkeypatch.setattr(engine, "OPTIONS", pooled)
    behind_pooler = DatabaseKeyStore(load_settings())
    with pytest.raises(StoreUnavailableError, match="standby"):
        await behind_pooler.refresh()
    behind_pooler.close()
    copy.run("promote")
    await until_status(service, secret, 200)


# A role that owns nothing.

# docs/settings.md shows them.
GRANTS = """
GRANT USAGE ON SCHEMA public TO service;
GRANT SELECT, INSERT, UPDATE ON api_keys, api_key_secrets TO service;
GRANT SELECT, INSERT ON api_key_events TO service;
GRANT SELECT, INSERT, UPDATE, DELETE ON api_key_servers, api_key_usage, api_key_networks,
  api_key_refusals, api_key_findings TO service;
GRANT SELECT ON api_keys_schema TO service;
"""
GRANTS_OF_LIMITS = """
GRANT SELECT, INSERT, UPDATE, DELETE ON api_key_hits, api_key_quotas TO service;
"""


@pytest.fixture
def role(postgresql_url: sa.URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A role named `service`, which DATABASE_URL names from then on."""
    owner = sa.create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE service LOGIN")
        assert run("db", "upgrade").exit_code == 0
        for grant in f"{GRANTS}{GRANTS_OF_LIMITS}".split(";\n"):
            if grant.strip():
                connection.exec_driver_sql(grant)
        url = postgresql_url.set(username="service")
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        yield "service"
        connection.exec_driver_sql("DROP OWNED BY service")
        connection.exec_driver_sql("DROP ROLE service")
    owner.dispose()


async def test_a_role_that_owns_nothing_is_enough(role: str, secrets: list[str]) -> None:
    service = make_service(patient_settings())
    store, key_service = service.keys, service.state.key_service
    assert isinstance(store, DatabaseKeyStore)
    async with AsyncExitStack() as stack:
        for each in (store.follow(), *(policy.running() for policy in key_service.policies)):
            await stack.enter_async_context(each)
        assert await status_of(service, secrets[0].encode()) == 200
        assert await status_of(service, new_secret().encode()) == NO
        limits = {"limits": ["1/minute", "5/month"]}
        limited = key_service.create("limited", restrictions=limits, actor="test").key.encode()
        assert [await status_of(service, limited) for _ in range(2)] == [200, 429]
        issued, _ = make(key_service)
        rotated = key_service.rotate(issued.id, actor="test")
        assert await status_of(service, rotated.key.encode()) == 200
        await store.flush()
        key_service.revoke(issued.id, actor="test")
        await store.refresh()
        assert await status_of(service, rotated.key.encode()) == NO
    for command in ("keys list", "keys usage", "keys doctor", "keys audit", "db thin"):
        assert not run(*command.split()).stderr.startswith("DATABASE_URL")
    assert report.of_key(key_service.engine, issued.id, timedelta(days=1)).served == 1
    for table in ("api_keys", "api_key_secrets", "api_key_events"):
        with (
            pytest.raises(StoreUnavailableError, match="must be owner"),
            transaction(key_service.engine) as connection,
        ):
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")


# The file of SQLite.


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long `db restore` waits for servers, in these tests half a second."""
    pauses = list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(min(seconds, 0.5))

    monkeypatch.setattr("app.auth.cli.context.sleep", pause)
    return pauses


@pytest.fixture
def file(
    sqlite_databases: SQLiteDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    with sqlite_databases.fresh(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", f"{url}")
        yield Path(f"{url.database}")


def test_a_service_follows_what_db_restore_brings_back(
    file: Path, tmp_path: Path, pauses: list[float]
) -> None:
    key_service, copy = KeyService(load_settings()), tmp_path / "copy"
    (kept, _), (revoked, _) = make(key_service), make(key_service)
    with started(*(Replica(KEY_MAX_STALENESS="0.4") for _ in range(2))) as servers:
        for server in servers:
            server.until(200, kept.key)
        assert run("db", "backup", f"{copy}").exit_code == 0
        assert [each.name for each in tmp_path.glob("copy*")] == ["copy"]
        assert copy.stat().st_mode & 0o777 == 0o600
        key_service.revoke(revoked.id, actor="test")
        lost = key_service.create("key", actor="test")
        for server in servers:
            server.until(200, lost.key)
        before = copy.read_bytes()
        with Poller(servers[0]) as poller:
            poller.key = kept.key
            assert run("db", "restore", f"{copy}").exit_code == 0
        assert set(poller.statuses(kept.key)) <= {200, 503}
        assert pauses == [0.4]
        for server in servers:
            asked = [server.request(issued.key) for issued in (kept, revoked, lost)]
            assert asked == [200, 200, NO]
    assert copy.read_bytes() == before
    assert [each.name for each in tmp_path.glob("copy*")] == ["copy"]


def test_a_backup_comes_back_where_nothing_is_left(file: Path, tmp_path: Path) -> None:
    key_service, copy = KeyService(load_settings()), tmp_path / "copy"
    issued, _ = make(key_service)
    run("db", "backup", f"{copy}")
    remove(file)
    assert run("db", "restore", f"{copy}").exit_code == 0
    assert key_service.get(issued.id).status == "active"


def test_a_backup_with_another_schema_is_refused(file: Path, tmp_path: Path) -> None:
    issued, _ = make(key_service := KeyService(load_settings()))
    run("db", "backup", f"{tmp_path / 'copy'}")
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        copy.execute("UPDATE api_keys_schema SET version_num = '9999'")
        copy.commit()
    said = complaint("db", "restore", f"{tmp_path / 'copy'}")
    assert f"{tmp_path / 'copy'} has the schema 9999; the service needs " in said
    assert key_service.get(issued.id).status == "active"


def test_a_damaged_backup_is_refused(file: Path, tmp_path: Path) -> None:
    issued, _ = make(key_service := KeyService(load_settings()))
    run("db", "backup", f"{tmp_path / 'copy'}")
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_api_key_secrets_key_id'"
        (page,) = copy.execute(query).fetchone()
        (size,) = copy.execute("PRAGMA page_size").fetchone()
    content = (tmp_path / "copy").read_bytes()
    start, end = (page - 1) * size, page * size
    index = content[start:end].replace(issued.id.encode(), issued.id[::-1].encode())
    assert index != content[start:end]
    (tmp_path / "copy").write_bytes(content[:start] + index + content[end:])
    assert "copy is damaged: " in complaint("db", "restore", f"{tmp_path / 'copy'}")
    assert key_service.get(issued.id).status == "active"


def test_a_wal_is_known_by_the_number_of_its_file_alone(file: Path) -> None:
    """The number of the device may be another one after a reboot."""
    make(KeyService(load_settings()))
    assert Path(f"{file}-inode").read_text() == f"{file.stat().st_ino}"


def test_a_note_that_cannot_be_read_is_made_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user may have made it, of a file that is gone."""
    note, key_service = Path(f"{file}-inode"), KeyService(load_settings())
    make(key_service)
    note.write_text("1")
    read = Path.read_text

    def refused(path: Path, **options: str) -> str:
        if path == note:
            raise PermissionError(13, "Permission denied")
        return read(path, **options)

    with monkeypatch.context() as of_another_user:
        of_another_user.setattr(Path, "read_text", refused)
        make(key_service)
    assert note.read_text() == f"{file.stat().st_ino}"


def test_what_is_no_backup_changes_nothing(file: Path, tmp_path: Path) -> None:
    issued, _ = make(key_service := KeyService(load_settings()))
    (tmp_path / "text").write_text("swordfish")
    (tmp_path / "empty").touch()
    for name, why in (
        ("text", "file is not a database"),
        ("empty", "no such table: api_keys_schema"),
        ("nothing", "unable to open database file"),
    ):
        said = complaint("db", "restore", f"{tmp_path / name}")
        assert said == f"{tmp_path / name}: {why}; nothing has changed"
    assert "File exists" in complaint("db", "backup", f"{tmp_path / 'text'}")
    assert (tmp_path / "text").read_text() == "swordfish"
    assert key_service.get(issued.id).status == "active"


def test_postgresql_has_commands_of_its_own(postgresql_url: sa.URL, tmp_path: Path) -> None:
    for command, words in (("backup", "pg_dump --format"), ("restore", "pg_restore --clean")):
        said = complaint("db", command, f"{tmp_path / 'copy'}")
        assert said.startswith(f"DATABASE_URL: for PostgreSQL, run: {words}")


def test_a_wal_of_another_file_is_not_added_to_a_backup(
    file: Path, tmp_path: Path, secrets: list[str]
) -> None:
    """A service is killed, so its -wal stays, and somebody puts a backup in the place of the file."""
    copy, key_service = tmp_path / "copy", KeyService(load_settings())
    with started(Replica()) as [server]:
        server.until(200, secrets[0])
        run("db", "backup", f"{copy}")
        lost, _ = make(key_service)
        server.until(200, lost.key)
        server.process.kill()
    wal = Path(f"{file}-wal")
    assert wal.stat().st_size
    before = copy.read_bytes()
    copy.replace(file)
    for command in ("keys list", "db upgrade"):
        assert f"{wal.name} may be of another file" in complaint(*command.split())
    assert file.read_bytes() == before
    moved = file.replace(tmp_path / "moved")
    remove(file)
    assert run("db", "restore", f"{moved}").exit_code == 0
    assert [view.id for view in key_service.all()] != []
    with pytest.raises(NotFoundError):
        key_service.get(lost.id)


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_wal_of_the_same_file_is_not_lost(
    file: Path, secrets: list[str], tmp_path: Path, is_moved: bool
) -> None:
    key_service = KeyService(load_settings())
    with started(Replica()) as [server]:
        server.until(200, secrets[0])
        issued, _ = make(key_service)
        server.process.kill()
    wal, elsewhere = Path(f"{file}-wal"), tmp_path / "elsewhere"
    assert wal.stat().st_size
    if is_moved:  # such as a copy of the folder
        elsewhere.mkdir()
        for name in (file.name, wal.name):
            shutil.copyfile(file.parent / name, elsewhere / name)
        remove(file)
        assert run("db", "restore", f"{elsewhere / file.name}").exit_code == 0
    assert key_service.get(issued.id).status == "active"


# Where PostgreSQL is.


def test_of_several_hosts_the_primary_is_taken(
    copy: Copy, postgresql_url: sa.URL, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = f"host=127.0.0.1:{copy.url.port}&host={postgresql_url.query['host']}:5432"
    url = f"postgresql://{postgresql_url.username}@/{postgresql_url.database}?{hosts}"
    monkeypatch.setenv("DATABASE_URL", url)
    make_service(load_settings())  # which imports API_KEYS, so it can write


def test_a_service_file_and_variables_name_it(
    postgresql_url: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, host = tmp_path / "services", f"{postgresql_url.query['host']}"
    who = {"user": postgresql_url.username, "dbname": postgresql_url.database}
    lines = (f"{name}={value}" for name, value in {"host": host, **who}.items())
    file.write_text("\n".join(["[keys]", *lines]))
    monkeypatch.setenv("PGSERVICEFILE", f"{file}")
    monkeypatch.setenv("DATABASE_URL", "postgresql://?service=keys")
    make_service(load_settings())
    monkeypatch.setenv("PGHOST", host)
    monkeypatch.setenv("PGUSER", f"{postgresql_url.username}")
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///{postgresql_url.database}")
    make_service(load_settings())


def test_hosts_with_ports_are_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:swordfish@one:5432,two:5432/keys")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "/DATABASE?host=HOST:PORT&host=HOST:PORT" in f"{error.value}"
    assert "swordfish" not in f"{error.value}"
