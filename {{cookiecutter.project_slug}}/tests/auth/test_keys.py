"""The life of a key: who gets in with which secret, what stays written, and what is final."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.auth import GuardedAPI
from app.auth.database.models import metadata
from app.auth.key import digest, new_secret, with_prefix
from app.auth.keys.service import ConflictError, InvalidError, KeyService, NotFoundError
from app.auth.keys.views import IssuedKey
from app.constants import MISSING_KEY_STATUS as MISSING
from tests.callers import Clock, status_of

InForce = Callable[..., Awaitable[str]]
ME = "tests"


def hours(number: str) -> timedelta:
    return timedelta(hours=int(number))


def take(step: str, service: KeyService, clock: Clock, issued: list[IssuedKey]) -> None:
    """One step in the life of a key: `create=2` expires after two hours."""
    action, _, value = step.partition("=")
    now = datetime.fromtimestamp(clock.now, UTC)
    if action == "create":
        ends = now + hours(value) if value else None
        issued.append(service.create("key", expires_at=ends, actor=ME))
    elif action == "rotate":
        overlap = hours(value) if value else timedelta(days=1)
        issued.append(service.rotate(issued[0].id, overlap=overlap, actor=ME))
    elif action == "rotate-dropping":
        which = cast(Literal["old", "new"], value)
        issued.append(service.rotate(issued[0].id, drop=which, actor=ME))
    elif action == "drop":
        service.drop(issued[0].id, cast(Literal["old", "new"], value), actor=ME)
    elif action == "revoke":
        service.revoke(issued[0].id, actor=ME)
    elif action == "revoke-issued-before-now":
        service.revoke_issued_before(now, force=True, actor=ME)
    elif action == "wait":
        clock.pass_time(hours(value).total_seconds())
    else:
        clock.now -= hours(value).total_seconds()
        assert action == "set-clock-back"


LIVES = {  # and which of the secrets, in the order of their issue, get in at the end
    "create": "+",
    "create=2 wait=1": "+",
    "create=2 wait=2": "-",
    "create=2 wait=2 set-clock-back=23": "-",
    "create revoke": "-",
    "create revoke set-clock-back=9": "-",
    "create rotate": "++",
    "create rotate revoke": "--",
    "create rotate=0": "-+",
    "create rotate=2 wait=1": "++",
    "create rotate=2 wait=2": "-+",
    "create rotate=2 wait=2 set-clock-back=1": "-+",
    "create rotate=2 wait=2 rotate": "-++",
    "create=4 rotate=9 wait=4": "--",
    "create rotate=2 rotate-dropping=new wait=2": "--+",
    "create rotate rotate-dropping=old": "-++",
    "create rotate rotate-dropping=new": "+-+",
    "create rotate drop=old": "-+",
    "create rotate=2 drop=new": "+-",
    "create rotate=2 drop=new wait=2": "--",
    "create wait=1 rotate revoke-issued-before-now": "-+",
    "create wait=1 revoke-issued-before-now": "-",
}


@pytest.mark.parametrize("life", LIVES)
async def test_a_secret_is_in_force_if_and_only_if_nothing_has_ended_it(
    key_service: KeyService, clock: Clock, in_force: InForce, life: str
) -> None:
    issued: list[IssuedKey] = []
    for step in life.split():
        take(step, key_service, clock, issued)
        signs = await in_force(*(each.key for each in issued))  # now the service knows them all
    assert signs == LIVES[life]
    assert await in_force(new_secret()) == "-"


async def test_a_key_that_api_keys_no_longer_names_ends(
    start_service: Callable[[], GuardedAPI],
    secrets: list[str],
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for named, status in ((secrets, 200), (secrets[1:], MISSING), (secrets, 200)):
        monkeypatch.setenv("API_KEYS", ",".join(named))
        service = start_service()
        assert await status_of(service, secrets[0].encode()) == status
    service.state.key_service.revoke(ids[0], actor=ME)
    assert await status_of(start_service(), secrets[0].encode()) == MISSING  # stays revoked
    assert await status_of(start_service(), secrets[1].encode()) == 200


def test_each_change_leaves_one_event_that_says_who_and_what(
    key_service: KeyService, ids: list[str]
) -> None:
    key = key_service.create("key", actor="eve")
    key_service.rotate(key.id, actor="ann")
    key_service.drop(key.id, "new", actor="bob")
    key_service.revoke(key.id, actor="joe")
    key_service.revoke(key.id, actor="too late to matter")
    told = [(event.action, event.actor, event.key_id) for event in key_service.events()]
    assert sorted(told[:2]) == sorted(("created", "API_KEYS", id) for id in ids)
    changes = ["created eve", "rotated ann", "dropped new bob", "revoked joe"]
    assert [f"{action} {actor}" for action, actor, _ in told[2:]] == changes
    assert {id for _, _, id in told[2:]} == {key.id}


def test_a_rotation_widens_nothing(key_service: KeyService, clock: Clock) -> None:
    end = datetime.fromtimestamp(clock.now, UTC) + timedelta(hours=1)
    key = key_service.create("key", ["a"], expires_at=end, actor=ME)
    ends = []
    for minutes in (1, 48, 2):
        overlap = timedelta(minutes=minutes)
        key = key_service.rotate(key.id, overlap=overlap, drop="new", actor=ME)
        ends.append(key.old_key_expires_at)
        assert (key.scopes, key.expires_at) == (["a"], end)
    assert ends == [ends[0]] * 3  # of the first secret, which was to end after a minute
    key = key_service.rotate(key.id, overlap=timedelta(days=400), drop="old", actor=ME)
    assert key.old_key_expires_at == end


def test_the_last_manager_without_an_end_is_revoked_by_force_alone(
    key_service: KeyService, ids: list[str], clock: Clock
) -> None:
    tomorrow = datetime.fromtimestamp(clock.now, UTC) + timedelta(days=1)
    manager = key_service.create("manager", ["keys:*"], actor=ME)
    key_service.create("for a day", ["keys:manage"], expires_at=tomorrow, actor=ME)
    for id in ids:
        key_service.revoke(id, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        key_service.revoke(manager.id, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        key_service.revoke_issued_before(tomorrow, actor=ME)
    assert key_service.get(manager.id).status == "active"
    assert key_service.revoke(manager.id, force=True, actor=ME).status == "revoked"


def test_what_cannot_be_done_is_refused(key_service: KeyService, ids: list[str]) -> None:
    key = key_service.create("key", actor=ME)
    refused: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: key_service.create("a\u200bb", actor=ME), InvalidError),  # looks like another
        (lambda: key_service.create("\u3164", actor=ME), InvalidError),
        (lambda: key_service.create("x" * 101, actor=ME), InvalidError),
        (lambda: key_service.create("x", ["a b"], actor=ME), InvalidError),
        (lambda: key_service.create("x", ["a:*:b"], actor=ME), InvalidError),
        (lambda: key_service.create("x", expires_at=key.created_at, actor=ME), InvalidError),
        (lambda: key_service.rotate(key.id, overlap=-timedelta(1), actor=ME), InvalidError),
        (lambda: key_service.rotate(ids[0], actor=ME), ConflictError),
        (lambda: key_service.drop(key.id, "old", actor=ME), ConflictError),
        (lambda: key_service.revoke("nobody", actor=ME), NotFoundError),
    ]
    before = key_service.events()
    for change, error in refused:
        with pytest.raises(error):
            change()
    key_service.rotate(key.id, actor=ME)
    with pytest.raises(ConflictError, match="drop the old one"):
        key_service.rotate(key.id, actor=ME)
    key_service.revoke(key.id, actor=ME)
    with pytest.raises(ConflictError, match="is revoked; create another key"):
        key_service.rotate(key.id, actor=ME)
    assert len(key_service.events()) == len(before) + 2


# The database.


def rows_of(engine: sa.Engine) -> dict[str, list[Any]]:
    with engine.begin() as connection:
        return {
            name: sorted(map(tuple, connection.execute(sa.select(table))), key=str)
            for name, table in metadata.tables.items()
        }


CHANGES: dict[str, Callable[[KeyService, str], object]] = {
    "create": lambda service, _: service.create("another", actor=ME),
    "rotate": lambda service, key: service.rotate(key, drop="old", actor=ME),
    "drop": lambda service, key: service.drop(key, "new", actor=ME),
    "revoke": lambda service, key: service.revoke(key, actor=ME),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fault_at_any_statement_leaves_neither_the_change_nor_its_event(
    key_service: KeyService, change: str
) -> None:
    engine, id = key_service.engine, key_service.create("key", actor=ME).id
    key_service.rotate(id, actor=ME)
    before, faults, place = rows_of(engine), 0, 0

    def fail(*_: object) -> None:
        nonlocal place
        place += 1
        if place == faults:
            raise RuntimeError("a fault")

    while True:
        faults, place = faults + 1, 0
        sa.event.listen(engine, "before_cursor_execute", fail)
        sa.event.listen(engine, "commit", fail)
        try:
            CHANGES[change](key_service, id)
            break
        except RuntimeError:
            pass
        finally:
            sa.event.remove(engine, "before_cursor_execute", fail)
            sa.event.remove(engine, "commit", fail)
        assert rows_of(engine) == before
    assert faults > 4
    assert rows_of(engine)["api_key_events"] != before["api_key_events"]


REFUSED = [  # by rules of the database, whoever asks
    "UPDATE api_keys SET revoked_at = NULL WHERE revoked_at IS NOT NULL",
    "UPDATE api_keys SET revoked_at = '2999-01-01' WHERE revoked_at IS NOT NULL",
    "UPDATE api_keys SET scopes = '*' WHERE scopes <> '*'",
    "UPDATE api_keys SET expires_at = '2999-01-01' WHERE expires_at IS NOT NULL",
    "UPDATE api_keys SET expires_at = NULL WHERE expires_at IS NOT NULL",
    "UPDATE api_keys SET id = 'another' WHERE scopes = 'a'",
    "UPDATE api_key_secrets SET ended_at = NULL WHERE ended_at IS NOT NULL",
    "UPDATE api_key_secrets SET expires_at = '2999-01-01' WHERE expires_at IS NOT NULL",
    "UPDATE api_key_secrets SET expires_at = NULL WHERE expires_at IS NOT NULL",
    "UPDATE api_key_secrets SET digest = x'00' WHERE ended_at IS NOT NULL",
    "UPDATE api_key_secrets SET key_id = 'another' WHERE ended_at IS NOT NULL",
    "DELETE FROM api_keys",
    "DELETE FROM api_key_secrets",
    "DELETE FROM api_key_events",
    "UPDATE api_key_events SET actor = 'nobody'",
    "INSERT OR REPLACE INTO api_keys SELECT * FROM api_keys",
    "INSERT OR REPLACE INTO api_key_secrets SELECT * FROM api_key_secrets",
    "INSERT OR REPLACE INTO api_key_events SELECT * FROM api_key_events",
    "UPDATE OR REPLACE api_key_secrets SET expires_at = '2001-01-01' WHERE expires_at IS NULL",
    "INSERT INTO api_key_secrets SELECT x'00', key_id, created_at, expires_at, NULL, NULL"
    " FROM api_key_secrets WHERE ended_at IS NULL AND key_id NOT LIKE 'env-%'",
]


def test_the_database_refuses_what_must_never_happen(key_service: KeyService) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    key = key_service.create("key", ["a"], expires_at=tomorrow, actor=ME)
    key_service.rotate(key.id, actor=ME)
    key_service.rotate(key.id, drop="old", actor=ME)
    key_service.revoke(key_service.create("gone", actor=ME).id, actor=ME)
    before = rows_of(key_service.engine)

    def execute(statement: str) -> None:
        with key_service.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    for statement in REFUSED:
        with pytest.raises(sa.exc.IntegrityError, match=r"\) (api_key|UNIQUE)"):
            execute(statement)
        assert rows_of(key_service.engine) == before, statement


def test_the_migrations_make_the_tables_that_the_code_uses(key_service: KeyService) -> None:
    ours = {"include_name": lambda name, kind, _: kind != "table" or name in metadata.tables}
    with key_service.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=ours)
        differences = compare_metadata(context, metadata)
    # Indexes that are rules are in the database alone.
    assert [each for each in differences if each[0] != "remove_index"] == []


async def test_no_key_is_stored(
    service: GuardedAPI,
    key_service: KeyService,
    database_url: sa.URL,
    secrets: list[str],
    in_force: InForce,
) -> None:
    async with service.router.lifespan_context(service):
        key = key_service.create("billing", actor=ME)
        issued = [*secrets, key.key, key_service.rotate(key.id, actor=ME).key]
        assert await in_force(*issued) == "++++"
    stored = b"".join(
        file.read_bytes() for file in Path(f"{database_url.database}").parent.iterdir()
    )
    for secret in issued:
        assert digest(secret.encode()) in stored
        body = with_prefix(secret, "x")[2:24]
        for spelling in (secret, secret.replace("-", ""), body):
            assert not re.search(spelling.encode(), stored, re.IGNORECASE)
        assert UUID(secret).bytes not in stored
