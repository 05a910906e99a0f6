"""A running service follows the keys in a vault, and no request waits for it."""

import asyncio
from pathlib import Path
from unittest.mock import Mock

import pytest

from app.auth import GuardedAPI
from app.auth.key import new_secret
from app.auth.store.env_store import open_store
from app.constants import MISSING_KEY_STATUS
from app.settings import load_settings
from app.vaults import client
from app.vaults.key_store import ASK_EVERY, VaultKeyStore
from tests.callers import make_service, status_of, with_probe

OLD, NEW = new_secret(), new_secret()
NO = MISSING_KEY_STATUS


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The answer of the vault that SECRETS_VAULT names."""
    fetch = Mock(return_value={"API_KEYS": OLD})
    monkeypatch.setitem(client._CLIENTS, "vault", lambda *_: fetch)
    monkeypatch.setenv("SECRETS_VAULT", "vault://secret/my-service")
    return fetch


def statuses(service: GuardedAPI) -> list[int]:
    """Of both keys, after the vault has answered."""

    async def ask() -> list[int]:
        await service.keys.is_reachable()
        if isinstance(service.keys, VaultKeyStore) and service.keys._asking:
            service.keys._asking.join()
        return [await status_of(service, secret.encode()) for secret in (OLD, NEW)]

    return asyncio.run(ask())


def test_the_vault_is_followed_and_its_last_answer_counts_up_to_the_bound(
    fetch: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("app.vaults.key_store.time.monotonic", lambda: now)
    monkeypatch.setenv("VAULT_MAX_STALENESS", "60")
    service = make_service(load_settings())
    assert statuses(service) == [200, NO]
    fetch.return_value = {"API_KEYS": NEW}
    now += ASK_EVERY
    assert statuses(service) == [NO, 200]
    fetch.side_effect = ConnectionError
    now += 59.9
    assert statuses(service) == [NO, 200]
    now += 0.1
    assert statuses(service) == [503, 503]


def test_a_store_of_files_lets_nobody_in_for_a_vault(fetch: Mock, env_file: Path) -> None:
    env_file.write_text(f"API_KEYS={NEW}\n")
    assert statuses(with_probe(GuardedAPI(open_store(load_settings())))) == [503, 503]
