"""What the guard knows of the keys: never more than it should, never longer than it may."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import sqlalchemy as sa

from app.auth import GuardedAPI
from app.auth.access.rule import UNKNOWN
from app.auth.database.engine import connect
from app.auth.database.models import (
    LEAST_STALENESS,
    api_key_events,
    api_key_secrets,
    api_key_servers,
    api_keys,
)
from app.auth.errors import StoreUnavailableError
from app.auth.key import digest, new_secret
from app.auth.keys.service import KeyService
from app.auth.keys.views import IssuedKey
from app.auth.store.cache import RECHECK, DatabaseKeyStore, _keep_doing
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.settings import load_settings
from tests.callers import PROBE, Answer, ask, status_of
from tests.thorough.databases import Backup, SQLiteDatabases, remove
from tests.thorough.services import make_service, patient_settings
from tests.thorough.test_access import fake_clock, in_two_hours


@pytest.fixture
async def running(store: DatabaseKeyStore) -> AsyncGenerator[DatabaseKeyStore]:
    """The service's store at work, as while a server runs."""
    async with store.follow():
        yield store


@pytest.fixture
async def hasty(store: DatabaseKeyStore) -> AsyncGenerator[DatabaseKeyStore]:
    """The same, with the bound that the settings have by default."""
    store.max_staleness = 1.0
    async with store.follow():
        yield store


@contextmanager
def statements() -> Iterator[list[str]]:
    """Those to any database, by anybody."""
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


@contextmanager
def out_of_reach(*engines: sa.Engine) -> Iterator[None]:
    """As if nobody answered at the database's address."""
    down = sa.exc.OperationalError("", {}, OSError("down"))
    with ExitStack() as stack:
        for engine in engines:
            stack.enter_context(patch.object(engine, "connect", side_effect=down))
        yield


class Held:
    """A function that does its work, and then keeps the answer back until it may go on."""

    def __init__(self, function: Callable[..., Any], calls: int) -> None:
        self._function, self._calls = function, calls
        self.worked, self.go_on = threading.Event(), threading.Event()

    def hold_no_more(self) -> None:
        self._calls = 0

    def __call__(self, *arguments: Any) -> Any:
        result = self._function(*arguments)
        if self._calls:
            self._calls -= 1
            self.worked.set()
            self.go_on.wait()
        return result


@contextmanager
def held(store: DatabaseKeyStore, name: str, calls: int = 1) -> Iterator[Held]:
    queries = store._queries
    function = Held(getattr(queries, name), calls)
    try:
        with patch.object(queries, name, function):
            yield function
    finally:
        function.go_on.set()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """It comes true; how soon depends on how busy this machine is."""
    give_up_at = time.monotonic() + 30
    while not await condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


async def until_status(service: GuardedAPI, secret: bytes, status: int) -> None:
    async def answers_so() -> bool:
        return await status_of(service, secret) == status

    await until(answers_so)


def forget_when_it_asked(store: DatabaseKeyStore) -> None:
    """As if it had been long ago."""
    store._trusted_until = store._ask_strangers_at = -inf


def make(key_service: KeyService, name: str = "key") -> tuple[IssuedKey, bytes]:
    issued = key_service.create(name, actor="test")
    return issued, issued.key.encode()


# What a request costs.


