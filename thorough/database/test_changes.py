"""Every change happens wholly or not at all, and what is final stays so."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from app.auth.database.engine import (
    LONG_TIMEOUT,
    SCHEMA,
    SCHEMA_TABLE,
    connect,
    schema_of,
    transaction,
)
from app.auth.database.migrate import create_tables, make_file, upgrade
from app.auth.database.models import api_key_events, api_key_secrets, api_keys, metadata
from app.auth.errors import ConflictError, ForbiddenError, SettingsError, StoreUnavailableError
from app.auth.key import digest, new_secret
from app.auth.keys.change import Change, Fields
from app.auth.keys.service import KeyService, open_service
from app.auth.keys.views import IssuedKey, KeyView
from app.constants import COMMAND
from app.settings import load_settings
from tests.thorough.databases import Databases

ROOT = Path(__file__).parents[2]
AT = datetime(2030, 1, 1, tzinfo=UTC)
LATER = datetime(2999, 1, 1, tzinfo=UTC)
LATER_TODAY = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def key_service(database_url: sa.URL) -> KeyService:
    key_service = open_service(load_settings())
    key_service.import_env_keys()
    return key_service


@pytest.fixture
def engine(key_service: KeyService) -> sa.Engine:
    return key_service.engine


@pytest.fixture
def key(key_service: KeyService) -> IssuedKey:
    return key_service.create("key", ["a"], actor="test")


def everything(engine: sa.Engine) -> dict[str, list[Any]]:
    with engine.begin() as connection:
        return {
            name: sorted(map(tuple, connection.execute(sa.select(table))), key=str)
            for name, table in metadata.tables.items()
        }


CHANGES: dict[str, Callable[[KeyService, IssuedKey], object]] = {
    "created": lambda service, key: service.create("another", actor="test"),
    "rotated": lambda service, key: service.rotate(key.id, actor="test"),
    "rotated, dropping": lambda service, key: service.rotate(key.id, drop="old", actor="test"),
    "dropped": lambda service, key: service.drop(key.id, "new", actor="test"),
    "revoked": lambda service, key: service.revoke(key.id, actor="test"),
    "updated": lambda service, key: service.update(
        key.id, lambda _: {"scopes": ["b"], "owner": "acme"}, actor="test"
    ),
    "paused": lambda service, key: service.pause(key.id, actor="test"),
    "resumed": lambda service, key: service.resume(key.id, actor="test"),
    "all revoked": lambda service, key: service.revoke_issued_before(
        datetime.now(UTC) + timedelta(hours=1), force=True, actor="test"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fault_at_any_statement_leaves_neither_the_change_nor_its_event(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey, change: str
) -> None:
    if change != "rotated":
        key_service.rotate(key.id, actor="test")
    if change == "resumed":
        key_service.pause(key.id, actor="test")
    before = everything(engine)
    faults, place = 0, 0

    def fail(*_: object) -> None:
        nonlocal place
        place += 1
        if place == faults:
            raise RuntimeError("a fault")

    sa.event.listen(engine, "before_cursor_execute", fail)
    sa.event.listen(engine, "commit", fail)
    while True:
        faults, place = faults + 1, 0
        try:
            CHANGES[change](key_service, key)
        except RuntimeError:
            sa.event.remove(engine, "before_cursor_execute", fail)
            assert everything(engine) == before
            sa.event.listen(engine, "before_cursor_execute", fail)
        else:
            break
    assert faults > 4
    sa.event.remove(engine, "before_cursor_execute", fail)
    sa.event.remove(engine, "commit", fail)
    after = everything(engine)
    assert after["api_key_events"] != before["api_key_events"]
    assert any(after[name] != before[name] for name in ("api_keys", "api_key_secrets"))


# It dies at each statement of a rotation in turn, in a child process that was forked from it.
KILLED = """
import os, signal, sys
import sqlalchemy as sa
from app.auth.keys.service import KeyService
from app.settings import load_settings

id, deaths = sys.argv[1], 1
service = KeyService(load_settings())
while True:
    if not (child := os.fork()):
        places = iter(range(1, 100))
        def die(*_):
            if next(places) == deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        sa.event.listen(service.engine, "before_cursor_execute", die)
        sa.event.listen(service.engine, "commit", die)
        service.rotate(id, actor="killed")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    deaths += 1
