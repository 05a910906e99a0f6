"""What a server knows of the keys: never more than it should, never longer than it may."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from app.auth import GuardedAPI
from app.auth.database.models import LEAST_STALENESS
from app.auth.errors import StoreUnavailableError
from app.auth.key import digest, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.constants import MISSING_KEY_STATUS
from tests.callers import Clock, answer_of, status_of

InForce = Callable[..., Awaitable[str]]
ME = "tests"


NEWS, LOOK_UP = "FROM api_key_events", "JOIN api_key_secrets"  # what a server asks with


@contextmanager
def statements(
    after: str = "no such statement", do: Callable[[], object] = lambda: None
) -> Iterator[list[str]]:
    """Those to any database. Once after such a one, before its answer is used, something is done."""
    seen: list[str] = []
    to_do = [do]

    def note(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)
        if after in statement and to_do:
            to_do.pop()()

    sa.event.listen(sa.Engine, "after_cursor_execute", note)
    yield seen
    sa.event.remove(sa.Engine, "after_cursor_execute", note)


def count(seen: list[str], part: str) -> int:
    return len([statement for statement in seen if part in statement])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """It comes true; how soon depends on how busy this machine is."""
    give_up_at = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


def backup(path: Path) -> Path:
    """A copy of the database as it is now."""
    copy = path.with_suffix(".backup")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def put_in_place(copy: Path, path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    copy.replace(path)


async def test_a_warm_request_costs_one_digest_no_query_and_no_write(
    clock: Clock, service: GuardedAPI, secrets: list[str]
) -> None:
    assert await status_of(service, secrets[0].encode()) == 200
    with patch("app.auth.access.rule.digest", side_effect=digest) as digests, statements() as seen:
        for _ in range(3):
            assert await status_of(service, secrets[0].encode()) == 200
    assert (digests.call_count, seen) == (3, [])


async def test_in_a_flood_of_unknown_keys_hardly_one_costs_a_query(
    clock: Clock, service: GuardedAPI, in_force: InForce, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await in_force() == ""
    monkeypatch.setattr("app.auth.store.cache.RECHECK", 60.0)
    with statements(NEWS, lambda: clock.pass_time(0.01)) as seen:  # so long takes the question
        for _ in range(50):
            assert await status_of(service, new_secret().encode()) == MISSING_KEY_STATUS
    assert (count(seen, NEWS), count(seen, LOOK_UP)) == (1, 0)


async def test_many_who_wait_cost_one_question(
    clock: Clock, service: GuardedAPI, secrets: list[str], in_force: InForce
) -> None:
    assert await in_force(secrets[0]) == "+"
    clock.pass_time(60)
    with statements() as seen:
        calls = (status_of(service, secrets[0].encode()) for _ in range(20))
        assert await asyncio.gather(*calls) == [200] * 20
    assert count(seen, NEWS) == 1


async def test_memory_holds_the_keys_in_use_up_to_a_bound(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.auth.store.cache.MOST_IN_MEMORY", 3)
    issued = [key_service.create("key", actor=ME).key.encode() for _ in range(5)]
    for secret in issued * 2:
        assert await status_of(service, secret) == 200
    in_memory = [store.recall(digest(secret)) for secret in issued]
    assert len([key for key in in_memory if key]) == 3


# Changes by others.


async def test_what_is_known_is_trusted_for_the_bound_and_no_longer(
    clock: Clock, service: GuardedAPI, key_service: KeyService
) -> None:
    key = key_service.create("key", actor=ME)
    assert await status_of(service, key.key.encode()) == 200
    key_service.revoke(key.id, actor=ME)
    assert key_service.longest_staleness() == LEAST_STALENESS  # as long as `revoke` waits
    clock.pass_time(LEAST_STALENESS)
    assert await status_of(service, key.key.encode()) == MISSING_KEY_STATUS


async def test_a_question_counts_from_the_moment_when_it_was_asked(
    clock: Clock, service: GuardedAPI, key_service: KeyService, in_force: InForce
) -> None:
    key = key_service.create("key", actor=ME)
    assert await in_force(key.key) == "+"
    clock.pass_time(60)

    def revoke() -> None:
        key_service.revoke(key.id, actor=ME)
        clock.pass_time(LEAST_STALENESS)

    with statements(NEWS, revoke):
        await status_of(service, key.key.encode())  # may still get in
    assert await status_of(service, key.key.encode()) == MISSING_KEY_STATUS


async def test_what_was_read_before_a_revocation_does_not_undo_it(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    key, loop = key_service.create("key", actor=ME), asyncio.get_running_loop()
    await store.catch_up()

    def revoke() -> None:
        key_service.revoke(key.id, actor=ME)
        asyncio.run_coroutine_threadsafe(store.catch_up(), loop).result(60)

    with statements(LOOK_UP, revoke):
        assert await status_of(service, key.key.encode()) == MISSING_KEY_STATUS
    assert key_service.get(key.id).status == "revoked"


async def test_more_changes_than_can_be_followed_one_by_one_are_not_missed(
    key_service: KeyService, in_force: InForce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.store.queries.MOST_NEWS", 2)
    monkeypatch.setattr("app.auth.store.queries.AT_ONCE", 2)
    gone = key_service.create("gone", actor=ME)
    assert await in_force(gone.key) == "+"
    key_service.revoke(gone.id, actor=ME)
    others = [key_service.create("key", actor=ME).key for _ in range(3)]
    assert await in_force(gone.key, *others) == "-+++"


async def test_a_restored_backup_is_noticed_whatever_number_its_last_event_has(
    key_service: KeyService, database_url: sa.URL, in_force: InForce
) -> None:
    path = Path(f"{database_url.database}")
    kept, revoked = (key_service.create(name, actor=ME) for name in ("kept", "revoked"))
    copy = backup(path)
    lost = key_service.create("lost", actor=ME)
    assert await in_force(kept.key, revoked.key, lost.key) == "+++"
    put_in_place(copy, path)
    key_service.revoke(revoked.id, actor=ME)  # as many events as there were before
    assert await in_force(kept.key, revoked.key, lost.key) == "+--"


async def test_who_revokes_waits_for_the_longest_bound_of_any_server(
    start_service: Callable[[], GuardedAPI],
    service: GuardedAPI,
    key_service: KeyService,
    database_url: sa.URL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEY_MAX_STALENESS", "2.5")
    other = start_service()
    async with service.keys.follow(), other.keys.follow():
        assert key_service.longest_staleness() == 60
    async with other.keys.follow():
        assert key_service.longest_staleness() == 2.5
    assert key_service.longest_staleness() == LEAST_STALENESS
    Path(f"{database_url.database}").rename("elsewhere")
    assert key_service.longest_staleness() == 60  # any server's, as far as one can tell


# The database out of reach.


async def test_out_of_reach_nobody_gets_in_beyond_the_bound_and_then_everybody_again(
    clock: Clock,
    service: GuardedAPI,
    key_service: KeyService,
    database_url: sa.URL,
    secrets: list[str],
) -> None:
    path, secret = Path(f"{database_url.database}"), secrets[0].encode()
    assert await status_of(service, secret) == 200
    path.rename("elsewhere")
    clock.pass_time(LEAST_STALENESS)
    for each in (secret, secrets[1].encode(), new_secret().encode()):
        answer = await answer_of(service, each)
        assert (answer.status, answer.header("retry-after")) == (503, "1")
    assert await status_of(service) == MISSING_KEY_STATUS  # no key: nothing to ask
    assert not await service.keys.is_reachable()
    with pytest.raises(StoreUnavailableError):
        key_service.create("key", actor=ME)
    assert not path.exists()  # nobody has made another one
    Path("elsewhere").rename(path)
    assert await service.keys.is_reachable()
    assert await status_of(service, secret) == 200


async def test_a_running_server_notices_it_without_being_asked_and_is_back_by_itself(
    start_service: Callable[[], GuardedAPI],
    database_url: sa.URL,
    secrets: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "app.auth.store")
    monkeypatch.setenv("KEY_MAX_STALENESS", "1")
    service, path = start_service(), Path(f"{database_url.database}")

    async def is_said(text: str) -> bool:
        return text in caplog.text

    async def gets_in() -> bool:
        return await status_of(service, secrets[0].encode()) == 200

    async with service.keys.follow():
        path.rename("elsewhere")
        await until(partial(is_said, "Nobody gets in until it is back"))
        Path("elsewhere").rename(path)
        await until(partial(is_said, "The database is back"))
        await until(gets_in)


# When keys were last used, and what time it is.


async def test_a_stop_writes_when_a_key_and_each_secret_was_last_used(
    clock: Clock, service: GuardedAPI, key_service: KeyService
) -> None:
    first = key_service.create("key", actor=ME)
    second = key_service.rotate(first.id, actor=ME)
    used = []
    async with service.keys.follow():
        for issued in (first, second):
            clock.pass_time(60)
            assert await status_of(service, issued.key.encode()) == 200
            used.append(datetime.fromtimestamp(clock.now, UTC))
    key = key_service.get(first.id)
    assert [key.old_key_last_used_at, key.last_used_at] == used


async def test_what_cannot_be_written_is_kept_for_the_next_time(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    database_url: sa.URL,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = key_service.create("key", actor=ME)
    assert await status_of(service, key.key.encode()) == 200
    Path(f"{database_url.database}").rename("elsewhere")
    await store.flush()
    assert "not written yet" in caplog.text
    Path("elsewhere").rename(f"{database_url.database}")
    await store.flush()
    assert key_service.get(key.id).last_used_at
    assert key_service.usage(key.id, timedelta(days=1)).served == 1


async def test_a_clock_that_goes_back_revives_no_key_in_a_process_that_starts_later(
    clock: Clock,
    store: DatabaseKeyStore,
    service: GuardedAPI,
    key_service: KeyService,
    start_service: Callable[[], GuardedAPI],
) -> None:
    ends = datetime.fromtimestamp(clock.now + 7200, UTC)
    key = key_service.create("key", expires_at=ends, actor=ME)
    clock.pass_time(7200)
    assert await status_of(service, key.key.encode()) == MISSING_KEY_STATUS
    await store.flush()
    clock.now -= 86_399
    assert await status_of(start_service(), key.key.encode()) == MISSING_KEY_STATUS
    assert key_service.get(key.id).status == "expired"


async def test_a_clock_that_was_far_ahead_does_no_lasting_harm(
    clock: Clock,
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    start_service: Callable[[], GuardedAPI],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends = datetime.fromtimestamp(clock.now + 7200, UTC)
    key = key_service.create("key", expires_at=ends, actor=ME)
    clock.now += 3650 * 86_400
    assert await status_of(service, key.key.encode()) == MISSING_KEY_STATUS
    await store.flush(starting=True)
    key_service.create("another", actor=ME)
    clock.now -= 3650 * 86_400
    assert await status_of(service, key.key.encode()) == 200
    again = start_service()
    async with again.keys.follow():
        assert "says that it is 20" in caplog.text
        assert await status_of(again, key.key.encode()) == 200
