"""No key leaves the service but the one that `keys create` or `keys rotate` shows."""

import logging
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from app.auth import Caller, GuardedAPI, GuardedRouter
from app.auth.errors import SettingsError
from app.auth.key import digests, id_of, new_secret, with_prefix
from app.cli import main
from app.constants import API_KEY_HEADER
from app.settings import load_settings
from tests.callers import PROBE
from tests.thorough.servers import LiveServer


@pytest.fixture
def debugging(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")


@pytest.mark.usefixtures("debugging")
def test_no_key_in_any_output(
    service: GuardedAPI,
    live: LiveServer,
    env_file: Path,
    secrets: list[str],
    ids: list[str],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for caller in ("httpx", "httpcore"):  # what the caller logs is its own affair
        caplog.set_level(logging.WARNING, caller)
    caplog.set_level(logging.DEBUG)
    router = GuardedRouter()

    @router.get("/failing")
    async def failing(caller: Caller) -> None:
        raise ValueError(f"{caller!r} and {service.keys!r} and {vars(service.keys)}")

    service.include_router(router)
    stranger = new_secret()
    seen: list[str] = []
    for secret in (*secrets, stranger, secrets[0].upper(), with_prefix(secrets[1], "acme")):
        for path in (PROBE, "/failing", "/docs", "/openapi.json", "/health/ready", f"/{secret}"):
            response = httpx.get(live.url + path, headers={API_KEY_HEADER: secret})
            seen.append(f"{response.headers} {response.text}")

    settings = load_settings()
    seen.append(f"{settings!r} {settings} {settings.model_dump()}")
    for arguments in (["list"], ["list", "--json"], ["revoke", ids[0]]):
        seen.append(CliRunner().invoke(main, ["keys", *arguments]).output)
    env_file.write_text(f"API_KEYS={secrets[1]}oops,{secrets[0]}")
    seen.append(CliRunner().invoke(main, ["keys", "create"]).output)
    httpx.get(live.url + PROBE, headers={API_KEY_HEADER: stranger})  # the service notices
    with pytest.raises(SettingsError) as error:
        load_settings()
    seen.append(f"{error.value!r} {error.value.__context__!r} {error.value.__cause__!r}")

    captured = capfd.readouterr()
    everything = "\n".join([*seen, caplog.text, captured.out, captured.err]).lower()
    for secret in (*secrets, stranger):
        assert secret not in everything
        assert secret.replace("-", "") not in everything
        assert with_prefix(secret, "acme").lower() not in everything
    # The outputs were there to be searched: all of this was said, without a key.
    [stranger_id] = map(id_of, digests([stranger]))
    for said in (ids[0], stranger_id, "valueerror", "is broken", "[key]"):
        assert said in everything


@pytest.mark.usefixtures("debugging")
async def test_the_log_tells_who_was_let_in(
    client: httpx.AsyncClient,
    secrets: list[str],
    ids: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await client.get(PROBE, headers={API_KEY_HEADER: secrets[0]})
    line = next(record for record in caplog.records if record.name == "app.requests")
    assert (vars(line)["route"], vars(line)["key_id"]) == (PROBE, ids[0])