print(deaths)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX: nothing else forks")
def test_killed_at_any_statement_a_rotation_leaves_the_old_secret_or_both(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, key.id],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(result.stdout) > 4
    # All that were killed left nothing; the last one, which was not, left both.
    assert [event.action for event in key_service.events(key.id)] == ["created", "rotated"]
    with engine.begin() as connection:
        of_key = sa.select(api_key_secrets).where(api_key_secrets.c.key_id == key.id)
        assert len(connection.execute(of_key).all()) == 2


def test_of_many_rotations_at_once_one_happens(key_service: KeyService, key: IssuedKey) -> None:
    start = threading.Barrier(4)

    def rotate(_: int) -> bool:
        start.wait()
        try:
            key_service.rotate(key.id, actor="test")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(rotate, range(4))) == [False, False, False, True]


@contextmanager
def transactions_see_little(engine: sa.Engine) -> Iterator[None]:
    """A PostgreSQL whose owner has it so by default: what others do meanwhile is not seen."""
    if engine.dialect.name == "sqlite":
        yield
        return
    setting = "default_transaction_isolation"
    database = f"ALTER DATABASE {engine.url.database}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"{database} SET {setting} = 'serializable'")
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"{database} RESET {setting}")


def test_of_many_who_revoke_the_last_managers_one_is_refused(
    engine: sa.Engine, key_service: KeyService
) -> None:
    for key in key_service.all():
        key_service.revoke(key.id, force=True, actor="test")
    managers = [key_service.create("m", ["keys:manage"], actor="test").id for _ in range(4)]
    start = threading.Barrier(4)

    def revoke(id: str) -> bool:
        start.wait()
        try:
            key_service.revoke(id, actor="test")
        except ConflictError:
            return False
        return True

    with transactions_see_little(engine), ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(revoke, managers)) == [False, True, True, True]


def test_events_are_numbered_in_the_order_of_commits_without_a_gap(
    engine: sa.Engine, key_service: KeyService
) -> None:
    def change(n: int) -> None:
        key_service.create(f"{n}", actor="test")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(20)))
    with engine.begin() as connection:
        in_order = connection.execute(sa.select(api_key_events).order_by("id")).all()
    assert [event.id for event in in_order] == list(range(1, 23))
    assert [event.at for event in in_order] == sorted(event.at for event in in_order)
    assert len({event.stamp for event in in_order}) == 21  # two keys of API_KEYS came at once


def test_a_rotation_widens_nothing(key_service: KeyService) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    key = key_service.create("key", ["a"], expires_at=end, actor="test")
    ends = []
    for overlap in (1, 48, 2):
        key = key_service.rotate(
            key.id, overlap=timedelta(minutes=overlap), drop="new", actor="test"
        )
        ends.append(key.old_key_expires_at)
        assert (key.scopes, key.expires_at) == (["a"], end)
    assert ends == [ends[0]] * 3  # of the first secret, which was to end after a minute
    long = key_service.rotate(key.id, overlap=timedelta(days=400), drop="old", actor="test")
    assert long.old_key_expires_at == end
    revoked = key_service.revoke(key.id, actor="test")
    assert (revoked.old_key_expires_at, revoked.old_key_last_used_at) == (None, None)


def test_each_change_leaves_one_event_that_says_who_and_what(
    key_service: KeyService, key: IssuedKey
) -> None:
    key_service.rotate(key.id, actor="ann")
    key_service.drop(key.id, "new", actor="eve")
    key_service.revoke(key.id, actor="bob")
    key_service.revoke(key.id, actor="too late to matter")
    told = [(event.action, event.actor, event.key_id) for event in key_service.events()]
    assert told[2:] == [
        ("created", "test", key.id),
        ("rotated", "ann", key.id),
        ("dropped new", "eve", key.id),
        ("revoked", "bob", key.id),
    ]
    assert [(action, actor) for action, actor, _ in told[:2]] == [("created", "API_KEYS")] * 2
    key_service.import_env_keys()
    assert len(key_service.events()) == 6


