"""The Valkey that counts limits: what it learns, and its setting."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from unittest.mock import patch

import pytest
from valkey import Valkey

from app.auth.access.policy import Policy
from app.auth.errors import SettingsError
from app.auth.key import digest, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.limits.limit import parse_limits
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import status_of
from tests.thorough.replicas import Line, Replica, started
from tests.thorough.test_limits import a_service, policy_of


@pytest.fixture
def url(valkey: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that knows nothing yet; the settings name it."""
    with client_of(valkey) as client:
        client.flushall()
    monkeypatch.setenv("VALKEY_URL", valkey)
    return valkey


def client_of(url: str) -> Any:
    client: Any = Valkey
    return closing(client.from_url(url))


@pytest.fixture
def key_service(database_url: Any) -> KeyService:
    settings = load_settings()
    return KeyService(settings, make_policies(settings))


async def test_what_it_keeps_goes_by_itself(url: str, database_url: Any) -> None:
    service, _ = a_service()
    limiter = policy_of(service)._limiter
    await limiter.charge("key", parse_limits(["1/second", "5/hour", "9/day"]))
    await limiter.close()
    with client_of(url) as client:
        ends = {name.decode().rpartition("}")[2]: client.ttl(name) for name in client.scan_iter()}
    assert [*map(ends.get, (":second", ":hour"))] == [2, 3601]
    (quota,) = {*ends} - {":second", ":hour"}
    assert ends[quota] == 2 * 86_400


def test_no_key_and_no_digest_is_in_it(url: str, key_service: KeyService) -> None:
    secret = new_secret().encode()
    with patch("app.auth.keys.service.new_secret", return_value=secret.decode()):
        key_service.create("key", restrictions={"limits": ["3/hour", "9/month"]}, actor="test")
    asyncio.run(_use(secret))
    with client_of(url) as client:
        names = [*client.scan_iter()]
        assert len(names) == 3  # one of them is of no key: the start tries it out
        content = b"".join([*names, *(client.dump(name) for name in names)])
    for hidden in (secret, digest(secret), digest(secret).hex().encode()):
        assert hidden not in content


async def _use(secret: bytes) -> None:
    service, store = a_service()
    async with service.router.lifespan_context(service):
        await store.refresh()
        assert await status_of(service, secret) == 200


def test_servers_that_share_it_count_together(url: str, key_service: KeyService) -> None:
    made = key_service.create("key", restrictions={"limits": ["300/hour"]}, actor="test")
    replicas = [Replica(), Replica()]
    with started(*replicas):

        def call(number: int) -> list[int]:
            with closing(Line(replicas[number % 2].port)) as line:
                return [line.request(made.key) for _ in range(60)]

        with ThreadPoolExecutor(8) as threads:
            statuses = [each for some in threads.map(call, range(8)) for each in some]
    assert sorted(statuses) == [200] * 300 + [429] * 180


# The setting.


def policies() -> list[Policy]:
    settings = load_settings()
    return make_policies(settings, DatabaseKeyStore(settings))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("valkey://127.0.0.1:6379", "valkey://127.0.0.1:6379"),
        ("redis://u:p@127.0.0.1:6379/3", "valkey://u:p@127.0.0.1:6379/3"),
        ("rediss://127.0.0.1", "valkeys://127.0.0.1"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
def test_redis_does_as_well(given: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALKEY_URL", given)
    assert load_settings().valkey_url == expected


@pytest.mark.parametrize(
    "given",
    [
        *("127.0.0.1:6379", "http://127.0.0.1", "valkey:", "swordfish", "valkey://x:swordfish"),
        *("valkey://x:99999", "valkey://[::1", "valkey://x?swordfish=1", "valkey://x?db=swordfish"),
    ],
)
def test_what_names_no_valkey_is_told_without_its_value(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALKEY_URL", given)
    with pytest.raises(SettingsError) as caught:
        policies()
    assert f"{caught.value}" == "VALKEY_URL: write valkey://HOST:6379 or redis://HOST:6379"


def test_without_its_library_the_setting_says_what_to_install(url: str) -> None:
    with (
        patch.dict("sys.modules", {"app.limits.valkey_counter": None}),
        pytest.raises(SettingsError, match="uv sync --extra valkey"),
    ):
        policies()
