"""Several real processes over one database, and a database that is in trouble."""

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest
import sqlalchemy as sa

from app.auth.database.engine import connect
from app.auth.database.migrate import upgrade
from app.auth.errors import StoreUnavailableError
from app.auth.keys.service import KeyService
from app.auth.keys.views import IssuedKey
from app.auth.store.cache import RECHECK, DatabaseKeyStore
from app.auth.usage import report
from app.constants import COMMAND, MISSING_KEY_STATUS
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import status_of
from tests.thorough.commands import keys
from tests.thorough.databases import PostgreSQLDatabases, SQLiteDatabases, postgresql
from tests.thorough.replicas import PATIENCE, ROOT, Poller, Replica, run, start, started, wait_for
from tests.thorough.services import RIGHTS, make_service
from tests.thorough.test_store import until_status


@pytest.fixture
def key_service(database_url: sa.URL) -> KeyService:
    """Of another process than any server."""
    return KeyService(load_settings())


def manager(key_service: KeyService) -> IssuedKey:
    return key_service.create("manager", ["keys:manage"], actor="test")


# Several processes.


def test_once_a_revocation_has_returned_no_server_accepts_the_key(
    key_service: KeyService, secrets: list[str]
) -> None:
    servers = [Replica(KEY_MAX_STALENESS=bound) for bound in ("0.2", "1")]
    servers.append(Replica("--lifespan", "off"))  # of which nobody knows
    # None of them counts on the bound of the command itself.
    command = ("-m", "app", "keys")
    ways: list[Callable[[str], object]] = [
        lambda key: run(*command, "revoke", key, KEY_MAX_STALENESS="0.1"),
        lambda key: run(*command, "rotate", key, "--overlap", "0s", KEY_MAX_STALENESS="0.1"),
        lambda key: wait_for(
            lambda: servers[-1].request(secrets[0], "POST", f"/api-keys/{key}/revoke") == 200
        ),
    ]
    with started(*servers), ExitStack() as stack:
        pollers = [stack.enter_context(Poller(server)) for server in servers]
        servers.append(Replica())  # which starts meanwhile
        stack.callback(servers[-1].stop)
        pollers.append(stack.enter_context(Poller(servers[-1])))
        for revoke in ways:
            issued = manager(key_service)
            time.sleep(RECHECK)
            for poller in pollers:
                poller.key = issued.key
            accepting = pollers if revoke is not ways[0] else pollers[:-1]
            for poller in accepting:
                wait_for(partial(lambda each: 200 in each.statuses(each.key), poller))
            for poller in pollers:  # a new key is accepted at once
                assert MISSING_KEY_STATUS not in poller.statuses(issued.key)

            revoke(issued.id)

            returned_at = time.monotonic()
            for poller in pollers:
                wait_for(
                    partial(
                        lambda each, at: len(each.statuses(each.key, at)) > 20, poller, returned_at
                    )
                )
                assert 200 not in poller.statuses(issued.key, returned_at)


# How a key that may do all that RIGHTS asks for may do less, and how it gets that back: what the
# command is told, and what the service is.
MANY: Any = {"limits": ["10000/second"]}  # requests, which no test sends
ROUNDS = int(os.environ.get("TEST_ROUNDS", "1"))  # of each way, on each database
WAYS: dict[str, tuple[tuple[list[str], Any], tuple[list[str], Any]]] = {
    "scope": (
        (["--remove-scope", "rights"], {"scopes": None}),
        (["--add-scope", "rights"], {"scopes": ["rights"]}),
    ),
    "owner": ((["--owner", "other"], {"owner": None}), (["--owner", "acme"], {"owner": "acme"})),
    "address": (
        (["--from", "10.0.0.0/8"], {"networks": ["10.0.0.0/8"]}),
        (["--from", ""], {"networks": None}),
    ),
    "limit": ((["--limit", "1/hour"], {"limits": ["1/hour"]}), (["--limit", "10000/second"], MANY)),
}


