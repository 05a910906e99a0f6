"""No secret leaves the service but in the one answer that hands it out, and none is stored."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from app.auth import Caller, GuardedAPI, GuardedRouter
from app.auth.database.engine import connect
from app.auth.errors import SettingsError
from app.auth.key import digest, id_of, new_secret, with_prefix
from app.auth.keys.change import MANAGE
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.cli import main
from app.constants import API_KEY_HEADER
from app.settings import load_settings
from tests.callers import PROBE, ask
from tests.thorough.servers import LiveServer


def found(secrets: Iterable[str], text: bytes) -> list[bytes]:
    """Every spelling of one of the secrets that is in there, in upper or lower case or mixed."""
    lower = text.lower()
    return [
        spelling
        for secret in secrets
        for spelling in (
            secret.encode(),
            secret.replace("-", "").encode(),
            with_prefix(secret, "acme")[5:27].lower().encode(),
        )
        if spelling in lower
    ] + [raw for raw in (UUID(secret).bytes for secret in secrets) if raw in text]


def test_the_search_finds_every_spelling() -> None:
    secret = new_secret()
    prefixed = with_prefix(secret, "x")
    raw = UUID(secret).bytes
    for spelling in (secret, secret.upper(), prefixed, secret.replace("-", ""), raw.hex().upper()):
        assert len(found([secret], f"key={spelling}.".encode())) == 1
    assert found([secret], b"\x00" + raw + b"\x00") == [raw]
    assert found([new_secret()], f"{secret} {prefixed}".encode() + raw) == []


@pytest.fixture
def debugging(working_directory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(_: float) -> None: ...

    monkeypatch.setattr("app.management.router.sleep", sleep)
    monkeypatch.setattr("app.auth.cli.context.sleep", lambda _: None)


@pytest.mark.usefixtures("debugging", "no_waiting")
def test_no_key_in_any_output(
    service: GuardedAPI,
    live: LiveServer,
    secrets: list[str],
    ids: list[str],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for caller in ("httpx", "httpcore"):  # what the caller logs is its own affair
        caplog.set_level(logging.WARNING, caller)
    caplog.set_level(logging.DEBUG)
    router = GuardedRouter()

    @router.get("/failing")
    async def failing(caller: Caller) -> None:
        held = (vars(service.keys), vars(service.state.key_service))
        raise ValueError(f"{caller!r} and {held}")

    service.include_router(router)
    stranger = new_secret()
    canaries = [*secrets, stranger]
    seen: list[str] = []
    # A failing endpoint ends its connection.
    http = httpx.Client(base_url=live.url, limits=httpx.Limits(max_keepalive_connections=0))

    def call(secret: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {API_KEY_HEADER: secret}
        answer = http.request(method, path, headers=headers, **options)
        seen.append(f"{answer.headers} {answer.text}")
        return answer

    def run(*arguments: str) -> None:
        seen.append(CliRunner().invoke(main, arguments).output)

    def hand_out(path: str, **options: Any) -> str:
        """A key that is in this answer, and may be in nothing that comes after it."""
        issued = call(secrets[0], "POST", path, **options).json()
        seen[-1] = seen[-1].replace(issued["key"], "", 1)
        canaries.append(issued["key"])
        return str(issued["id"])

    id = hand_out("/api-keys", json={"name": "billing", "scopes": [MANAGE]})
    hand_out("/api-keys", json={"name": "reports"})
    hand_out(f"/api-keys/{id}/rotate")
    for secret in (*canaries, secrets[0].upper(), with_prefix(secrets[0], "acme")):
        for path in (
            *(PROBE, "/failing", "/docs", "/openapi.json", "/health/ready"),
            *("/api-keys", f"/api-keys/{id}", f"/api-keys/{id}/events", "/api-keys?limit=x"),
            *(f"/{secret}", f"/api-keys/{secret}", f"/api-keys?after={secret}"),
        ):
            call(secret, "GET", path)
        call(secret, "POST", "/api-keys", json={"name": ""})
        call(secret, "POST", f"/api-keys/{id}/rotate")  # two are in force
    for command in ("list", f"show {id}", "audit", "doctor", f"rotate {id}", f"revoke {ids[1]}"):
        run("keys", *command.split())
        run("keys", *command.split(), "--json")
    for secret in canaries:  # taken for an id
        run("keys", "show", secret)
        run("keys", "revoke", with_prefix(secret, "acme"))
    run("db", "upgrade")
    call(secrets[0], "POST", f"/api-keys/{id}/revoke")
    call(canaries[-1], "GET", PROBE)
    http.close()

    settings = load_settings()
    seen.append(f"{settings!r} {settings} {settings.model_dump()} {vars(settings)}")
    monkeypatch.setenv("API_KEYS", f"{secrets[1]}oops,{secrets[0]}")
    run("keys", "create", "billing")
    with pytest.raises(SettingsError) as error:
        load_settings()
    seen.append(f"{error.value!r} {error.value.__context__!r} {error.value.__cause__!r}")

    captured = capfd.readouterr()
    everything = "\n".join([*seen, caplog.text, captured.out, captured.err])
    assert found(canaries, everything.encode()) == []
    # The outputs were there to be searched: all of this was said, without a key.
    unknown = f"unknown key ({id_of(digest(stranger.encode()))})"
    who = (*ids, id, unknown, "[key]", f"key {ids[0]}")
    why = (f"Missing scope: {MANAGE}", "1 to 100 characters", "Two secrets of", "entry 1 of 2")
    for said in (*who, *why, "ValueError", '"revoked"', "The schema is up to date"):
        assert said in everything


def stored(url: sa.URL) -> bytes:
    """All that the database keeps, and its write-ahead log: that of a server which is ours."""
    if url.database and url.get_backend_name() == "sqlite":
        files = [Path(url.database + suffix) for suffix in ("", "-wal", "-shm")]
        return b"".join(file.read_bytes() for file in files)
    engine = connect(url)
    with engine.begin() as connection:
        tables = [sa.table(name) for name in sa.inspect(connection).get_table_names()]
        row = {table: sa.cast(sa.literal_column(table.name), sa.Text) for table in tables}
        rows = [
            connection.scalars(sa.select(row[table]).select_from(table)).all() for table in tables
        ]
        files = []
        if "TEST_DATABASE_URL" not in os.environ:
            connection.exec_driver_sql("CHECKPOINT")
            data = connection.exec_driver_sql("SHOW data_directory").scalar_one()
            files = [file for file in Path(data, "pg_wal").iterdir() if file.is_file()]
            assert files
    engine.dispose()
    return b"".join([f"{rows}".encode(), *(file.read_bytes() for file in files)])


async def test_no_key_is_stored(
    database_url: sa.URL,
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    secrets: list[str],
) -> None:
    actor = "the tests"
    async with service.router.lifespan_context(service):
        keys = [key_service.create("billing", expires_at=None, actor=actor) for _ in range(3)]
        issued = [*secrets, *(key.key for key in keys)]
        for drop in (None, "old", "new"):
            issued.append(key_service.rotate(keys[0].id, drop=drop, actor=actor).key)
        key_service.revoke(keys[1].id, actor=actor)
        for secret in issued:
            for spelling in (secret, with_prefix(secret, "acme"), secret.upper()):
                await ask(service, spelling.encode())
        await store.flush()
        database = stored(database_url)

    assert key_service.get(keys[2].id).last_used_at
    assert found(issued, database) == []
    # The search would have found them: it finds what is stored in their place.
    assert b"billing" in database
    for hashed in (digest(secret.encode()) for secret in issued):
        as_shown = "TEST_DATABASE_URL" in os.environ and hashed.hex().encode() in database
        assert hashed in database or as_shown


@pytest.mark.usefixtures("debugging")
async def test_the_log_tells_who_was_let_in(
    client: httpx.AsyncClient, secrets: list[str], ids: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    await client.get(PROBE, headers={API_KEY_HEADER: secrets[0]})
    line = next(record for record in caplog.records if record.name == "app.requests")
    assert (vars(line)["route"], vars(line)["key_id"]) == (PROBE, ids[0])
