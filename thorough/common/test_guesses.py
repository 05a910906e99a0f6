"""An address that sends many wrong keys is told to wait, and everybody else gets in."""

import tracemalloc
from collections.abc import Iterator
from unittest.mock import AsyncMock, patch

import pytest
from fastapi import WebSocket

from app.auth import GuardedAPI, GuardedRouter, PublicRouter, require
from app.auth.access.clients import MAX_ADDRESSES, REFILL, FailedAttempts
from app.auth.access.rule import Refusal
from app.auth.key import new_secret
from app.constants import MISSING_KEY_STATUS
from tests.callers import PROBE, Keys, answer_of, ask, status_of, with_probe

BURST = 5
SAME = [(b"x-request-id", b"same")]
HERE, THERE = ("192.0.2.7", 1), ("192.0.2.8", 1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.access.clients.BURST", BURST)


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Iterator[Time]:
    with patch("app.auth.access.clients.monotonic", Time()) as time:
        yield time


async def guess(api: GuardedAPI, times: int, client: tuple[str, int] = HERE) -> list[int]:
    return [await status_of(api, new_secret().encode(), client=client) for _ in range(times)]


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    api, router = with_probe(GuardedAPI(keys)), GuardedRouter()

    @router.websocket(PROBE)
    async def live(socket: WebSocket) -> None: ...

    api.include_router(router)
    return api


async def test_who_guesses_is_slowed_and_valid_keys_of_that_address_get_in(
    api: GuardedAPI, keys: Keys, time: Time
) -> None:
    valid = keys.issue()
    assert await guess(api, BURST + 1) == [MISSING_KEY_STATUS] * (BURST + 1)
    assert await guess(api, 3) == [429] * 3
    assert await status_of(api, valid, client=HERE) == 200  # was never seen before
    assert await status_of(api, valid, client=HERE) == 200
    assert await guess(api, 1, THERE) == [MISSING_KEY_STATUS]
    time.now += REFILL
    assert await guess(api, 3) == [MISSING_KEY_STATUS, 429, 429]
    time.now += (BURST + 1) * REFILL
    assert await guess(api, BURST + 2) == [MISSING_KEY_STATUS] * (BURST + 1) + [429]


async def test_who_goes_on_is_slowed_all_the_while(api: GuardedAPI, time: Time) -> None:
    await guess(api, BURST + 1)
    for _ in range(4 * BURST):
        time.now += REFILL / 2
        assert await guess(api, 1) == [429]


async def test_slowed_refusals_look_alike_and_say_when_to_try_again(
    api: GuardedAPI, keys: Keys, time: Time
) -> None:
    await guess(api, BURST + 1)
    secrets = [b"no key", new_secret().encode(), new_secret().encode()]
    answers = {
        await answer_of(api, each, client=HERE, method="POST", headers=SAME) for each in secrets
    }
    assert len(answers) == 1
    (answer,) = answers
    assert (answer.status, answer.header("retry-after")) == (429, "1")
    assert answer.header("content-type") == "application/problem+json"
    assert answer.header("cache-control") == "no-store"
    assert b"Too many wrong API keys" in answer.body
    closed = await ask(api, new_secret().encode(), client=HERE, type="websocket")
    assert closed == [{"type": "websocket.close", "code": 1008, "reason": ""}]


async def test_what_an_address_has_no_key_for_is_not_looked_up(
    api: GuardedAPI, keys: Keys, time: Time
) -> None:
    await guess(api, BURST + 1)
    asked = keys.found
    assert await guess(api, 10) == [429] * 10
    assert keys.found == asked


async def test_a_key_that_has_ended_is_told_no_more_there(
    api: GuardedAPI, keys: Keys, time: Time
) -> None:
    await guess(api, BURST + 1)
    ended = keys.issue()
    with patch.object(keys, "lookup", AsyncMock(return_value=Refusal("revoked key", "1"))):
        assert await status_of(api, ended, client=THERE) == MISSING_KEY_STATUS
        answer = await answer_of(api, ended, client=HERE, headers=SAME)
    assert answer == await answer_of(api, new_secret().encode(), client=HERE, headers=SAME)
    assert answer.status == 429


async def test_who_sends_no_key_does_not_guess(api: GuardedAPI, time: Time) -> None:
    for _ in range(3 * BURST):
        assert await status_of(api, client=HERE) == MISSING_KEY_STATUS
    await guess(api, 3 * BURST)
    assert await status_of(api, client=HERE) == MISSING_KEY_STATUS  # nor is it slowed


async def test_public_pages_stay_open_to_who_guesses(api: GuardedAPI, time: Time) -> None:
    public = PublicRouter()

    @public.get("/open")
    async def open() -> None: ...

    api.include_router(public)
    await guess(api, BURST + 1)
    assert await status_of(api, path="/open", client=HERE) == 200
    assert await status_of(api, new_secret().encode(), path="/open", client=HERE) == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_an_address_of_ipv6_stands_for_its_network(
    time: Time, one: str, other: str, same: bool
) -> None:
    attempts = FailedAttempts()
    for _ in range(BURST + 1):
        attempts.add(one)
    assert attempts.are_too_many(one)
    assert attempts.are_too_many(other) is same


@pytest.mark.parametrize("client", [None, ("", 0), ("unix:", 0), ("not:an:address", 0)])
async def test_callers_without_an_address_are_not_slowed_for_each_other(
    api: GuardedAPI, time: Time, client: tuple[str, int] | None
) -> None:
    for _ in range(BURST + 10):
        answer = await status_of(api, new_secret().encode(), client=client)
        assert answer == MISSING_KEY_STATUS


def test_guesses_from_everywhere_take_no_memory(time: Time) -> None:
    attempts = FailedAttempts()
    for _ in range(BURST + 1):
        attempts.add("192.0.2.1")
    tracemalloc.start()
    for number in range(MAX_ADDRESSES + MAX_ADDRESSES // 5):
        attempts.add(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        attempts.add("192.0.2.1")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(attempts._full_at) == MAX_ADDRESSES
    assert peak < 5_000_000
    assert attempts.are_too_many("192.0.2.1")  # who goes on is not forgotten for others


def test_what_is_no_address_is_kept_nowhere(time: Time) -> None:
    attempts = FailedAttempts()
    tracemalloc.start()
    for number in range(1000):
        attempts.add(f"{number:020000}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


async def test_scopes_that_are_missing_are_no_guesses(
    api: GuardedAPI, keys: Keys, time: Time
) -> None:
    router = GuardedRouter(dependencies=[require("a:b")])

    @router.get("/scoped")
    async def scoped() -> None: ...

    api.include_router(router)
    key = keys.issue()
    for _ in range(3 * BURST):
        assert await status_of(api, key, path="/scoped", client=HERE) == 403
    assert await guess(api, 1) == [MISSING_KEY_STATUS]
