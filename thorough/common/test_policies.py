"""Policies bound keys beyond their scopes, and a restriction that none enforces refuses."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.auth import GuardedAPI, GuardedRouter
from app.auth.access.policy import Denial, Headers, parse_restrictions
from app.auth.errors import StoreUnavailableError
from app.auth.key import Key, digest, new_secret
from app.auth.log import RequestRecord
from app.constants import MISSING_KEY_STATUS
from tests.callers import PROBE, Answer, Keys, answer_of, ask, status_of, with_probe

HERE, THERE = ("192.0.2.7", 1), ("198.51.100.7", 1)


class Stub:
    """A policy that decides as it is told, for keys that carry its restriction."""

    def __init__(self, name: str, verdict: Headers | Denial = ()) -> None:
        self.name, self.verdict = name, verdict
        self.asked: list[tuple[str, str]] = []  # the key and the address
        self.runs = False

    def parse(self, values: Sequence[str]) -> list[str]:
        return sorted(value.lower() for value in values)

    def check_within(self, inner: Sequence[str], outer: Sequence[str]) -> None: ...

    def concerns(self, key: Key) -> bool:
        return self.name in key.restrictions

    async def admit(self, key: Key, client: str) -> Headers | Denial:
        self.asked.append((key.id, client))
        return self.verdict

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.runs = True
        yield
        self.runs = False

    def upgrade(self) -> bool:
        return False


class RestrictedKeys(Keys):
    def restricted(self, *names: str) -> bytes:
        secret = new_secret().encode()
        restrictions = dict.fromkeys(names, ("value",))
        self._keys[digest(secret)] = Key(f"key-{len(self._keys)}", "key", frozenset(), restrictions)
        return secret


@pytest.fixture
def keys() -> RestrictedKeys:
    return RestrictedKeys()


def guarded(keys: Keys, *policies: Stub, observers: Any = ()) -> GuardedAPI:
    return with_probe(GuardedAPI(keys, policies=policies, observers=observers))


async def test_a_restriction_that_nothing_enforces_refuses_also_a_key_that_was_seen(
    keys: RestrictedKeys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app")
    moon, secret = Stub("moon"), keys.restricted("moon", "tides")
    for api in (guarded(keys), guarded(keys, moon)):
        stranger = await answer_of(api, new_secret().encode(), path=PROBE)
        for _ in range(3):
            answer = await answer_of(api, secret, path=PROBE)
            assert (answer.status, answer.body) == (stranger.status, stranger.body)
        opened = await ask(api, secret, path=PROBE, type="websocket")
        assert not isinstance(opened, Answer)
        assert opened[0]["type"] == "websocket.close"
    assert moon.asked == []  # nobody counts what gets in nowhere
    assert "nothing here enforces its moon, tides" in caplog.text
    assert await status_of(guarded(keys, moon, Stub("tides")), secret, path=PROBE) == 200


async def test_a_policy_is_asked_once_a_request_for_the_keys_that_it_concerns(
    keys: RestrictedKeys,
) -> None:
    moon, tides = Stub("moon", [(b"moon", b"full")]), Stub("tides", [(b"tides", b"low")])
    api = guarded(keys, moon, tides)
    free, one, both = keys.issue(), keys.restricted("tides"), keys.restricted("moon", "tides")
    for _ in range(2):  # the first time a key is looked up
        for secret, names in ((free, []), (one, ["tides"]), (both, ["moon", "tides"])):
            answer = await answer_of(api, secret, path=PROBE, client=HERE)
            assert answer.status == 200
            told = [name.decode() for name, _ in answer.headers if name in (b"moon", b"tides")]
            assert told == names
            assert answer.header("cache-control") == "no-store"
    assert moon.asked == [("key-2", HERE[0])] * 2
    assert tides.asked == [("key-1", HERE[0]), ("key-2", HERE[0])] * 2


async def test_the_first_that_denies_decides(keys: RestrictedKeys) -> None:
    told = list[RequestRecord]()
    full = Denial("full moon", "it is full", 429, "Come back later", [(b"retry-after", b"9")])
    moon, tides = Stub("moon", full), Stub("tides")
    api = guarded(keys, moon, tides, observers=[told.append])
    answer = await answer_of(api, keys.restricted("moon", "tides"), path=PROBE)
    assert (answer.status, answer.header("retry-after")) == (429, "9")
    assert answer.body == b'{"detail":"Come back later"}'
    assert (len(moon.asked), tides.asked) == (1, [])
    assert [(each.refusal, each.outcome) for each in told] == [("full moon", "limited")]


async def test_without_a_status_a_denial_is_told_apart_in_the_log_alone(
    keys: RestrictedKeys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app")
    told = list[RequestRecord]()
    api = guarded(keys, Stub("moon", Denial("no moon")), observers=[told.append])
    secret = keys.restricted("moon")
    answer = await answer_of(api, secret, path=PROBE, client=THERE)
    stranger = await answer_of(api, new_secret().encode(), path=PROBE, client=HERE)
    assert (answer.status, answer.body) == (MISSING_KEY_STATUS, stranger.body)
    assert {name for name, _ in answer.headers} == {name for name, _ in stranger.headers}
    assert [each.refusal for each in told] == ["no moon", "unknown key"]
    assert told[0].key is None  # it counts as no use of the key
    assert "no moon (key-0)" in caplog.text


async def test_a_policy_that_cannot_tell_lets_nobody_in(keys: RestrictedKeys) -> None:
    moon = Stub("moon")
    api, secret = guarded(keys, moon), keys.restricted("moon")

    async def admit(*_: object) -> Headers | Denial:
        raise StoreUnavailableError("nobody knows")

    vars(moon)["admit"] = admit
    assert await status_of(api, secret, path=PROBE) == 503
    assert await status_of(api, keys.issue(), path=PROBE) == 200


async def test_what_is_public_asks_no_policy(keys: RestrictedKeys) -> None:
    moon = Stub("moon", Denial("no moon", status=429))
    api = GuardedAPI(keys, policies=[moon])
    assert await status_of(api, keys.restricted("moon"), path="/openapi.json", body=b"") == 200


async def test_policies_run_as_long_as_the_service(keys: RestrictedKeys) -> None:
    moon, tides = Stub("moon"), Stub("tides")
    api = guarded(keys, moon, tides)
    async with api.router.lifespan_context(api):
        assert (moon.runs, tides.runs) == (True, True)
    assert (moon.runs, tides.runs) == (False, False)


async def test_observers_are_told_of_each_request_once(keys: RestrictedKeys) -> None:
    first, later = list[RequestRecord](), list[RequestRecord]()
    api = guarded(keys, observers=[first.append])
    router = GuardedRouter()
    router.add_api_route("/other", lambda: None)
    api.include_router(router)
    api.add_observer(later.append)
    await status_of(api, keys.issue(), path="/other")
    await status_of(api, path="/other")
    assert [(each.route, each.status) for each in later] == [
        ("/other", 200),
        ("/other", MISSING_KEY_STATUS),
    ]
    assert first == later


def test_restrictions_are_written_as_their_policies_read_them() -> None:
    policies = [Stub("moon"), Stub("tides")]
    asked = {"moon": ["Full", "DARK"], "tides": []}
    assert parse_restrictions(asked, policies) == {"moon": ["dark", "full"]}
    with pytest.raises(ValueError, match="Nothing here enforces 'sun'; install the part"):
        parse_restrictions({"sun": ["noon"]}, policies)