def test_once_what_narrows_or_widens_a_key_has_returned_every_server_follows(
    key_service: KeyService, secrets: list[str]
) -> None:
    servers = [Replica(KEY_MAX_STALENESS="0.1"), Replica(KEY_MAX_STALENESS="0.2")]
    servers.append(Replica("--lifespan", "off"))
    key_service = KeyService(load_settings(), make_policies(load_settings()))
    made = partial(key_service.create, "key", ["rights"], restrictions=MANY, owner="acme", actor="")

    def ask(method: str, path: str, patch: Any = None) -> None:
        servers[0].close()  # it may have hung up meanwhile
        assert servers[0].request(secrets[0], method, f"/api-keys/{path}", patch) == 200

    def answers_from_now() -> list[set[int]]:
        """Those of each server to requests that are sent after this call."""
        returned_at = time.monotonic()
        for each in pollers:
            wait_for(partial(lambda each: len(each.statuses(each.key, returned_at)) > 3, each))
        return [{*each.statuses(each.key, returned_at)} for each in pollers]

    def narrowed() -> None:
        for statuses in answers_from_now():
            assert 200 not in statuses

    def widened() -> None:
        for statuses, each in zip(answers_from_now(), pollers, strict=True):
            assert statuses <= {200, 503}
            each.answers.clear()
            wait_for(partial(lambda each: 200 in each.statuses(each.key), each))

    with started(*servers), ExitStack() as stack:
        pollers = [stack.enter_context(Poller(server, RIGHTS)) for server in servers]
        issued = made()
        for each in pollers:
            each.key = issued.key
            wait_for(partial(lambda each: 200 in each.statuses(each.key), each))
        for _ in range(ROUNDS):
            for (options, patch), (back, patch_back) in WAYS.values():
                keys("update", issued.id, *options)
                narrowed()
                keys("update", issued.id, *back)
                widened()
                ask("PATCH", issued.id, patch)
                narrowed()
                ask("PATCH", issued.id, patch_back)
                widened()
            keys("pause", issued.id)
            narrowed()
            ask("POST", f"{issued.id}/resume")
            widened()
            ask("POST", f"{issued.id}/pause")
            narrowed()
            keys("resume", issued.id)
            widened()
        for by_command in [True, False] * ROUNDS:
            # Later than it was to be, and then sooner.
            first_end = datetime.now(UTC) + timedelta(seconds=3)
            issued = made(expires_at=first_end)
            for each in pollers:
                each.key = issued.key
            if by_command:
                keys("update", issued.id, "--no-expiry")
            else:
                ask("PATCH", issued.id, {"expires_at": None})
            widened()
            wait_for(lambda: datetime.now(UTC) > first_end)  # noqa: B023
            widened()
            end = datetime.now(UTC) + timedelta(seconds=1)
            if by_command:
                keys("update", issued.id, "--expires-at", end.isoformat())
            else:
                ask("PATCH", issued.id, {"expires_at": end.isoformat()})
            wait_for(lambda: datetime.now(UTC) > end)  # noqa: B023
            narrowed()


def test_a_server_that_is_killed_or_stopped_loses_nothing(key_service: KeyService) -> None:
    kept, lost = manager(key_service), manager(key_service)
    with started(Replica()) as [server]:
        server.until(200, kept.key)
        server.until(200, lost.key)
        server.process.kill()
        key_service.revoke(lost.id, actor="test")
    with started(Replica()) as [server]:
        server.until(200, kept.key)
        assert server.request(lost.key) == MISSING_KEY_STATUS
    # A graceful stop writes when keys were last used.
    assert key_service.get(kept.id).last_used_at


def call(server: Replica, key: str, times: int) -> None:
    server.close()  # it may have hung up meanwhile
    for _ in range(times):
        assert server.request(key) == 200


def total(key_service: KeyService, id: str) -> int:
    return report.of_key(key_service.engine, id, timedelta(days=1)).total


def test_usage_is_exact_over_workers_and_replicas_that_are_stopped(key_service: KeyService) -> None:
    issued, many = manager(key_service), 200
    with started(Replica("--workers", "2"), Replica()) as servers:
        calls = [
            threading.Thread(target=call, args=(server, issued.key, many)) for server in servers
        ]
        for each in calls:
            each.start()
        for each in calls:
            each.join()
    assert total(key_service, issued.id) == 2 * many


