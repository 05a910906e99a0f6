"""What a server knows of the keys: never more than it should, never longer than it may."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from app.auth import GuardedRouter, require
from app.auth.database.models import LEAST_STALENESS
from app.auth.errors import StoreUnavailableError
from app.auth.key import digest, new_secret
from app.auth.usage.report import of_key
from app.constants import MISSING_KEY_STATUS
from tests.callers import Clock, ask, on, status_of, with_endpoints
from tests.conftest import Server

ME = "tests"
NEWS, LOOK_UP = "FROM api_key_events", "JOIN api_key_secrets"  # what a server asks with


@contextmanager
def statements(
    after: str = "none", do: Callable[[Any], object] = lambda _: None
) -> Iterator[list[str]]:
    """Those to any database. Once after such a one, before its answer is used, something is done."""
    seen, to_do = list[str](), [do]

    def note(_: object, cursor: Any, statement: str, *__: object) -> None:
        seen.append(statement)
        if after in statement and to_do:
            to_do.pop()(cursor)

    sa.event.listen(sa.Engine, "after_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", note)


@pytest.fixture
def file(database_url: sa.URL) -> Path:
    """The database."""
    return Path(f"{database_url.database}")


# What a request costs.


async def test_a_warm_request_costs_one_digest(
    clock: Clock, server: Server, secrets: list[str]
) -> None:
    assert await server.status(secrets[0]) == 200
    with patch("app.auth.access.rule.digest", side_effect=digest) as digests, statements() as seen:
        for _ in range(3):
            assert await server.status(secrets[0]) == 200
    assert (digests.call_count, seen) == (3, [])


# Changes by others.


async def test_an_answer_counts_from_when_it_was_asked_for(clock: Clock, server: Server) -> None:
    key = server.keys.create("key", actor=ME)
    assert await server.admits(key.key) == "+"
    clock.pass_time(60)

    def revoke(_: object) -> None:
        server.keys.revoke(key.id, actor=ME)
        clock.pass_time(LEAST_STALENESS)

    with statements(NEWS, revoke):
        await server.status(key.key)  # may still get in
    assert await server.status(key.key) == MISSING_KEY_STATUS


async def test_what_was_read_before_a_revocation_does_not_undo_it(server: Server) -> None:
    key, loop = server.keys.create("key", actor=ME), asyncio.get_running_loop()
    await server.store.refresh()

    def revoke(_: object) -> None:
        server.keys.revoke(key.id, actor=ME)
        asyncio.run_coroutine_threadsafe(server.store.refresh(), loop).result(60)

    with statements(LOOK_UP, revoke):
        assert await server.status(key.key) == MISSING_KEY_STATUS
    assert server.keys.get(key.id).status == "revoked"


async def test_a_restored_backup_is_noticed(server: Server, file: Path) -> None:
    kept, revoked = (server.keys.create(name, actor=ME) for name in ("kept", "revoked"))
    with closing(sqlite3.connect(file)) as now, closing(sqlite3.connect("backup")) as backup:
        now.backup(backup)
    lost = server.keys.create("lost", actor=ME)
    assert await server.admits(kept.key, revoked.key, lost.key) == "+++"
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    Path("backup").replace(file)
    server.keys.revoke(revoked.id, actor=ME)  # as many events as there were before
    assert await server.admits(kept.key, revoked.key, lost.key) == "+--"


async def test_who_revokes_waits_for_the_longest_bound_of_any_server(
    server: Server, start_server: Callable[..., Server], file: Path
) -> None:
    longest, other = server.keys.longest_staleness, start_server(key_max_staleness=2.5)
    async with server.store.follow(), other.store.follow():
        assert longest() == 60
    async with other.store.follow():
        assert longest() == 2.5
    assert longest() == LEAST_STALENESS
    file.rename("elsewhere")
    assert longest() == 60  # any server's, as far as one can tell


# The database out of reach.


async def test_out_of_reach_nobody_gets_in_beyond_the_bound_and_then_everybody_again(
    clock: Clock, server: Server, file: Path, secrets: list[str]
) -> None:
    assert await server.status(secrets[0]) == 200
    file.rename("elsewhere")
    clock.pass_time(LEAST_STALENESS)
    for secret in (*secrets, new_secret()):
        assert await server.status(secret) == 503
    assert await status_of(server.api) == MISSING_KEY_STATUS  # no key: nothing to ask
    assert not await server.store.is_reachable()
    with pytest.raises(StoreUnavailableError):
        server.keys.create("key", actor=ME)
    assert not file.exists()  # nobody has made another one
    Path("elsewhere").rename(file)
    assert await server.store.is_reachable()
    assert await server.status(secrets[0]) == 200


async def test_a_running_server_notices_it_without_being_asked_and_is_back_by_itself(
    start_server: Callable[..., Server],
    file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "app")
    server, give_up_at = start_server(key_max_staleness=1.0), time.monotonic() + 60
    refresh, faults = server.store.refresh, [ValueError("whatever it is")]

    async def is_said(text: str) -> bool:
        while text not in caplog.text:  # how soon depends on how busy this machine is
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.01)
        return True

    async def fail_once() -> None:
        if faults:
            raise faults.pop()
        await refresh()

    monkeypatch.setattr(server.store, "refresh", fail_once)
    async with server.store.follow():
        assert await is_said("whatever it is")
        assert await is_said("The database is back")
        caplog.clear()
        file.rename("elsewhere")
        assert await is_said("Nobody gets in until it is back")
        Path("elsewhere").rename(file)
        assert await is_said("The database is back")


# When keys were last used, and what time it is.


async def test_what_cannot_be_written_is_kept_and_what_was_written_counts_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise OSError("no space left")

    def lose_the_answer(cursor: Any) -> None:
        cursor.connection.execute("COMMIT")
        raise OSError("the line was cut")

    await server.store.flush(starting=True)
    faults = (("api_key_secrets", fail), ("api_key_usage", fail), ("batch=", lose_the_answer))
    issued = [server.keys.create("key", actor=ME) for _ in faults]
    for key, (after, do) in zip(issued, faults, strict=True):
        assert await server.admits(key.key) == "+"
        with statements(after, do):
            await server.store.flush()
    for why in ("no space left", "the line was cut"):
        assert why in caplog.text
    await server.store.flush()
    assert all(server.keys.get(key.id).last_used_at for key in issued)
    used = [of_key(server.keys.engine, key.id, timedelta(days=1)).served for key in issued]
    assert used == [1, 1, 1]


async def test_a_request_counts_once(server: Server, start_server: Callable[[], Server]) -> None:
    able, unable = (server.keys.create("key", scopes, actor="tests") for scopes in (["a:b"], []))
    for each in (server, start_server()):
        nested = with_endpoints(GuardedRouter(dependencies=[require("a:b")] * 2))
        each.api.include_router(on(GuardedRouter(dependencies=[require("a:b")]), nested))
        async with each.store.follow():  # what is left is written at the stop
            for type in ("http", "websocket"):
                await each.store.flush()
                for key in (able, unable, able):
                    await ask(each.api, key.key.encode(), path="/x", type=type)
    used = [of_key(server.keys.engine, key.id, timedelta(days=1)) for key in (able, unable)]
    assert [(each.served, each.refused, each.total) for each in used] == [(8, 0, 8), (0, 4, 4)]
