"""A running service follows the keys in a vault, and no request waits for it."""

import asyncio
import json
import logging
import math
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from app.auth import GuardedAPI
from app.auth.errors import SettingsError
from app.auth.key import new_secret
from app.auth.store.env_store import open_store
from app.cli import main
from app.constants import MISSING_KEY_STATUS
from app.settings import load_settings
from app.vaults import client
from app.vaults.client import TIMEOUT
from app.vaults.key_store import ASK_EVERY, VaultKeyStore
from tests.callers import status_of, with_probe
from tests.thorough.services import make_service

A, B, NEW = new_secret(), new_secret(), new_secret()
STALENESS = 60.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.vaults.key_store.time.monotonic", clock)
    return clock


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The answer of the vault."""
    fetch = Mock(return_value={"API_KEYS": f"{A},{B}"})
    monkeypatch.setitem(client._CLIENTS, "vault", lambda *_: fetch)
    monkeypatch.setenv("SECRETS_VAULT", "vault://secret/my-service")
    return fetch


@pytest.fixture
def followed(fetch: Mock, clock: Clock) -> GuardedAPI:
    """The service, after its first question to the vault."""
    service = make_service(load_settings())
    look(service)
    fetch.reset_mock()
    return service


def look(service: GuardedAPI) -> None:
    """Let the service look, and wait for the answer of the vault."""
    store = service.keys
    assert isinstance(store, VaultKeyStore)
    asyncio.run(store.is_reachable())
    assert store._asking
    store._asking.join()


def statuses(service: GuardedAPI) -> list[int]:
    async def ask() -> list[int]:
        return [await status_of(service, secret.encode()) for secret in (A, B, NEW)]

    return asyncio.run(ask())


NO = MISSING_KEY_STATUS


def test_the_keys_of_the_start_count_at_once(fetch: Mock, clock: Clock) -> None:
    """They may be up to TIMEOUT seconds old."""
    service = make_service(load_settings())
    fetch.side_effect = ConnectionError
    look(service)
    assert statuses(service) == [200, 200, NO]
    clock.now += STALENESS - TIMEOUT - 0.1
    assert statuses(service) == [200, 200, NO]
    clock.now += 0.1
    assert statuses(service) == [503, 503, 503]


def after_a_pause(service: GuardedAPI) -> int:
    """What NEW gets when the last answer is too old: a machine was frozen."""
    assert isinstance(service.keys, VaultKeyStore)
    service.keys._asked_at -= 10 * STALENESS
    service.keys._ask_at = -math.inf
    return asyncio.run(status_of(service, NEW.encode()))


def test_after_a_pause_a_request_waits_for_the_answer(followed: GuardedAPI, fetch: Mock) -> None:
    def answer() -> dict[str, str]:
        time.sleep(0.05)
        return {"api_keys": f"{B},{NEW}"}

    fetch.side_effect = answer
    assert after_a_pause(followed) == 200


def test_after_a_pause_nobody_waits_for_ever(fetch: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    service, answer = make_service(load_settings()), threading.Event()
    fetch.side_effect = lambda: answer.wait(60)
    monkeypatch.setattr("app.vaults.key_store.IO_TIMEOUT", 0.05)
    assert after_a_pause(service) == 503
    answer.set()


def test_a_running_service_follows_the_vault(
    followed: GuardedAPI, fetch: Mock, clock: Clock
) -> None:
    fetch.return_value = {"api_keys": f"{B},{NEW}"}
    clock.now += ASK_EVERY
    look(followed)
    assert statuses(followed) == [NO, 200, 200]
    fetch.return_value = {}
    clock.now += ASK_EVERY
    look(followed)
    assert statuses(followed) == [NO, NO, NO]


def test_it_is_asked_every_few_seconds_however_many_call(
    followed: GuardedAPI, fetch: Mock, clock: Clock
) -> None:
    clock.now += ASK_EVERY - 0.1
    statuses(followed)
    assert not fetch.called
    clock.now += 0.1
    for _ in range(3):
        look(followed)
        statuses(followed)
    assert fetch.call_count == 1


def test_out_of_reach_the_last_state_counts_up_to_the_bound(
    followed: GuardedAPI, fetch: Mock, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    fetch.side_effect = ConnectionError("swordfish")
    for _ in range(11):
        clock.now += ASK_EVERY
        look(followed)
        assert statuses(followed) == [200, 200, NO]
    clock.now += ASK_EVERY - 0.1
    assert statuses(followed) == [200, 200, NO]
    clock.now += 0.1
    assert statuses(followed) == [503, 503, 503]
    assert not asyncio.run(followed.keys.is_reachable())
    [said] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert said.message == (
        "SECRETS_VAULT: ConnectionError; check the secret's name, the login and the network."
        " The last answer counts for 60 s."
    )

    fetch.side_effect = None
    clock.now += ASK_EVERY
    look(followed)
    assert statuses(followed) == [200, 200, NO]
    assert asyncio.run(followed.keys.is_reachable())


def test_what_it_says_counts_from_the_moment_when_it_was_asked(
    followed: GuardedAPI, fetch: Mock, clock: Clock
) -> None:
    def answer_late() -> dict[str, str]:
        clock.now += STALENESS - 1
        return {"API_KEYS": A}

    fetch.side_effect = answer_late
    clock.now += ASK_EVERY
    look(followed)
    fetch.side_effect = ConnectionError
    assert statuses(followed) == [200, NO, NO]
    clock.now += 1
    assert statuses(followed) == [503, 503, 503]


def test_nobody_waits_for_a_vault_that_is_silent(
    followed: GuardedAPI, fetch: Mock, clock: Clock
) -> None:
    answer = threading.Event()
    waits: list[bool] = []
    fetch.side_effect = lambda: waits.append(answer.wait(5))
    for _ in range(3):
        clock.now += ASK_EVERY
        assert statuses(followed) == [200, 200, NO]
    assert fetch.call_count == 1  # no second thread waits beside the first
    assert not waits  # the first is not over yet
    asking = [each for each in threading.enumerate() if each.name == "api-keys-vault"]
    assert [each.daemon for each in asking] == [True]
    clock.now += STALENESS
    assert statuses(followed) == [503, 503, 503]
    answer.set()
    asking[0].join()


@pytest.mark.parametrize(("listed", "known"), [(f"{B},oops", [B]), (f"{A},{NEW},", [A])])
def test_of_a_broken_list_only_keys_count_that_were_in_force_before(
    followed: GuardedAPI,
    fetch: Mock,
    clock: Clock,
    listed: str,
    known: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fetch.return_value = {"API_KEYS": listed}
    for _ in range(2):
        clock.now += ASK_EVERY
        look(followed)
    assert statuses(followed) == [200 if each in known else NO for each in (A, B, NEW)]
    [said] = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert said.startswith("API_KEYS in the vault is broken: entry ")
    assert "oops" not in said


def test_a_secret_that_is_broken_as_a_whole_counts_as_silence(
    followed: GuardedAPI, fetch: Mock, clock: Clock
) -> None:
    fetch.return_value = json.dumps({"API_KEYS": A})[:-2]
    clock.now += ASK_EVERY
    look(followed)
    assert statuses(followed) == [200, 200, NO]
    clock.now += STALENESS
    assert statuses(followed) == [503, 503, 503]


async def test_it_is_followed_while_nobody_calls(
    fetch: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.vaults.key_store.ASK_EVERY", 0.0)
    service = make_service(load_settings())
    asked = threading.Semaphore(0)

    def answer() -> dict[str, str]:
        asked.release()
        return {"API_KEYS": NEW}

    fetch.side_effect = answer
    async with service.router.lifespan_context(service):
        for _ in range(2):  # then the first answer has been heard
            await asyncio.to_thread(asked.acquire)
        known = [await status_of(service, secret.encode()) for secret in (A, B, NEW)]
        assert known == [NO, NO, 200]


def test_without_a_key_there_the_service_does_not_start(fetch: Mock) -> None:
    fetch.return_value = {"LOG_LEVEL": "DEBUG"}
    with pytest.raises(SettingsError, match="API_KEYS is not set"):
        make_service(load_settings())


def test_keys_of_the_environment_win_and_are_not_followed(
    fetch: Mock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("API_KEYS", NEW)
    service = make_service(load_settings())
    assert not isinstance(service.keys, VaultKeyStore)
    assert statuses(service) == [NO, NO, 200]
    assert "The keys are not followed" in caplog.text


def test_a_store_of_files_lets_nobody_in_for_a_vault(fetch: Mock, env_file: Path) -> None:
    """A service of your own that leaves `follow_vault` out."""
    env_file.write_text(f"API_KEYS={NEW}\n")
    service = with_probe(GuardedAPI(open_store(load_settings())))
    assert statuses(service) == [503, 503, 503]


@pytest.mark.parametrize("command", ["create", "rotate 0123456789ab", "revoke 0123456789ab"])
def test_a_command_does_not_change_what_is_in_a_vault(fetch: Mock, command: str) -> None:
    result = CliRunner().invoke(main, ["keys", *command.split()])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("API_KEYS is set in the vault, which wins over ")
    assert result.stderr.endswith("; change it there\n")


def test_a_command_lists_what_is_in_a_vault(fetch: Mock) -> None:
    result = CliRunner().invoke(main, ["keys", "list"])
    assert len(result.stdout.split()) == 2
    assert A not in result.stdout