def test_a_server_that_is_killed_takes_what_it_has_not_written_and_no_more(
    sqlite_databases: SQLiteDatabases, tmp_path: Path
) -> None:
    with sqlite_databases.fresh(tmp_path), started(Replica(TEST_FLUSH_EVERY="1")) as [server]:
        key_service = KeyService(load_settings())
        issued = manager(key_service)
        time.sleep(RECHECK)
        call(server, issued.key, 10)
        wait_for(lambda: total(key_service, issued.id) == 10)
        call(server, issued.key, 10)
        server.process.kill()
        server.process.wait(PATIENCE)
        assert 10 <= total(key_service, issued.id) <= 20


OPENS = """
import sys
while True:
    for suffix in ("", "-wal", "-shm"):
        try:
            open(sys.argv[1] + suffix, "rb").close()
        except FileNotFoundError:
            pass
"""


def test_a_server_under_writes_lives_through_whatever_else_opens_its_file(
    sqlite_databases: SQLiteDatabases, secrets: list[str], tmp_path: Path
) -> None:
    with sqlite_databases.fresh(tmp_path) as url, started(Replica()) as [server]:
        key_service = KeyService(load_settings())
        opens = start("-c", OPENS, f"{url.database}")
        try:
            for _ in range(3):
                listing = start("-m", "app", "keys", "list")
                while listing.poll() is None:
                    issued = manager(key_service)
                    server.until(200, issued.key)
                    key_service.revoke(issued.id, actor="test")
                    server.until(MISSING_KEY_STATUS, issued.key)
                assert listing.returncode == 0
                assert server.request(secrets[0]) == 200
        finally:
            opens.kill()
            opens.wait()
        assert server.process.poll() is None
        with closing(sqlite3.connect(f"{url.database}")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_server_that_finds_an_older_schema_says_which_command_to_run(
    monkeypatch: pytest.MonkeyPatch, postgresql_databases: PostgreSQLDatabases, tmp_path: Path
) -> None:
    with postgresql_databases.empty(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        server = subprocess.run(
            [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert (server.returncode, server.stdout) == (3, "")
    assert server.stderr == (
        f"DATABASE_URL: no keys were ever kept there; begin with: uv run {COMMAND} db upgrade\n"
    )


# A database in trouble.


class OwnPostgreSQL:
    """A server of our own, to be stopped and started, or frozen."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._frozen: list[int] = []
        self.start()
        upgrade(self.url)

    def start(self) -> None:
        self.url = self._stack.enter_context(postgresql(self._folder))

    def stop(self) -> None:
        self._stack.close()

    def freeze(self) -> None:
        """Connections stay open, and new ones are taken, but nobody says a word."""
        with connect(self.url).begin() as connection:
            processes = connection.exec_driver_sql("SELECT pid FROM pg_stat_activity").scalars()
        postmaster = (self._folder / "postmaster.pid").read_text().splitlines()[0]
        self._frozen = [int(postmaster), *processes]
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(process, number)


@pytest.fixture(scope="module")
def own_postgresql() -> Iterator[OwnPostgreSQL]:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.delenv("TEST_DATABASE_URL", raising=False)
        server = OwnPostgreSQL(Path(folder))
        yield server
        server.stop()


@pytest.fixture
def postgresql_in_trouble(
    own_postgresql: OwnPostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> OwnPostgreSQL:
    url = own_postgresql.url.render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    return own_postgresql


def test_stopped_and_started_again_the_database_is_missed_only_meanwhile(
    postgresql_in_trouble: OwnPostgreSQL, secrets: list[str]
) -> None:
    with started(Replica()) as [server]:
        server.until(200, secrets[0])
        postgresql_in_trouble.stop()
        # Never access on old knowledge beyond the bound, nor an answer of another kind.
        time.sleep(1)
        assert [server.request(secrets[0]) for _ in range(50)] == [503] * 50
        postgresql_in_trouble.start()
        server.until(200, secrets[0])


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX: nothing else freezes")
async def test_a_database_that_freezes_is_missed_only_meanwhile(
    postgresql_in_trouble: OwnPostgreSQL, secrets: list[str]
) -> None:
    service = make_service(load_settings())
    async with service.keys.follow():
        await until_status(service, secrets[0].encode(), 200)
        postgresql_in_trouble.freeze()
        try:
            await asyncio.sleep(1)
            asked_at = time.monotonic()
            for secret in secrets:
                assert await status_of(service, secret.encode()) == 503
            # Within the bound of a second each: the rest is for a busy machine.
            assert time.monotonic() - asked_at < 30
        finally:
            postgresql_in_trouble.thaw()
        await until_status(service, secrets[0].encode(), 200)


class Proxy:
    """Between a service and PostgreSQL: connections that stay open can go dead without a word."""

    def __init__(self, url: sa.URL) -> None:
        query = {**url.query}
        host, port = query.pop("host", url.host or "localhost"), url.port or 5432
        self._upstream: Any = (
            f"{host}/.s.PGSQL.{port}" if f"{host}".startswith("/") else (host, port)
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        address, own_port = self._listener.getsockname()
        self.url = url.set(host=address, port=own_port, query=query)
        self._lines: list[socket.socket] = []
        self._dead: set[socket.socket] = set()
        self.fatal = b"\0nothing"  # what kills a connection on which it is said
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # the end
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(
                    socket.AF_UNIX if isinstance(self._upstream, str) else socket.AF_INET
                )
                far.connect(self._upstream)
                self._lines += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.fatal in data:
                    self._dead |= {source, target}
                if source not in self._dead:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def deaden(self) -> None:
        """Those that are open; others can be made."""
        self._dead.update(self._lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._lines):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def proxy(
    postgresql_databases: PostgreSQLDatabases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    with postgresql_databases.fresh(tmp_path) as url, Proxy(url) as proxy:
        monkeypatch.setenv("DATABASE_URL", proxy.url.render_as_string(hide_password=False))
        yield proxy


async def test_connections_that_are_half_dead_are_left_behind(
    proxy: Proxy, secrets: list[str]
) -> None:
    service = make_service(load_settings())
    key_service: KeyService = service.state.key_service
    async with service.keys.follow():
        issued = manager(key_service)
        secret = issued.key.encode()
        await until_status(service, secret, 200)
        proxy.deaden()
        key_service.revoke(issued.id, actor="test")
        # It asks, and hears that, on others.
        await until_status(service, secret, MISSING_KEY_STATUS)
        await until_status(service, secrets[0].encode(), 200)


@pytest.mark.parametrize("said", [b"pg_catalog.version", b"SET LOCAL", b"api_keys", b"COMMIT"])
def test_a_connection_that_dies_at_any_word_is_given_up(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    key_service = KeyService(load_settings())
    patient, key_service.engine = key_service.engine, connect(proxy.url, timeout=0.5)
    proxy.fatal = said
    with monkeypatch.context() as patched:
        patched.setattr("app.auth.database.engine.TIMEOUT", 0.5)
        with pytest.raises(StoreUnavailableError):
            list(key_service.all())
    proxy.fatal, key_service.engine = b"\0nothing", patient
    assert list(key_service.all()) == []


@contextmanager
def locked(url: sa.URL) -> Iterator[None]:
    """By another program, also for those who only read."""
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(f"{url.database}", timeout=PATIENCE)) as connection:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            yield
        return
    with connect(url, timeout=PATIENCE).begin() as connection:
        connection.exec_driver_sql("LOCK TABLE api_key_events IN ACCESS EXCLUSIVE MODE")
        yield


async def test_a_database_that_another_program_locks_is_missed_only_meanwhile(
    database_url: sa.URL, secrets: list[str]
) -> None:
    service = make_service(load_settings())
    secret = secrets[0].encode()
    async with service.keys.follow():
        await until_status(service, secret, 200)
        assert isinstance(service.keys, DatabaseKeyStore)
        service.keys.close()  # SQLite's lock is for one who is alone
        with locked(database_url):
            await until_status(service, secret, 503)
            await asyncio.sleep(0.2)
            assert await status_of(service, secret) == 503
        await until_status(service, secret, 200)