def test_an_update_says_what_changed_from_what_to_what_and_nothing_is_no_event(
    key_service: KeyService, key: IssuedKey
) -> None:
    end = datetime(2099, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    changes: list[tuple[Any, Any]] = [
        (
            {"scopes": ["b", "a", "b"], "name": " another "},
            {"name": ["key", "another"], "scopes": [["a"], ["a", "b"]]},
        ),
        ({"scopes": ["b", "a"], "name": "another", "note": "", "owner": ""}, None),
        ({}, None),
        ({"expires_at": end, "owner": "acme"}, {"expires_at": [None, "2098-12-31T22:00:00Z"]}),
        ({"expires_at": end.astimezone(UTC)}, None),
        ({"expires_at": None, "owner": ""}, {"expires_at": ["2098-12-31T22:00:00Z", None]}),
    ]
    told = []
    for update, expected in changes:
        before = key_service.get(key.id)
        after = key_service.update(key.id, lambda _, update=update: update, actor="ann")
        assert after == key_service.get(key.id)
        assert (after == before) is (expected is None)
        if expected and "owner" in update:
            expected["owner"] = [before.owner, after.owner]
        told += [("ann", expected)] if expected else []
    updated = [event for event in key_service.events(key.id) if event.action == "updated"]
    assert [(event.actor, event.changes) for event in updated] == told


def test_an_update_is_authorized_for_the_key_as_it_was_and_as_it_becomes(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    seen: list[list[str]] = []
    before = everything(engine)

    def refuse(_: Change, view: KeyView) -> None:
        seen.append(view.scopes)
        if refused in view.scopes:
            raise ForbiddenError(refused)

    change = partial(key_service.update, key.id, lambda _: {"scopes": ["b"]}, actor="test")
    for refused in ("a", "b"):
        with pytest.raises(ForbiddenError, match=refused):
            change(authorize=refuse)
    assert seen == [["a"], ["a"], ["b"]]
    refused = "a"
    for pause in (key_service.pause, key_service.resume):
        with pytest.raises(ForbiddenError, match="a"):
            pause(key.id, actor="test", authorize=refuse)
    assert everything(engine) == before


@pytest.mark.parametrize("by_rotation", [False, True])
def test_of_many_updates_at_once_none_is_lost(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey, by_rotation: bool
) -> None:
    start = threading.Barrier(4)

    def add(scope: str) -> None:
        start.wait()
        if by_rotation and scope == "d":
            key_service.rotate(key.id, actor="test")
        key_service.update(key.id, lambda now: {"scopes": [*now.scopes, scope]}, actor="test")

    with transactions_see_little(engine), ThreadPoolExecutor(4) as pool:
        list(pool.map(add, "bcde"))
    assert key_service.get(key.id).scopes == [*"abcde"]
    had = ["a"]
    for event in key_service.events(key.id):
        if event.changes:
            before, after = event.changes["scopes"]
            assert (before, len(after)) == (had, len(had) + 1)
            had = after
    assert had == [*"abcde"]


def test_who_has_ended_is_neither_updated_nor_paused_nor_resumed(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    with patch("app.auth.database.clock.time") as time:
        time.return_value = datetime.now(UTC).timestamp()
        soon = datetime.fromtimestamp(time.return_value + 60, UTC)
        late, asleep = (
            key_service.create("late", expires_at=soon, actor="test").id for _ in range(2)
        )
        key_service.pause(key.id, actor="test")
        key_service.pause(asleep, actor="test")
        time.return_value += 59
        assert key_service.get(asleep).status == "paused"
        time.return_value += 1
        key_service.revoke(key.id, actor="test")
        before = everything(engine)
        for id, status in ((key.id, "revoked"), (late, "expired"), (asleep, "expired")):
            assert key_service.get(id).status == status
            changes: list[Callable[[], object]] = [
                partial(
                    key_service.update, id, lambda _: {"expires_at": LATER_TODAY}, actor="test"
                ),
                partial(key_service.update, id, lambda _: {}, actor="test"),
                partial(key_service.pause, id, force=True, actor="test"),
                partial(key_service.resume, id, actor="test"),
            ]
            for change in changes:
                with pytest.raises(ConflictError, match=f"{id} is {status}; create another key"):
                    change()
        assert everything(engine) == before


def test_a_last_manager_is_neither_paused_nor_narrowed_without_force(
    engine: sa.Engine, key_service: KeyService
) -> None:
    manager = key_service.create("m", ["keys:*", "a"], actor="test").id
    for key in key_service.all():
        if key.id != manager:
            key_service.revoke(key.id, actor="test")
    before = everything(engine)
    narrower: list[Fields] = [{"scopes": ["a"]}, {"scopes": ["keys"]}, {"expires_at": LATER_TODAY}]
    changes: list[Callable[..., KeyView]] = [
        partial(key_service.update, manager, lambda _, fields=fields: fields, actor="test")
        for fields in narrower
    ]
    changes.append(partial(key_service.pause, manager, actor="test"))
    for change in changes:
        with pytest.raises(ConflictError, match="No key with keys:manage and without an end would"):
            change()
    assert everything(engine) == before
    # It stays one with another name and with fewer other scopes; and a second one takes over.
    for fields in Fields(name="n", owner="acme"), Fields(scopes=["keys:manage"]):
        key_service.update(manager, lambda _, fields=fields: fields, actor="test")
    key_service.create("m", ["*"], actor="test")
    for change in changes:
        change()
        key_service.resume(manager, actor="test")
        key_service.update(
            manager, lambda _: {"scopes": ["keys:manage"], "expires_at": None}, actor="test"
        )
    paused = key_service.pause(manager, actor="test")
    # Who manages nothing now is no manager that is lost.
    assert key_service.update(manager, lambda _: {"scopes": []}, actor="test").id == paused.id


def test_what_api_keys_names_stays_as_narrow_as_it_was_made(
    key_service: KeyService, ids: list[str]
) -> None:
    key_service.update(ids[0], lambda _: {"scopes": ["a"], "name": "a"}, actor="test")
    key_service.pause(ids[1], force=True, actor="test")
    narrowed = [key_service.get(id) for id in ids]
    again = open_service(load_settings())
    again.import_env_keys()
    assert [again.get(id) for id in ids] == narrowed
    assert (narrowed[0].scopes, narrowed[1].status) == (["a"], "paused")


def test_the_old_secret_ends_as_it_was_to_end_whatever_becomes_of_its_key(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    old = key_service.rotate(key.id, actor="test").old_key_expires_at
    assert old
    fields = ({"expires_at": old - timedelta(hours=1)}, {"expires_at": None}, {"scopes": ["b"]})
    for update in fields:
        key_service.update(key.id, lambda _, update=update: update, actor="test")
    key_service.pause(key.id, actor="test")
    assert key_service.resume(key.id, actor="test").old_key_expires_at == old


def test_what_has_ended_stays_ended_whatever_the_clock_says(key_service: KeyService) -> None:
    with patch("app.auth.database.clock.time") as time:
        time.return_value = AT.timestamp()
        key = key_service.create("key", actor="test")
        key_service.rotate(key.id, overlap=timedelta(minutes=1), actor="test")
        time.return_value += 60
        key_service.rotate(key.id, actor="test")
        time.return_value -= 30 * 86400
        with pytest.raises(ConflictError, match="Two secrets"):
            key_service.rotate(key.id, actor="test")
        assert key_service.drop(key.id, "new", actor="test").old_key_expires_at
        with pytest.raises(ConflictError, match="no two secrets"):
            key_service.drop(key.id, "old", actor="test")
        assert key_service.rotate(key.id, actor="test").old_key_expires_at


def test_a_database_out_of_reach_is_said_in_one_line(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    down = sa.exc.OperationalError("", {}, OSError("nobody\nlistens"))
    with (
        patch.object(engine, "connect", side_effect=down),
        pytest.raises(StoreUnavailableError) as error,
    ):
        key_service.revoke(key.id, actor="test")
    assert str(error.value) == "DATABASE_URL: out of reach: nobody listens"


def test_what_cannot_be_shown_is_not_the_databases_fault(
    engine: sa.Engine, key_service: KeyService
) -> None:
    before = everything(engine)

    def fail(_: IssuedKey) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        key_service.create("key", actor="test", show=fail)
    assert everything(engine) == before


def test_a_process_without_a_descriptor_to_spare_finds_the_database_out_of_reach(
    key_service: KeyService,
) -> None:
    with (
        patch("app.auth.database.engine.socket.fromfd", side_effect=OSError("too many open files")),
        patch(
            "app.auth.database.engine.sqlite3.connect",
            side_effect=sqlite3.OperationalError("too many"),
        ),
        pytest.raises(StoreUnavailableError, match="too many"),
    ):
        key_service.page()


# What the database itself refuses, whoever asks.


def refused(engine: sa.Engine, statement: sa.Executable | str, rule: str) -> None:
    before = everything(engine)
    with pytest.raises(sa.exc.DBAPIError, match=rf"\) {rule}\b"), engine.begin() as connection:
        connection.execute(sa.text(statement) if isinstance(statement, str) else statement)
    assert everything(engine) == before


def test_a_revocation_is_final(engine: sa.Engine, key_service: KeyService, key: IssuedKey) -> None:
    key_service.revoke(key.id, actor="test")
    for column in [column.name for column in api_keys.c]:
        changed = sa.update(api_keys).where(api_keys.c.id == key.id)
        refused(engine, changed.values({column: sa.null()}), "api_key_revocations_are_final")
    refused(engine, sa.update(api_keys).values(revoked_at=LATER), "api_key_revocations_are_final")


def test_a_secret_that_has_ended_stays_so(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    key_service.rotate(key.id, overlap=timedelta(), actor="test")
    for moment in (None, LATER):
        changed = sa.update(api_key_secrets).values(ended_at=moment)
        ended = changed.where(api_key_secrets.c.ended_at.is_not(None))
        refused(engine, ended, "api_key_secrets_(stay_ended|replace_none)")


def test_no_key_changes_its_id_and_no_secret_ends_later(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    key_service.rotate(key.id, actor="test")
    this_key = sa.update(api_keys).where(api_keys.c.id == key.id)
    refused(engine, this_key.values(id="another"), "api_key_revocations_are_final")
    secret = api_key_secrets.c
    of_this_key = sa.update(api_key_secrets).where(secret.key_id == key.id)
    rotated = of_this_key.where(secret.expires_at.is_not(None))
    new = of_this_key.where(secret.expires_at.is_(None))
    for prolonged in (
        rotated.values(expires_at=LATER),
        rotated.values(expires_at=None),
        new.values(digest=digest(new_secret().encode())),
        of_this_key.values(key_id="another"),
    ):
        refused(engine, prolonged, "api_key_secrets_(never_end_later|replace_none)")


@pytest.mark.parametrize("table", [api_keys, api_key_secrets, api_key_events], ids=str)
def test_nothing_is_deleted(engine: sa.Engine, key: IssuedKey, table: sa.Table) -> None:
    refused(engine, sa.delete(table), f"{table}_stay")
    if engine.dialect.name == "postgresql":
        refused(engine, f"TRUNCATE {table} CASCADE", "api_key.*_stay")


@pytest.mark.parametrize("column", api_key_events.c.keys())
def test_what_has_happened_stays_written(engine: sa.Engine, key: IssuedKey, column: str) -> None:
    changed = sa.update(api_key_events).values({column: api_key_events.c[column]})
    refused(engine, changed, "api_key_events_are_final")


def test_no_key_has_two_current_secrets_or_two_old_ones(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey
) -> None:
    key_service.rotate(key.id, actor="test")
    third = {"digest": digest(b"x"), "key_id": key.id, "created_at": AT}
    for expires_at in (None, LATER):
        row = sa.insert(api_key_secrets).values(**third, expires_at=expires_at)
        refused(engine, row, ".*(UNIQUE|duplicate|api_key_secrets_are_not_replaced)")


REPLACEMENTS = {
    "api_keys_are_not_replaced": "REPLACE INTO api_keys"
    " (id, name, scopes, created_by, created_at)"
    " SELECT id, name, '*', created_by, created_at FROM api_keys",
    "api_key_secrets_are_not_replaced": "REPLACE INTO api_key_secrets"
    " SELECT digest, key_id, created_at, NULL, NULL, NULL FROM api_key_secrets",
    "api_key_secrets_(are_not_replaced|replace_none)": "UPDATE OR REPLACE api_key_secrets"
    " SET expires_at = '2029-01-01' WHERE expires_at IS NULL",
    "api_key_secrets_(stay_ended|replace_none)": "UPDATE OR REPLACE api_key_secrets"
    " SET ended_at = NULL WHERE ended_at IS NOT NULL",
    "api_key_events_are_not_replaced": "REPLACE INTO api_key_events"
    " SELECT id, stamp, at, action, 'nobody', key_id, changes FROM api_key_events",
    "api_key_events_are_final": "UPDATE OR REPLACE api_key_events SET id = 1",
    "api_key_revocations_are_final": "UPDATE OR REPLACE api_keys SET id = 'another'",
    # No row has a number by which one could be replaced.
    "table api_keys has no column named rowid": "REPLACE INTO api_keys (rowid) VALUES (1)",
    "table api_key_secrets has no column named rowid": "REPLACE INTO api_key_secrets (rowid)"
    " VALUES (1)",
    "table api_key_events has no column named rowid": "REPLACE INTO api_key_events (rowid)"
    " VALUES (1)",
}
MERGES = {
    "api_key_revocations_are_final": "INSERT INTO api_keys SELECT * FROM api_keys"
    " ON CONFLICT (id) DO UPDATE SET revoked_at = NULL",
    "api_key_secrets_stay_ended": "INSERT INTO api_key_secrets SELECT * FROM api_key_secrets"
    " ON CONFLICT (digest) DO UPDATE SET ended_at = NULL",
    "api_key_events_are_final": "INSERT INTO api_key_events SELECT * FROM api_key_events"
    " ON CONFLICT (id) DO UPDATE SET actor = 'nobody'",
    "api_key_events_stay": "MERGE INTO api_key_events USING api_keys ON true"
    " WHEN MATCHED THEN DELETE",
}


def test_nothing_is_replaced(
    engine: sa.Engine, key_service: KeyService, key: IssuedKey, database_url: sa.URL
) -> None:
    """A statement may delete, or change, what it finds in its way."""
    key_service.rotate(key.id, actor="test")
    key_service.rotate(key.id, drop="old", actor="test")
    for other in key_service.all():
        if other.id != key.id:
            key_service.revoke(other.id, force=True, actor="test")
    statements = REPLACEMENTS if engine.dialect.name == "sqlite" else MERGES
    for rule, statement in statements.items():
        refused(engine, statement, rule)
        if statement.startswith("REPLACE"):
            refused(engine, f"INSERT OR {statement}", rule)


# The schema.


def schema(engine: sa.Engine) -> str | None:
    with transaction(engine) as connection:
        return schema_of(connection)


@pytest.mark.parametrize("version", ["0004", None])
def test_tables_of_a_version_that_was_never_released_are_refused_and_left_alone(
    engine: sa.Engine, database_url: sa.URL, version: str | None
) -> None:
    with engine.begin() as connection:
        if version:
            old = f"UPDATE {SCHEMA_TABLE} SET version_num = '{version}'"  # noqa: S608
            connection.exec_driver_sql(old)
        else:
            connection.exec_driver_sql(f"DROP TABLE {SCHEMA_TABLE}")
    before = schema(engine)
    for work in (upgrade, lambda _: open_service(load_settings(), migrate=True)):
        with pytest.raises(SettingsError, match=r"never released.*name a new database"):
            work(database_url)
    assert schema(engine) == before == (version or "")


def test_a_migration_happens_wholly_or_not_at_all(databases: Databases, tmp_path: Path) -> None:
    with databases.empty(tmp_path) as url:
        engine = connect(url)

        def fail(_: object, __: object, statement: str, *___: object) -> None:
            if "api_key_events_stay" in statement:  # comes near the end
                raise RuntimeError("a fault")

        sa.event.listen(sa.Engine, "before_cursor_execute", fail)
        with pytest.raises(RuntimeError, match="a fault"):
            upgrade(url)
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)
        assert schema(engine) is None
        with engine.begin() as connection:
            assert sa.inspect(connection).get_table_names() == []
        upgrade(url)


def test_of_two_that_make_the_schema_one_waits(databases: Databases, tmp_path: Path) -> None:
    with (
        databases.empty(tmp_path) as url,
        ThreadPoolExecutor(1) as pool,
        patch("app.auth.database.migrate.connect", wraps=connect) as connected,
    ):
        if url.get_backend_name() == "sqlite":
            make_file(Path(f"{url.database}"))
        engine = connect(url)
        with transaction(engine, write=True) as connection:
            other = pool.submit(upgrade, url)
            with pytest.raises(TimeoutError):
                other.result(0.5)
            create_tables(connection)
        other.result(30)
        assert schema(engine) == SCHEMA
    # However long it takes.
    assert LONG_TIMEOUT in [call.kwargs.get("timeout") for call in connected.call_args_list]


def test_services_that_start_at_the_same_time_make_the_schema_once(tmp_path: Path) -> None:
    url = sa.URL.create("sqlite", database=str(tmp_path / "new.db"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, [url] * 4))
    assert schema(connect(url)) == SCHEMA
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600


def test_a_newer_schema_is_refused_and_left_alone(engine: sa.Engine, database_url: sa.URL) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {SCHEMA_TABLE} SET version_num = '9999'")  # noqa: S608
    for work in (upgrade, lambda _: open_service(load_settings(), migrate=True)):
        with pytest.raises(SettingsError, match="newer than the service"):
            work(database_url)
    assert schema(engine) == "9999"


def test_where_no_keys_were_ever_kept_one_is_told_what_makes_a_place(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with databases.empty(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        for exists in (False, True):
            with pytest.raises(SettingsError, match=f"{COMMAND} db upgrade") as error:
                open_service(load_settings())
            assert "\n" not in f"{error.value}"
            if url.get_backend_name() == "sqlite":
                assert Path(f"{url.database}").exists() == exists
                Path(f"{url.database}").touch()


def test_a_file_that_another_process_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sa.URL.create("sqlite", database=str(tmp_path / "new.db"))
    with closing(sqlite3.connect(tmp_path / "new.db", check_same_thread=False)) as other:
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailableError, match=r"DATABASE_URL: .*database is locked"):
            schema(connect(url, timeout=0.05))
        done = threading.Timer(0.2, other.rollback)
        done.start()
        upgrade(url)
        done.join()


def test_a_file_that_another_process_opens_for_the_first_time_is_waited_for(
    tmp_path: Path,
) -> None:
    url = sa.URL.create("sqlite", database=str(tmp_path / "new.db"))
    upgrade(url)
    with closing(sqlite3.connect(tmp_path / "new.db", check_same_thread=False)) as other:
        other.isolation_level = None
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match=r"DATABASE_URL: .*database is locked"):
            schema(connect(url, timeout=0.05))
        done = threading.Timer(0.2, other.rollback)
        done.start()
        assert schema(connect(url)) == SCHEMA
        done.join()


def test_a_file_that_is_replaced_while_it_is_opened_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = sa.URL.create("sqlite", database=str(tmp_path / "new.db")), tmp_path / "new.db"
    upgrade(url)

    def replace(_: sqlite3.Connection) -> bool:
        shutil.copy(path, tmp_path / "other.db")
        (tmp_path / "other.db").replace(path)
        return False

    monkeypatch.setattr("app.auth.database.engine._holds_keys", replace)
    with pytest.raises(StoreUnavailableError, match="was replaced just now"):
        schema(connect(url))


def test_a_connection_that_was_let_go_of_is_closed_at_its_end(database_url: sa.URL) -> None:
    engine = connect(database_url, pooled=True)
    with transaction(engine) as connection:
        engine.dispose()
        opened: Any = connection.connection.driver_connection
    with pytest.raises(engine.dialect.loaded_dbapi.Error):
        opened.execute("SELECT 1")


@pytest.mark.parametrize("name", ["missing/keys.db", "."])
def test_a_file_that_cannot_be_made_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreUnavailableError, match=r"^DATABASE_URL: out of reach: [^\n]+$"):
        upgrade(sa.URL.create("sqlite", database=str(tmp_path / name)))


def test_a_database_file_that_cannot_share_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallen_back = SimpleNamespace(fetchone=lambda: ("delete",))
    monkeypatch.setattr("app.auth.database.engine._insist", lambda *_: fallen_back)
    with pytest.raises(StoreUnavailableError, match="keep the file on a local disk"):
        upgrade(sa.URL.create("sqlite", database=str(tmp_path / "keys.db")))
