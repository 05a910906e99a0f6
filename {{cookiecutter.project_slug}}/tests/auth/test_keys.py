"""The life of a key: which secret gets in, what is written down, and what is final."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID

import pytest
import sqlalchemy as sa

from app.auth.database.models import metadata
from app.auth.errors import ConflictError, InvalidError
from app.auth.key import digest, new_secret, with_prefix
from app.auth.keys.service import KeyService
from app.auth.keys.views import IssuedKey
from app.settings import load_settings
from tests.callers import Clock, run
from tests.conftest import Server

ME = "tests"
HOUR = timedelta(hours=1)
WHICH: dict[str, Literal["old", "new"]] = {"old": "old", "new": "new"}


def take(step: str, keys: KeyService, clock: Clock, issued: list[IssuedKey]) -> None:
    """One step in the life of a key; a number is one of hours."""
    id, now = issued[0].id if issued else "", datetime.fromtimestamp(clock.now, UTC)
    match step.split("="):
        case ["create"]:
            issued.append(keys.create("key", actor=ME))
        case ["create", end]:
            issued.append(keys.create("key", expires_at=now + int(end) * HOUR, actor=ME))
        case ["rotate"]:
            issued.append(keys.rotate(id, actor=ME))
        case ["rotate", "old" | "new" as which]:
            issued.append(keys.rotate(id, drop=WHICH[which], actor=ME))
        case ["rotate", overlap]:
            issued.append(keys.rotate(id, overlap=int(overlap) * HOUR, actor=ME))
        case ["drop", which]:
            keys.drop(id, WHICH[which], actor=ME)
        case ["revoke"]:
            keys.revoke(id, actor=ME)
        case ["revoke-issued-before-now"]:
            keys.revoke_issued_before(now, force=True, actor=ME)
        case ["pause"]:
            keys.pause(id, actor=ME)
        case ["resume"]:
            keys.resume(id, actor=ME)
        case ["end", hours]:
            keys.update(id, lambda _: {"expires_at": now + int(hours) * HOUR}, actor=ME)
        case ["wait", hours]:
            clock.pass_time(int(hours) * 3600)
        case ["set-clock-back", hours]:
            clock.now -= int(hours) * 3600


LIVES = {  # and which of the secrets, in the order of their issue, get in at the end
    "create": "+",
    "create=2 wait=2 set-clock-back=23": "-",
    "create revoke set-clock-back=9": "-",
    "create rotate revoke": "--",
    "create pause": "-",
    "create=2 rotate pause wait=1 resume": "++",
    "create=2 pause wait=2 set-clock-back=9": "-",
    "create=2 end=4 wait=3": "+",
    "create=9 rotate=2 end=99 wait=3": "-+",
    "create end=2 wait=2": "-",
    "create rotate=0": "-+",
    "create rotate=2 wait=1": "++",
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
async def test_a_secret_gets_in_until_something_ends_it(
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


def test_a_rotation_widens_nothing(clock: Clock, server: Server) -> None:
    now = datetime.fromtimestamp(clock.now, UTC)
    key = server.keys.create("key", ["a"], expires_at=now + HOUR, actor=ME)
    for overlap, old_ends in ((99 * HOUR, HOUR), (HOUR / 2, HOUR / 2), (99 * HOUR, HOUR / 2)):
        key = server.keys.rotate(key.id, overlap=overlap, drop="new", actor=ME)
        assert (key.scopes, key.expires_at) == (["a"], now + HOUR)
        assert key.old_key_expires_at == now + old_ends


def test_force_alone_revokes_the_last_manager(clock: Clock, server: Server, ids: list[str]) -> None:
    tomorrow = datetime.fromtimestamp(clock.now, UTC) + timedelta(days=1)
    manager = server.keys.create("manager", ["keys:*"], actor=ME)
    server.keys.create("for a day", ["keys:manage"], expires_at=tomorrow, actor=ME)
    for id in ids:
        server.keys.revoke(id, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        server.keys.revoke(manager.id, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        server.keys.revoke_issued_before(tomorrow, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        server.keys.pause(manager.id, actor=ME)
    with pytest.raises(ConflictError, match="would be left"):
        server.keys.update(manager.id, lambda _: {"scopes": ["a"]}, actor=ME)
    assert server.keys.get(manager.id).status == "active"
    assert server.keys.revoke(manager.id, force=True, actor=ME).status == "revoked"


# The database.


def rows_of(engine: sa.Engine) -> dict[str, list[str]]:
    tables = metadata.tables.items()
    with engine.begin() as connection:
        return {
            name: sorted(map(str, connection.execute(sa.select(each)))) for name, each in tables
        }


def test_what_cannot_be_written_down_is_not_done(server: Server) -> None:
    """A change and its event are one: a fault between them leaves neither."""
    keys, id = server.keys, server.keys.create("key", actor=ME).id
    keys.rotate(id, actor=ME)
    before = rows_of(keys.engine)

    def fail(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("INSERT INTO api_key_events"):
            raise RuntimeError("a fault")

    sa.event.listen(keys.engine, "before_cursor_execute", fail)
    changes: list[Callable[[], object]] = [
        lambda: keys.create("another", actor=ME),
        lambda: keys.rotate(id, drop="old", actor=ME),
        lambda: keys.revoke(id, actor=ME),
    ]
    for change in changes:
        with pytest.raises(RuntimeError, match="a fault"):
            change()
        assert rows_of(keys.engine) == before


REFUSED = """
UPDATE api_keys SET revoked_at = NULL WHERE revoked_at IS NOT NULL
UPDATE api_keys SET scopes = '*' WHERE revoked_at IS NOT NULL
UPDATE api_keys SET id = 'another' WHERE revoked_at IS NULL
UPDATE api_key_secrets SET ended_at = NULL WHERE ended_at IS NOT NULL
UPDATE api_key_secrets SET digest = x'00' WHERE ended_at IS NOT NULL
UPDATE api_key_secrets SET key_id = 'another' WHERE ended_at IS NOT NULL
UPDATE api_key_secrets SET expires_at = '2999-01-01' WHERE expires_at IS NOT NULL
UPDATE api_key_secrets SET expires_at = NULL WHERE expires_at IS NOT NULL
UPDATE OR REPLACE api_key_secrets SET expires_at = '2001-01-01' WHERE expires_at IS NULL
UPDATE api_key_events SET actor = 'nobody'
DELETE FROM api_keys
DELETE FROM api_key_secrets
DELETE FROM api_key_events
INSERT OR REPLACE INTO api_keys SELECT * FROM api_keys
INSERT OR REPLACE INTO api_key_secrets SELECT * FROM api_key_secrets
INSERT OR REPLACE INTO api_key_events SELECT * FROM api_key_events
INSERT INTO api_key_secrets SELECT x'00', key_id, created_at, expires_at, NULL, NULL \
    FROM api_key_secrets WHERE ended_at IS NULL AND key_id NOT LIKE 'env-%'
"""


def test_the_database_itself_refuses_what_must_never_happen(server: Server) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    key = server.keys.create("key", ["a"], expires_at=tomorrow, actor=ME)
    server.keys.rotate(key.id, actor=ME)
    server.keys.rotate(key.id, drop="old", actor=ME)
    server.keys.revoke(server.keys.create("gone", actor=ME).id, actor=ME)
    before = rows_of(server.keys.engine)

    def execute(statement: str) -> None:
        with server.keys.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    for statement in REFUSED.strip().splitlines():
        with pytest.raises(sa.exc.IntegrityError, match=r"\) (api_key|UNIQUE)"):
            execute(statement)
        assert rows_of(server.keys.engine) == before, statement


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
