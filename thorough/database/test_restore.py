"""What comes back: a restore in pieces, a standby, and a role that owns nothing."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa

from app.auth import GuardedAPI
from app.auth.database.engine import connect
from app.auth.database.migrate import upgrade
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.keys.service import KeyService, open_service
from app.auth.store.cache import DatabaseKeyStore
from app.constants import MISSING_KEY_STATUS
from app.settings import load_settings
from tests.callers import status_of
from tests.thorough.databases import TOOLS, PostgreSQLDatabases
from tests.thorough.replicas import PATIENCE, Replica, started
from tests.thorough.services import make_service, patient_settings
from tests.thorough.test_store import forget_when_it_asked, make

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


@pytest.mark.parametrize("is_newer", [False, True], ids=["older", "newer"])
async def test_while_a_backup_comes_back_piece_by_piece_everybody_waits_or_gets_the_truth(
    postgresql_url: sa.URL, is_newer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pg_restore --clean` without a transaction. The server knows more than the backup, or less."""
    monkeypatch.setattr("app.auth.store.cache.RECHECK", 0.0)
    service = make_service(patient_settings())
    store, key_service = service.keys, service.state.key_service
    assert isinstance(store, DatabaseKeyStore)
    (kept, kept_secret), (revoked, revoked_secret) = make(key_service), make(key_service)
    truth = {kept_secret: 200, make(key_service)[1]: 200}  # of the backup
    await store.refresh()
    assert [await status_of(service, secret) for secret in (kept_secret, revoked_secret)] == [200] * 2

    def change() -> None:
        truth[key_service.rotate(kept.id, actor="test").key.encode()] = 200 if is_newer else NO
        truth[make(key_service)[1]] = 200 if is_newer else NO
        key_service.revoke(revoked.id, actor="test")
        truth[revoked_secret] = NO if is_newer else 200

    def back_up() -> list[str]:
        options = ("--inserts", "--clean", "--if-exists", "--no-owner")
        return pieces(tool("pg_dump", postgresql_url, *options))

    if is_newer:
        change()
        dump = back_up()
    else:
        dump = back_up()
        change()
        await store.refresh()
    engine = sa.create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    has_begun, seen = False, set[int]()
    with engine.connect() as connection:
        for piece in dump:
            connection.exec_driver_sql(piece.replace("%", "%%"))
            has_begun |= "DROP TABLE IF EXISTS public.api_key_events" in piece
            for secret, right in truth.items():
                forget_when_it_asked(store)  # as if the bound had passed
                status = await status_of(service, secret)
                assert not has_begun or status in (right, 503), piece
                seen.add(status)
    engine.dispose()
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


@pytest.fixture
def standby(postgresql_url: sa.URL) -> Iterator[sa.URL]:
    """A copy of the server that follows it and answers queries."""
    postgresql_url = postgresql_url.set(host=None, query=postgresql_url.query)
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        data = Path(folder) / "data"
        tool("pg_basebackup", postgresql_url, f"--pgdata={data}", "--write-recovery-conf")
        user = None
        if os.geteuid() == 0:  # as which PostgreSQL does not run
            user = "embedded_postgres"
            for path in (Path(folder), *data.rglob("*"), data):
                os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        free.close()
        control = [f"{TOOLS / 'pg_ctl'}", f"--pgdata={data}", "--wait"]
        options = f"-h 127.0.0.1 -p {port} -k {folder}"
        start = [*control, f"--log={data / 'log'}", f"--options={options}", "start"]
        subprocess.run(start, check=True, user=user, stdout=subprocess.DEVNULL, timeout=PATIENCE)
        try:
            yield postgresql_url.set(host="127.0.0.1", port=port, query={})
        finally:
            stop = [*control, "--mode=immediate", "stop"]
            subprocess.run(stop, check=True, user=user, stdout=subprocess.DEVNULL, cwd=folder)


def test_a_standby_stops_the_start(standby: sa.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", standby.render_as_string(hide_password=False))
    with pytest.raises(StoreUnavailableError) as error:
        open_service(load_settings())
    print(error.value)
    assert 0
