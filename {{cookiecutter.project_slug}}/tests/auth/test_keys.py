"""The life of a key: which secret gets in, what is written down, and what is final."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.auth.database.models import metadata
from app.auth.key import digest, new_secret, with_prefix
from app.auth.keys.errors import ConflictError, InvalidError, NotFoundError
from app.auth.keys.service import KeyService
from app.auth.keys.views import IssuedKey
from app.settings import load_settings
from tests.callers import Clock, run
from tests.conftest import Server

ME = "tests"


def take(step: str, keys: KeyService, clock: Clock, issued: list[IssuedKey]) -> None:
    """One step in the life of a key; `create=2` makes one that expires after two hours."""
    action, _, value = step.partition("=")
    hours = timedelta(hours=int(value)) if value.isdigit() else None
    which = cast(Literal["old", "new"], value)
    now = datetime.fromtimestamp(clock.now, UTC)
    if action == "create":
        issued.append(keys.create("key", expires_at=now + hours if hours else None, actor=ME))
    elif action == "rotate" and hours is None and value:
        issued.append(keys.rotate(issued[0].id, drop=which, actor=ME))
    elif action == "rotate":
        overlap = timedelta(days=1) if hours is None else hours
        issued.append(keys.rotate(issued[0].id, overlap=overlap, actor=ME))
    elif action == "drop":
        keys.drop(issued[0].id, which, actor=ME)
    elif action == "revoke":
        keys.revoke(issued[0].id, actor=ME)
    elif action == "revoke-issued-before-now":
        keys.revoke_issued_before(now, force=True, actor=ME)
    elif action == "wait":
        clock.pass_time(int(value) * 3600)
    elif action == "set-clock-back":
        clock.now -= int(value) * 3600


LIVES = {  # and which of the secrets, in the order of their issue, get in at the end
    "create": "+",
    "create=2 wait=1": "+",
    "create=2 wait=2": "-",
    "create=2 wait=2 set-clock-back=23": "-",
    "create revoke set-clock-back=9": "-",
    "create rotate revoke": "--",
    "create rotate=0": "-+",
    "create rotate=2 wait=1": "++",
    "create rotate=2 wait=2 rotate": "-++",
    "create rotate=2 wait=2 rotate set-clock-back=9": "-++",
    "create=4 rotate=9 wait=4": "--",
    "create rotate=2 rotate=new wait=2": "--+",
    "create rotate rotate=old": "-++",
    "create rotate rotate=new": "+-+",
    "create rotate drop=old": "-+",
    "create rotate=2 drop=new": "+-",
    "create rotate=2 drop=new wait=2": "--",
    "create wait=1 rotate revoke-issued-before-now": "-+",
    "create wait=1 revoke-issued-before-now": "-",
}


@pytest.mark.parametrize("life", LIVES)
async def test_a_secret_gets_in_if_and_only_if_nothing_has_ended_it(
    clock: Clock, server: Server, life: str
) -> None:
    issued: list[IssuedKey] = []
    for step in life.split():
        take(step, server.keys, clock, issued)
        signs = await server.admits(*(each.key for each in issued))  # now it knows them all
    assert signs == LIVES[life]
    assert await server.admits(new_secret()) == "-"


async def test_a_key_that_api_keys_no_longer_names_ends(
    start_server: Callable[[], Server],
    secrets: list[str],
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for named, signs in ((secrets, "++"), (secrets[1:], "-+"), (secrets, "++")):
        monkeypatch.setenv("API_KEYS", ",".join(named))
        server = start_server()
        assert await server.admits(*secrets) == signs
    server.keys.revoke(ids[0], actor=ME)
    assert await start_server().admits(*secrets) == "-+"  # what is revoked stays so


async def test_a_restriction_that_nothing_enforces_keeps_everybody_out(server: Server) -> None:
    """So nobody widens a key by taking a part of the service away."""
    policy: Any = SimpleNamespace(name="moon", parse=list)
    moonlit = {"moon": ["full"]}
    with_policy = KeyService(load_settings(), [policy])
    key = with_policy.create("key", restrictions=moonlit, actor=ME).key
    assert await server.admits(key, key) == "--"
    assert "refused, for nothing here enforces its moon" in run("keys", "doctor").stdout
    with pytest.raises(InvalidError, match="Nothing here enforces 'moon'"):
        server.keys.create("key", restrictions=moonlit, actor=ME)


def test_each_change_leaves_one_event_that_says_who_and_what(
    server: Server, ids: list[str]
) -> None:
    key = server.keys.create("key", actor="eve")
    server.keys.rotate(key.id, actor="ann")
    server.keys.drop(key.id, "new", actor="bob")
    server.keys.revoke(key.id, actor="joe")
    server.keys.revoke(key.id, actor="too late to matter")
    told = [(event.key_id, event.action, event.actor) for event in server.keys.events()]
    assert sorted(told[:2]) == sorted((id, "created", "API_KEYS") for id in ids)
    changes = [("created", "eve"), ("rotated", "ann"), ("dropped new", "bob"), ("revoked", "joe")]
    assert told[2:] == [(key.id, *change) for change in changes]


def test_a_rotation_widens_nothing(clock: Clock, server: Server) -> None:
    end = datetime.fromtimestamp(clock.now, UTC) + timedelta(hours=1)
    key = server.keys.create("key", ["a"], expires_at=end, actor=ME)
    ends = []
    for minutes in (1, 48, 2):
        overlap = timedelta(minutes=minutes)
        key = server.keys.rotate(key.id, overlap=overlap, drop="new", actor=ME)
        ends.append(key.old_key_expires_at)
        assert (key.scopes, key.expires_at) == (["a"], end)
    assert ends == [ends[0]] * 3  # of the first secret, which was to end after a minute
    key = server.keys.rotate(key.id, overlap=timedelta(days=400), drop="old", actor=ME)
    assert key.old_key_expires_at == end


def test_the_last_manager_without_an_end_is_revoked_by_force_alone(
    clock: Clock, server: Server, ids: list[str]
) -> None:
    tomorrow = datetime.fromtimestamp(clock.now, UTC) + timedelta(days=1)
    manager = server.keys.create("manager", ["keys:*"], actor=ME)
    server.keys.create("for a day", ["keys:manage"], expires_at=tomorrow, actor=ME)
    for id in ids:
        server.keys.revoke(id, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        server.keys.revoke(manager.id, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        server.keys.revoke_issued_before(tomorrow, actor=ME)
    assert server.keys.get(manager.id).status == "active"
    assert server.keys.revoke(manager.id, force=True, actor=ME).status == "revoked"


def test_what_cannot_be_done_is_refused_and_changes_nothing(server: Server, ids: list[str]) -> None:
    keys, active, rotated, revoked = (
        server.keys,
        *(server.keys.create("x", actor=ME) for _ in "123"),
    )
    keys.rotate(rotated.id, actor=ME)
    keys.revoke(revoked.id, actor=ME)
    refused: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: keys.create("a\u200bb", actor=ME), InvalidError),  # looks like another
        (lambda: keys.create("\u3164", actor=ME), InvalidError),
        (lambda: keys.create("x" * 101, actor=ME), InvalidError),
        (lambda: keys.create("x", ["a:*:b"], actor=ME), InvalidError),
        (lambda: keys.create("x", expires_at=active.created_at, actor=ME), InvalidError),
        (lambda: keys.rotate(active.id, overlap=-timedelta(1), actor=ME), InvalidError),
        (lambda: keys.rotate(ids[0], actor=ME), ConflictError),  # it lives in API_KEYS
        (lambda: keys.rotate(rotated.id, actor=ME), ConflictError),  # there would be three
        (lambda: keys.rotate(revoked.id, actor=ME), ConflictError),
        (lambda: keys.drop(active.id, "old", actor=ME), ConflictError),
        (lambda: keys.revoke("nobody", actor=ME), NotFoundError),
    ]
    before = keys.events()
    for change, error in refused:
        with pytest.raises(error):
            change()
    assert keys.events() == before


# The database.


def rows_of(engine: sa.Engine) -> dict[str, list[str]]:
    with engine.begin() as connection:
        tables = metadata.tables.items()
        return {
            name: sorted(map(str, connection.execute(sa.select(table)))) for name, table in tables
        }


CHANGES: dict[str, Callable[[KeyService, str], object]] = {
    "create": lambda keys, _: keys.create("another", actor=ME),
    "rotate": lambda keys, key: keys.rotate(key, drop="old", actor=ME),
    "drop": lambda keys, key: keys.drop(key, "new", actor=ME),
    "revoke": lambda keys, key: keys.revoke(key, actor=ME),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fault_at_any_statement_leaves_neither_the_change_nor_its_event(
    server: Server, change: str
) -> None:
    engine, id = server.keys.engine, server.keys.create("key", actor=ME).id
    server.keys.rotate(id, actor=ME)
    before, faults, place, done = rows_of(engine), 0, 0, False

    def fail(*_: object) -> None:
        nonlocal place
        place += 1
        if place == faults:
            raise RuntimeError("a fault")

    while not done:
        assert rows_of(engine) == before
        faults, place = faults + 1, 0
        for moment in ("before_cursor_execute", "commit"):
            sa.event.listen(engine, moment, fail)
        try:
            CHANGES[change](server.keys, id)
            done = True
        except RuntimeError as error:
            assert f"{error}" == "a fault"  # noqa: PT017
        finally:
            for moment in ("before_cursor_execute", "commit"):
                sa.event.remove(engine, moment, fail)
    assert faults > 4
    assert rows_of(engine)["api_key_events"] != before["api_key_events"]


REFUSED = [  # by the database itself, whoever asks
    "UPDATE api_keys SET revoked_at = NULL WHERE revoked_at IS NOT NULL",
    "UPDATE api_keys SET revoked_at = '2999-01-01' WHERE revoked_at IS NOT NULL",
    "UPDATE api_keys SET scopes = '*' WHERE scopes <> '*'",
    "UPDATE api_keys SET restrictions = '{\"a\": []}'",
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


def test_the_database_refuses_what_must_never_happen(server: Server) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    key = server.keys.create("key", ["a"], expires_at=tomorrow, actor=ME)
    server.keys.rotate(key.id, actor=ME)
    server.keys.rotate(key.id, drop="old", actor=ME)
    server.keys.revoke(server.keys.create("gone", actor=ME).id, actor=ME)
    before = rows_of(server.keys.engine)

    def execute(statement: str) -> None:
        with server.keys.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    for statement in REFUSED:
        with pytest.raises(sa.exc.IntegrityError, match=r"\) (api_key|UNIQUE)"):
            execute(statement)
        assert rows_of(server.keys.engine) == before, statement


def test_the_migrations_make_the_tables_that_the_code_uses(server: Server) -> None:
    def is_known(name: str | None, kind: str, _: Any) -> bool:
        return kind != "table" or name in metadata.tables

    with server.keys.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_known})
        differences = compare_metadata(context, metadata)
    # Indexes that are rules are in the database alone.
    assert [each for each in differences if each[0] != "remove_index"] == []


async def test_no_key_is_stored(server: Server, tmp_path: Path, secrets: list[str]) -> None:
    async with server.store.follow():
        key = server.keys.create("billing", actor=ME)
        issued = [*secrets, key.key, server.keys.rotate(key.id, actor=ME).key]
        assert await server.admits(*issued) == "++++"
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for secret in issued:
        assert digest(secret.encode()) in stored
        assert UUID(secret).bytes not in stored
        for spelling in (secret, secret.replace("-", ""), with_prefix(secret, "x")[2:24]):
            assert not re.search(spelling.encode(), stored, re.IGNORECASE)