async def test_a_warm_request_costs_one_digest_no_query_and_no_write(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    _, secret = make(key_service)
    assert await status_of(service, secret) == 200
    store._trusted_until = inf
    with patch("app.auth.access.rule.digest", side_effect=digest) as digests, statements() as seen:
        for _ in range(3):
            assert await status_of(service, secret) == 200
    assert (digests.call_count, seen) == (3, [])


async def test_unknown_keys_cost_no_query_and_no_memory(
    service: GuardedAPI, store: DatabaseKeyStore
) -> None:
    await store.refresh()
    store._trusted_until = store._ask_strangers_at = inf
    known = len(store._known)
    with statements() as seen:
        for _ in range(1000):
            assert await store.lookup(digest(new_secret().encode())) is UNKNOWN
        assert await status_of(service, new_secret().encode()) == MISSING_KEY_STATUS
    assert (seen, len(store._known), store._secrets, store.usage._used) == ([], known, {}, {})


async def test_a_key_that_was_not_asked_about_yet_costs_one_query(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    _, secret = make(key_service)
    await store.refresh()
    store._trusted_until, store._ask_strangers_at = inf, -inf
    with statements() as seen:
        assert await status_of(service, secret) == 200
    assert [statement for statement in seen if "api_key" in statement and "FROM" in statement] == [
        seen[-1]
    ]


async def test_many_who_wait_cost_one_question(
    service: GuardedAPI, store: DatabaseKeyStore, secrets: list[str]
) -> None:
    await store.refresh()
    store._trusted_until = -inf
    with patch.object(
        store._queries, "changes_since", side_effect=store._queries.changes_since
    ) as questions:
        calls = (status_of(service, secrets[0].encode()) for _ in range(50))
        assert await asyncio.gather(*calls) == [200] * 50
    assert questions.call_count == 1


async def test_many_strangers_at_once_cost_one_question(
    service: GuardedAPI, store: DatabaseKeyStore
) -> None:
    await store.refresh()
    store._trusted_until, store._ask_strangers_at = inf, -inf
    with patch.object(
        store._queries, "changes_since", side_effect=store._queries.changes_since
    ) as questions:
        calls = (status_of(service, new_secret().encode()) for _ in range(50))
        assert await asyncio.gather(*calls) == [MISSING_KEY_STATUS] * 50
    assert questions.call_count == 1


async def test_memory_holds_the_keys_in_use_up_to_a_bound(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.auth.store.cache.MOST_IN_MEMORY", 3)
    issued = [make(key_service)[1] for _ in range(5)]
    await store.refresh()
    for secret in issued * 2:
        assert await status_of(service, secret) == 200
        assert len(store._secrets) <= 3


# Changes by others.


async def test_without_being_asked_a_change_is_heard_of(
    service: GuardedAPI, hasty: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued, secret = make(key_service)
    await until_status(service, secret, 200)
    key_service.revoke(issued.id, actor="test")

    async def is_forgotten() -> bool:
        return digest(secret) not in hasty._secrets

    await until(is_forgotten)
    hasty._trusted_until = inf  # so that only what was heard counts
    assert await status_of(service, secret) == MISSING_KEY_STATUS


async def test_a_key_that_was_made_elsewhere_just_now_gets_in(
    service: GuardedAPI, running: DatabaseKeyStore, key_service: KeyService
) -> None:
    for _ in range(3):
        _, secret = make(key_service)
        await asyncio.sleep(RECHECK)
        assert await status_of(service, secret) == 200


async def test_more_changes_than_can_be_followed_one_by_one_are_not_missed(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.auth.store.queries.MOST_NEWS", 2)
    monkeypatch.setattr("app.auth.store.queries.AT_ONCE", 2)
    gone, secret = make(key_service)
    assert await status_of(service, secret) == 200
    key_service.revoke(gone.id, actor="test")
    others = [make(key_service)[1] for _ in range(3)]
    await store.refresh()
    assert await status_of(service, secret) == MISSING_KEY_STATUS
    assert [await status_of(service, other) for other in others] == [200] * 3
    assert "another history" not in caplog.text


async def test_what_was_read_before_a_revocation_does_not_undo_it(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued, secret = make(key_service)
    await store.refresh()
    with held(store, "secret") as read:
        call = asyncio.create_task(status_of(service, secret))
        await asyncio.to_thread(read.worked.wait)
        key_service.revoke(issued.id, actor="test")
        await store.refresh()
        read.go_on.set()
        assert await call == MISSING_KEY_STATUS
    assert await status_of(service, secret) == MISSING_KEY_STATUS


async def test_what_was_asked_before_a_change_does_not_tell_of_it(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued, secret = make(key_service)
    assert await status_of(service, secret) == 200
    forget_when_it_asked(store)
    with held(store, "changes_since") as question:
        early = asyncio.create_task(status_of(service, secret))
        await asyncio.to_thread(question.worked.wait)
        key_service.revoke(issued.id, actor="test")
        late = asyncio.create_task(status_of(service, secret))
        caught_up = asyncio.create_task(store.refresh())
        await asyncio.sleep(0)
        question.go_on.set()
        assert (await early, await late) == (200, MISSING_KEY_STATUS)
        await caught_up
    assert await status_of(service, secret) == MISSING_KEY_STATUS


async def test_who_gives_up_waiting_takes_nothing_from_the_others(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    _, secret = make(key_service)
    await store.refresh()
    for name, calls in (("changes_since", 1), ("secret", 2)):  # a question is one for all who wait
        forget_when_it_asked(store)
        store._secrets.clear()
        with held(store, name, calls) as work:
            gone, other = (asyncio.create_task(status_of(service, secret)) for _ in range(2))
            await asyncio.to_thread(work.worked.wait)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            work.go_on.set()
            assert await other == 200
    assert await status_of(service, secret) == 200


# Another history in the place of the one that was known.


async def test_another_history_is_noticed_whatever_number_its_last_event_has(
    service: GuardedAPI,
    hasty: DatabaseKeyStore,
    key_service: KeyService,
    database_url: sa.URL,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ways = [Backup.restore]
    if database_url.get_backend_name() == "sqlite":
        ways.append(Backup.replace)
    for way in ways:
        kept, revoked = make(key_service), make(key_service)
        backup = Backup(database_url)
        lost = make(key_service)
        for _, secret in (kept, revoked, lost):
            await until_status(service, secret, 200)
        caplog.clear()
        way(backup)
        key_service.revoke(revoked[0].id, actor="test")  # as many events as there were before
        for (_, secret), status in ((lost, 403), (revoked, 403), (kept, 200)):
            await until_status(service, secret, MISSING_KEY_STATUS if status == 403 else status)
        assert caplog.text.count("another history") == 1


async def test_what_was_read_of_another_history_is_not_kept(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, database_url: sa.URL
) -> None:
    backup = Backup(database_url)
    _, lost = make(key_service)
    await store.refresh()
    with held(store, "secret") as read:
        call = asyncio.create_task(status_of(service, lost))
        await asyncio.to_thread(read.worked.wait)
        backup.restore()
        await store.refresh()
        read.go_on.set()
        assert await call == MISSING_KEY_STATUS


async def test_a_history_that_changes_while_it_is_read_is_read_again(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, database_url: sa.URL
) -> None:
    backup = Backup(database_url)
    _, secret = make(key_service)
    with held(store, "digests") as reading:
        catching_up = asyncio.create_task(store.refresh())
        await asyncio.to_thread(reading.worked.wait)
        backup.restore()
        _, other = make(key_service)
        reading.go_on.set()
        await catching_up
    assert await status_of(service, secret) == MISSING_KEY_STATUS
    assert await status_of(service, other) == 200


async def test_a_server_that_another_history_does_not_know_is_soon_counted_again(
    running: DatabaseKeyStore,
    key_service: KeyService,
    database_url: sa.URL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connect(database_url).begin() as connection:
        connection.execute(sa.delete(api_key_servers))
    await running.refresh()
    assert (running._staleness(), key_service.longest_staleness()) == (LEAST_STALENESS,) * 2
    await running.flush()
    await running.refresh()
    assert (running._staleness(), key_service.longest_staleness()) == (30.0, 30.0)


async def test_a_file_that_is_removed_is_missed_and_then_found_again(
    sqlite_databases: SQLiteDatabases,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    secrets: list[str],
) -> None:
    with sqlite_databases.fresh(tmp_path) as url:
        service, path = make_service(load_settings()), tmp_path / "keys.db"
        async with service.keys.follow():
            backup, secret = Backup(url), secrets[0].encode()
            assert await status_of(service, secret) == 200
            remove(path)
            await until_status(service, secret, 503)
            assert not path.exists()  # nor is another one made
            with pytest.raises(StoreUnavailableError):
                service.state.key_service.create("key", actor="test")
            backup.replace()
            await until_status(service, secret, 200)


async def test_a_link_that_names_another_file_is_followed(
    sqlite_databases: SQLiteDatabases,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    secrets: list[str],
) -> None:
    with sqlite_databases.fresh(tmp_path) as url:
        link = tmp_path / "link.db"
        link.symlink_to(f"{url.database}")
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{link}")
        service = make_service(load_settings())
        key_service = service.state.key_service
        async with service.keys.follow():
            _, lost = make(key_service)
            await until_status(service, lost, 200)
            (tmp_path / "other").mkdir()
            with sqlite_databases.fresh(tmp_path / "other") as other:
                link.unlink()
                link.symlink_to(f"{other.database}")
            key_service.import_env_keys()
            _, found = make(key_service)
            await until_status(service, lost, MISSING_KEY_STATUS)
            await until_status(service, found, 200)
            assert await status_of(service, secrets[0].encode()) == 200


def test_what_is_being_written_into_a_file_that_is_replaced_is_not_said_to_be_done(
    sqlite_databases: SQLiteDatabases, tmp_path: Path
) -> None:
    with sqlite_databases.fresh(tmp_path) as url:
        key_service, backup = KeyService(load_settings()), Backup(url)
        with pytest.raises(StoreUnavailableError, match="was replaced"):
            key_service.create("key", actor="test", show=lambda _: backup.replace())
        assert list(key_service.all()) == []


# For how long what is known is trusted.


async def test_others_wait_for_a_server_from_its_start_to_its_stop(
    store: DatabaseKeyStore, key_service: KeyService
) -> None:
    store.max_staleness = 2.5
    await store.refresh()
    assert (store._staleness(), key_service.longest_staleness()) == (LEAST_STALENESS,) * 2
    async with store.follow():
        assert (store._staleness(), key_service.longest_staleness()) == (2.5, 2.5)
    await store.refresh()
    assert (store._staleness(), key_service.longest_staleness()) == (LEAST_STALENESS,) * 2
    assert store._trusted_until <= store._asked_at + LEAST_STALENESS


async def test_a_busy_database_does_not_keep_a_service_from_starting(
    store: DatabaseKeyStore,
) -> None:
    store._timeout = 0.01
    with held(store, "changes_since") as question:
        asyncio.get_running_loop().call_later(0.1, question.go_on.set)
        async with store.follow():
            assert store._asked_at > -inf


async def test_an_answer_from_before_others_wait_is_trusted_as_if_they_did_not(
    store: DatabaseKeyStore,
) -> None:
    await store.refresh()
    with held(store, "changes_since") as question:
        catching_up = asyncio.create_task(store.refresh())
        await asyncio.to_thread(question.worked.wait)
        await store.flush()
        question.go_on.set()
        await catching_up
    assert store._staleness() == LEAST_STALENESS
    await store.refresh()
    assert store._staleness() == 30.0


async def test_who_revokes_waits_for_the_longest_bound_of_any_server(
    service: GuardedAPI, key_service: KeyService
) -> None:
    other = make_service(load_settings())
    async with service.keys.follow(), other.keys.follow():
        assert key_service.longest_staleness() == 30
    async with other.keys.follow():
        assert key_service.longest_staleness() == 1
    assert key_service.longest_staleness() == LEAST_STALENESS
    with out_of_reach(key_service.engine):
        assert key_service.longest_staleness() == 60  # any server's, as far as one can tell


async def test_who_revokes_does_not_wait_for_a_server_that_died_yesterday(
    store: DatabaseKeyStore, key_service: KeyService
) -> None:
    other = make_service(load_settings()).keys
    assert isinstance(other, DatabaseKeyStore)
    with fake_clock() as clock:
        await store.flush(starting=True)
        clock.now += 7 * 86400
        # As long as nobody was seen since, it may be this clock that is days ahead.
        assert key_service.longest_staleness() == 30
        await other.flush()
        assert key_service.longest_staleness() == 1


async def test_a_server_whose_clock_was_wrong_is_forgotten_at_the_next_start(
    service: GuardedAPI, store: DatabaseKeyStore, database_url: sa.URL
) -> None:
    with fake_clock() as clock:
        clock.now += 3650 * 86400
        await store.flush(starting=True)
        clock.now -= 3650 * 86400
        again = make_service(load_settings()).keys
        assert isinstance(again, DatabaseKeyStore)
        async with again.follow():
            with connect(database_url).begin() as connection:
                assert connection.scalars(sa.select(api_key_servers.c.id)).all() == [
                    again._queries.server
                ]


async def test_processes_that_fork_are_servers_of_their_own(store: DatabaseKeyStore) -> None:
    ids = set()
    for _ in range(2):  # as in a process, and in another one that was forked from it
        async with store.follow():
            ids.add(store._queries.server)
    assert len(ids) == 2


async def test_a_database_that_takes_no_writes_lets_in_whom_it_knows(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    secrets: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sqlite = store._engine.dialect.name == "sqlite"
    # As a PostgreSQL that has become a standby has it.
    read_only = "PRAGMA query_only = ON" if sqlite else "SET TRANSACTION READ ONLY"

    def forbid(connection: sa.Connection) -> None:
        connection.exec_driver_sql(read_only)

    for engine in (store._engine, key_service.engine):
        sa.event.listen(engine, "begin", forbid, insert=not sqlite)
    async with store.follow():
        assert await status_of(service, secrets[0].encode()) == 200
        assert store._staleness() == LEAST_STALENESS  # nobody can know that it is there
        await store.flush()
        said = caplog.text.count("not written yet")
        await store.flush()
        assert caplog.text.count("not written yet") == said > 0  # not each time
        with pytest.raises(StoreUnavailableError):
            key_service.create("key", actor="test")
        assert await status_of(service, secrets[0].encode()) == 200


# The database out of reach.


async def test_out_of_reach_nobody_gets_in_beyond_the_bound_and_then_everybody_again(
    service: GuardedAPI,
    hasty: DatabaseKeyStore,
    secrets: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "app")
    await until_status(service, secrets[0].encode(), 200)
    with out_of_reach(hasty._engine):
        await asyncio.sleep(1)
        for secret in (secrets[0], secrets[1], new_secret()):
            answer = await ask(service, secret.encode())
            assert isinstance(answer, Answer)
            assert answer.status == 503
            assert (b"retry-after", b"1") in answer.headers
        assert await status_of(service) == MISSING_KEY_STATUS  # no key: nothing to ask
        assert not await hasty.is_reachable()
    await until_status(service, secrets[0].encode(), 200)
    await until(hasty.is_reachable)

    async def says_so() -> bool:
        return "The database is back" in caplog.text

    await until(says_so)
    assert "Nobody gets in until it is back" in caplog.text


@pytest.mark.parametrize("error", [ValueError, StoreUnavailableError])
async def test_the_background_survives_every_error_and_nobody_gets_in_meanwhile(
    service: GuardedAPI,
    hasty: DatabaseKeyStore,
    key_service: KeyService,
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    issued, secret = make(key_service)
    await until_status(service, secret, 200)
    with patch.object(hasty._queries, "changes_since", side_effect=error("no such thing")):
        key_service.revoke(issued.id, actor="test")
        await until_status(service, secret, 503)
        assert await status_of(service, secret) == 503
    assert "no such thing" in caplog.text
    assert ("Traceback" in caplog.text) == (error is not StoreUnavailableError)
    await until_status(service, secret, MISSING_KEY_STATUS)


async def test_the_background_goes_on_whatever_is_raised(
    working_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    down = StoreUnavailableError("down")
    stop, attempts = asyncio.Event(), iter([KeyError("once"), down, down, ValueError("twice")])

    async def work() -> None:
        for error in attempts:
            raise error
        stop.set()

    await asyncio.wait_for(_keep_doing(work, lambda: 0.001, stop), 30)
    for said in ("KeyError: 'once'", "down. Nobody gets in", "ValueError: twice"):
        assert caplog.text.count(said) == 1


async def test_out_of_reach_keys_cannot_be_managed_either(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, secrets: list[str]
) -> None:
    manager = secrets[0].encode()
    assert await status_of(service, manager, path="/api-keys") == 200
    store._trusted_until = inf
    with out_of_reach(key_service.engine):
        assert await status_of(service, manager, path="/api-keys") == 503


async def test_a_key_that_was_made_is_told_even_if_the_keys_are_out_of_reach_just_then(
    client: httpx.AsyncClient, store: DatabaseKeyStore, secrets: list[str]
) -> None:
    headers = {API_KEY_HEADER: secrets[0]}
    assert (await client.get("/api-keys", headers=headers)).status_code == 200
    store._trusted_until = inf
    with patch.object(store._queries, "changes_since", side_effect=StoreUnavailableError("down")):
        made = await client.post("/api-keys", headers=headers, json={"name": "key"})
    assert made.status_code == 201
    await store.refresh()
    assert await store.lookup(digest(made.json()["key"].encode())) is not UNKNOWN


async def test_a_question_that_hangs_is_given_up_and_asked_anew(
    service: GuardedAPI, store: DatabaseKeyStore, secrets: list[str]
) -> None:
    assert await status_of(service, secrets[0].encode()) == 200
    store.max_staleness = store._timeout = 0.1
    with held(store, "changes_since", calls=3) as question:
        for _ in range(3):
            forget_when_it_asked(store)
            calls = (status_of(service, secrets[0].encode()) for _ in range(20))
            assert await asyncio.gather(*calls) == [503] * 20
            await until_given_up(store)
        assert not question.go_on.is_set()
        store.max_staleness = store._timeout = 30.0
        question.hold_no_more()  # on a busy machine, not all got so far as to be held
        assert await status_of(service, secrets[0].encode()) == 200


async def until_given_up(store: DatabaseKeyStore) -> None:
    async def is_given_up() -> bool:
        return store._asking is not None and store._asking.done()

    await until(is_given_up)


async def test_answers_that_hang_keep_no_question_waiting(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    warm, cold = make(key_service)[1], [make(key_service)[1] for _ in range(40)]
    assert await status_of(service, warm) == 200
    await store.refresh()
    store.max_staleness = 30.0
    with held(store, "secret", calls=40) as read:
        calls = [asyncio.create_task(status_of(service, secret)) for secret in cold]
        await asyncio.to_thread(read.worked.wait)
        forget_when_it_asked(store)
        assert await status_of(service, warm) == 200
        await store.refresh()
        read.go_on.set()
        assert await asyncio.gather(*calls) == [200] * 40


async def test_an_answer_that_hangs_is_out_of_reach(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    _, secret = make(key_service)
    await store.refresh()
    store.max_staleness, store._trusted_until = 0.1, inf
    with held(store, "secret"):
        assert await status_of(service, secret) == 503
    store.max_staleness = 30.0
    assert await status_of(service, secret) == 200


# What belongs to the owner of the service.


async def test_whatever_the_owners_code_fills_other_callers_get_in(
    service: GuardedAPI, running: DatabaseKeyStore, key_service: KeyService, secrets: list[str]
) -> None:
    go_on, loop = threading.Event(), asyncio.get_running_loop()
    connections: list[sa.Connection] = []
    _, cold = make(key_service)
    try:
        blocked = [loop.run_in_executor(None, go_on.wait) for _ in range(64)]
        connections.extend(key_service.engine.connect() for _ in range(30))
        forget_when_it_asked(running)
        assert await status_of(service, secrets[0].encode()) == 200
        assert await status_of(service, cold) == 200
    finally:
        go_on.set()
        for connection in connections:
            connection.close()
    await asyncio.gather(*blocked)


async def test_before_it_starts_no_connection_is_open_and_no_thread_runs(
    database_url: sa.URL, secrets: list[str]
) -> None:
    """As a process that forks wants it."""
    opened: list[object] = []
    closed: list[object] = []
    sa.event.listen(sa.Engine, "connect", lambda connection, _: opened.append(connection))
    sa.event.listen(sa.Engine, "close", lambda connection, _: closed.append(connection))
    threads = set(threading.enumerate())
    service = make_service(patient_settings())
    assert len(opened) == len(closed) > 0
    assert not any(
        thread.name.startswith("api-keys") for thread in set(threading.enumerate()) - threads
    )
    assert await status_of(service, secrets[0].encode()) == 200


# When keys were last used.


async def test_it_is_written_when_a_key_and_each_secret_was_last_used(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")
    new = key_service.rotate(issued.id, actor="test")
    with fake_clock() as clock:
        async with store.follow():
            for secret in (issued.key, new.key):
                assert await status_of(service, secret.encode()) == 200
                clock.now += 60
        # A graceful stop writes it.
        view = key_service.get(issued.id)
        assert view.last_used_at
        assert view.old_key_last_used_at
        assert view.last_used_at.timestamp() == pytest.approx(clock.now - 60)
        assert view.old_key_last_used_at.timestamp() == pytest.approx(clock.now - 120)


async def test_it_is_written_every_few_seconds(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.auth.store.cache.FLUSH_EVERY", 0.05)
    issued, secret = make(key_service)
    async with store.follow():
        assert await status_of(service, secret) == 200

        async def is_written() -> bool:
            return key_service.get(issued.id).last_used_at is not None

        await until(is_written)


async def test_writing_it_touches_nothing_else_and_goes_only_forward(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, database_url: sa.URL
) -> None:
    issued, secret = make(key_service)
    await status_of(service, secret)
    key_service.revoke(issued.id, actor="test")

    def everything() -> list[Any]:
        others = [column for column in api_key_secrets.c if column.name != "last_used_at"]
        with connect(database_url).begin() as connection:
            return [
                connection.execute(sa.select(*columns)).all()
                for columns in ([api_keys], others, [api_key_events])
            ]

    before = everything()
    with statements() as seen:
        await store.flush()
    assert everything() == before
    update = next(statement for statement in seen if statement.startswith("UPDATE api_key_secrets"))
    assert update.partition("WHERE")[0].count("=") == 1
    last = key_service.get(issued.id).last_used_at
    assert last
    store.usage._used[digest(secret)] = 1.0
    await store.flush()
    assert key_service.get(issued.id).last_used_at == last
    await store.refresh()
    assert await status_of(service, secret) == MISSING_KEY_STATUS


async def test_many_write_at_the_same_time_when_keys_were_last_used(
    store: DatabaseKeyStore, secrets: list[str]
) -> None:
    def write(n: int) -> None:
        used = {digest(secrets[0].encode()): float(n)}
        store._queries.write(used, datetime.now(UTC), 1.0, False)

    await asyncio.gather(*(asyncio.to_thread(write, n) for n in range(20)))


async def test_what_cannot_be_written_is_kept_for_the_next_time(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    caplog: pytest.LogCaptureFixture,
) -> None:
    issued, secret = make(key_service)
    assert await status_of(service, secret) == 200
    with out_of_reach(store._engine):
        await store.flush()
    assert "not written yet" in caplog.text
    await store.flush()
    assert key_service.get(issued.id).last_used_at


async def test_what_is_being_written_when_that_is_given_up_is_not_lost(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued, secret = make(key_service)
    assert await status_of(service, secret) == 200
    with patch.object(store._queries, "write", lambda *_: time.sleep(0.1)):
        flushing = asyncio.create_task(store.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
    await store.flush()
    assert key_service.get(issued.id).last_used_at


async def test_a_stop_waits_for_what_is_being_written(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.auth.store.cache.FLUSH_EVERY", 0.01)
    (one, first), (other, second) = make(key_service), make(key_service)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(store.follow())
        writing = stack.enter_context(held(store, "write"))
        assert await status_of(service, first) == 200
        await asyncio.to_thread(writing.worked.wait)
        assert await status_of(service, second) == 200
        asyncio.get_running_loop().call_later(0.1, writing.go_on.set)
    assert key_service.get(one.id).last_used_at
    assert key_service.get(other.id).last_used_at
    assert key_service.longest_staleness() == LEAST_STALENESS  # nothing was written after the stop


async def test_many_uses_are_written_in_several_transactions(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.auth.store.queries.FLUSH_AT_ONCE", 2)
    issued = [make(key_service, name) for name in "abcde"]
    await store.refresh()
    for _, secret in issued:
        assert await status_of(service, secret) == 200
    commits: list[sa.Connection] = []
    sa.event.listen(store._engine, "commit", commits.append)
    await store.flush()
    # Besides: the networks, some at a time as well; that this server is there, the counts, that
    # there is nothing to thin, four times, and nothing unusual, which is read and then written.
    assert len(commits) == 3 + 3 + 8
    assert all(key.last_used_at for key in key_service.all() if len(key.name) == 1)


# Time.


async def test_a_clock_that_goes_back_revives_no_expired_key(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, secrets: list[str]
) -> None:
    with fake_clock() as clock:
        issued = key_service.create("key", expires_at=in_two_hours(clock), actor="test")
        assert await status_of(service, issued.key.encode()) == 200
        clock.now += 7200
        assert await status_of(service, issued.key.encode()) == MISSING_KEY_STATUS
        assert await status_of(service, secrets[0].encode()) == 200
        clock.now -= 86400 - 1
        assert await status_of(service, issued.key.encode()) == MISSING_KEY_STATUS
        # Neither does a restart, nor do other processes think otherwise.
        await store.flush()
        again = make_service(patient_settings())
        assert await status_of(again, issued.key.encode()) == MISSING_KEY_STATUS
        assert key_service.get(issued.id).status == "expired"


async def test_a_clock_that_was_far_ahead_does_no_lasting_harm(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with fake_clock() as clock:
        issued = key_service.create("key", expires_at=in_two_hours(clock), actor="test")
        forever, other = make(key_service)
        clock.now += 3650 * 86400
        assert await status_of(service, issued.key.encode()) == MISSING_KEY_STATUS
        assert await status_of(service, other) == 200
        await store.flush(starting=True)
        key_service.rotate(forever.id, actor="test")
        clock.now -= 3650 * 86400 - 60
        assert await status_of(service, issued.key.encode()) == 200
        again = make_service(patient_settings())
        async with again.keys.follow():
            assert "says that it is 20" in caplog.text
            assert await status_of(again, issued.key.encode()) == 200
            assert await status_of(again, other) == 200
        # What was last used then is put right as well.
        used_at = key_service.get(forever.id).old_key_last_used_at
        assert used_at
        assert used_at.timestamp() == pytest.approx(clock.now)


async def test_that_a_key_has_expired_is_written_once(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    """Besides, who is refused makes the service write nothing but that."""
    with fake_clock() as clock:
        revoked, gone = make(key_service)
        key_service.revoke(revoked.id, actor="test")
        issued = key_service.create("key", expires_at=in_two_hours(clock), actor="test")
        clock.now += 7200
        assert await status_of(service, issued.key.encode()) == MISSING_KEY_STATUS
        await store.flush()
        clock.now += 60
        for secret in (gone, issued.key.encode()):
            assert await status_of(service, secret) == MISSING_KEY_STATUS
        assert not store.usage._saw_an_end


async def test_a_service_without_any_key_starts_and_lets_nobody_in(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEYS", "")
    service = make_service(patient_settings())
    async with service.keys.follow():
        assert await status_of(service, new_secret().encode(), path=PROBE) == MISSING_KEY_STATUS
