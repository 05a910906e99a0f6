"""No key leaves the service but the one that `keys create` or `keys rotate` shows."""

import logging
import time

import httpx
import pytest
from typer.testing import CliRunner

from app.cli import main
from app.constants import API_KEY_HEADER
from app.keys import key_of, new_secret
from app.security import Caller, GuardedAPI, GuardedRouter
from app.settings import ENV_FILE, SettingsError, load_settings
from tests.servers import PROBE, LiveServer


def test_no_key_in_any_output(
    service: GuardedAPI,
    live: LiveServer,
    secrets: list[str],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    router = GuardedRouter()

    @router.get("/failing")
    async def failing(caller: Caller) -> None:
        raise ValueError(f"{caller!r} and {service.keys!r} and {vars(service.keys)}")

    service.include_router(router)
    stranger = new_secret()
    seen: list[str] = []
    for secret in (*secrets, stranger, secrets[0].upper()):
        for path in (PROBE, "/failing", "/docs", "/openapi.json", "/health/ready"):
            response = httpx.get(live.url + path, headers={API_KEY_HEADER: secret})
            seen.append(f"{response.headers} {response.text}")

    settings = load_settings()
    seen.append(f"{settings!r} {settings} {settings.model_dump()}")
    for arguments in (["list"], ["list", "--json"], ["revoke", key_of(secrets[0]).id]):
        seen.append(CliRunner().invoke(main, ["keys", *arguments]).output)
    ENV_FILE.write_text(f"API_KEYS={secrets[1]}oops,{secrets[0]}")
    seen.append(CliRunner().invoke(main, ["keys", "create"]).output)
    time.sleep(0.2)  # the service notices
    with pytest.raises(SettingsError) as error:
        load_settings()
    seen.append(f"{error.value!r} {error.value.__context__!r} {error.value.__cause__!r}")

    captured = capfd.readouterr()
    everything = "\n".join([*seen, caplog.text, captured.out, captured.err]).lower()
    for secret in (*secrets, stranger):
        assert secret not in everything
        assert secret.replace("-", "") not in everything
    # The outputs were there to be searched: all of this was said, without a key.
    for said in (key_of(secrets[0]).id, key_of(stranger).id, "valueerror", "last good keys"):
        assert said in everything


async def test_the_log_tells_who_was_let_in(
    client: httpx.AsyncClient, secrets: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "app")
    await client.get(PROBE, headers={API_KEY_HEADER: secrets[0]})
    assert f"Let in http {PROBE!r}: key {key_of(secrets[0]).id}." in caplog.messages
