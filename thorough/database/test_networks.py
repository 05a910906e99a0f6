"""A key that is made for some addresses lets nobody in from elsewhere."""

import httpx
import pytest
import sqlalchemy as sa

from app.auth import GuardedAPI
from app.auth.errors import ForbiddenError, InvalidError
from app.auth.key import new_secret
from app.auth.keys.change import MANAGE
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.limits.allowed_from import are_within, is_within, parse_networks
from app.management.delegation import Delegation
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import answer_of, ask, status_of


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("office", "'office' is no address; write one like 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"),
        ("10.0.0.0/33", "is no address"),
        ("", "is no address"),
        ("10.0.0.7/8", "is an address within a network; write 10.0.0.0/8"),
        ("2001:db8::1/32", "write 2001:db8::/32"),
        ("::ffff:10.1.2.3/104", r"write ::ffff:(a00:0|10\.0\.0\.0)/104"),
        ("fe80::1%eth0", "is no address"),
        ("fe80::1%a b", "is no address"),
        ("fe80::1%\ud800", "is no address"),
    ],
)
def test_what_is_no_address_names_one(given: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_networks([given])


@pytest.mark.parametrize(
    ("client", "networks", "expected"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("11.1.2.3", "10.0.0.0/8 11.1.2.3", True),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("::ffff:11.1.2.3", "10.0.0.0/8", False),
        ("2001:db8::7", "2001:db8::/32", True),
        ("2001:db9::7", "2001:db8::/32", False),
        ("10.1.2.3", "::/0", False),
        ("fe80::1%eth0", "fe80::/10", True),
        ("fe80::1%eth0", "fe80::1", True),
        ("10.1.2.3", "::ffff:10.0.0.0/104", True),
        ("11.1.2.3", "::ffff:10.0.0.0/104", False),
        ("::ffff:10.1.2.3", "::ffff:10.1.2.3", True),
        ("", "0.0.0.0/0 ::/0", False),  # a socket of this machine has no address
        ("10.0.0.0/8", "10.0.0.0/8", False),
        ("10.1.2.3, 11.1.2.3", "10.0.0.0/8", False),
    ],
)
def test_an_address_lies_in_a_network_or_not(client: str, networks: str, expected: bool) -> None:
    assert is_within(client, parse_networks(networks.split())) is expected


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("", "", True),
        ("10.0.0.0/8", "", True),
        ("", "10.0.0.0/8", False),
        ("10.1.0.0/16", "10.0.0.0/8", True),
        ("10.0.0.0/8", "10.0.0.0/16", False),
        ("10.0.0.0/8", "10.255.0.0/16", False),
        ("10.1.0.0/16 11.0.0.1", "10.0.0.0/8", False),
        ("10.1.0.0/16 11.0.0.1", "10.0.0.0/8 11.0.0.0/8", True),
        ("::/0", "0.0.0.0/0", False),
    ],
)
def test_networks_lie_in_others_or_not(inner: str, outer: str, expected: bool) -> None:
    assert are_within(*(parse_networks(each.split()) for each in (inner, outer))) is expected


async def test_from_elsewhere_a_key_is_refused_like_any_stranger(
    service: GuardedAPI, key_service: KeyService, caplog: pytest.LogCaptureFixture
) -> None:
    networks = ["10.0.0.0/8", "2001:db8::/32"]
    made = key_service.create("key", restrictions={"networks": networks}, actor="test")
    key = made.key.encode()
    assert made.restrictions == {"networks": networks, "limits": []}
    here, there = ("10.1.2.3", 1), ("192.0.2.7", 1)
    stranger = await answer_of(service, new_secret().encode(), client=there)
    for _ in range(2):  # the first time it is looked up
        assert await status_of(service, key, client=here) == 200
        assert await status_of(service, key, client=("::ffff:10.1.2.3", 1)) == 200
        refused = await answer_of(service, key, client=there)
        assert (refused.status, refused.body) == (stranger.status, stranger.body)
        named = {name for name, _ in stranger.headers}
        assert {name for name, _ in refused.headers} == named
        assert await status_of(service, key, client=None) == MISSING_KEY_STATUS
    said = "Refused http '/probe-of-the-tests': a key from another address than its own"
    assert any(each.startswith(said) and made.id in each for each in caplog.messages), (
        caplog.messages
    )
    unknown = "a key for some addresses, from an unknown address"
    assert sum(unknown in each and made.id in each for each in caplog.messages) == 2
    closed = await ask(service, key, client=there, type="websocket", path="/live")
    assert closed[0]["type"] == "websocket.close"  # type: ignore[index]


async def test_what_is_refused_for_its_address_is_not_charged_and_no_use(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    bounds = {"networks": ["10.0.0.0/8"], "limits": ["1/hour"]}
    made = key_service.create("key", restrictions=bounds, actor="test")
    key = made.key.encode()
    for _ in range(3):
        assert await status_of(service, key, client=("192.0.2.7", 1)) == MISSING_KEY_STATUS
    await store.flush()
    assert key_service.get(made.id).last_used_at is None
    assert await status_of(service, key, client=("10.0.0.1", 1)) == 200
    assert await status_of(service, key, client=("10.0.0.1", 1)) == 429


# Who manages keys hands on no more than it has.


async def test_nobody_makes_or_renews_a_key_that_is_freer_than_his(
    key_service: KeyService, client: httpx.AsyncClient
) -> None:
    manager = key_service.create(
        "manager",
        [MANAGE],
        restrictions={"limits": ["600/minute", "9/day"], "networks": ["127.0.0.0/8"]},
        actor="test",
    )
    free = key_service.create("free", [], actor="test")
    client.headers[API_KEY_HEADER] = manager.key
    narrow = {"limits": ["5/minute", "9/day", "1/second"], "networks": ["127.0.0.1"]}
    made = await client.post("/api-keys", json={"name": "narrow", **narrow})
    assert made.status_code == 201, made.text
    assert made.json()["limits"] == ["1/second", "5/minute", "9/day"]
    assert made.json()["networks"] == ["127.0.0.1/32"]
    wide: list[dict[str, list[str]]] = [
        {"limits": ["9/day"]},
        {"limits": ["601/minute", "9/day"]},
        {"networks": []},
        {"networks": ["127.0.0.1", "10.0.0.0/8"]},
    ]
    for more in wide:
        refused = await client.post("/api-keys", json={"name": "wide", **narrow, **more})
        assert refused.status_code == 403, more
        assert "No key that you manage may" in refused.json()["detail"]
    assert (await client.post(f"/api-keys/{free.id}/rotate")).status_code == 403
    assert (await client.post(f"/api-keys/{made.json()['id']}/rotate")).status_code == 200


def test_the_default_limit_binds_who_manages_as_well(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATE_LIMIT", "5/minute")
    settings = load_settings()
    service = KeyService(settings, make_policies(settings))
    made = service.create("manager", [MANAGE], actor="test")
    by = Delegation(made.id, service.policies)
    for limits in ([], ["5/minute"], ["9/day"], ["1/second", "4/minute"]):
        service.create("key", restrictions={"limits": limits}, actor="test", authorize=by)
    for limits in (["6/minute"], ["1/second"]):
        with pytest.raises(ForbiddenError, match="may send more than yours: 5/minute"):
            service.create("key", restrictions={"limits": limits}, actor="test", authorize=by)


def test_a_restriction_that_nothing_enforces_makes_no_key(
    service: GuardedAPI, key_service: KeyService
) -> None:
    with pytest.raises(InvalidError, match="Nothing here enforces 'moon'"):
        key_service.create("key", restrictions={"moon": ["full"]}, actor="test")
    assert all(event.action != "created" or event.actor != "test" for event in key_service.events())


async def test_what_is_no_limit_and_no_address_is_told(
    client: httpx.AsyncClient, secrets: list[str]
) -> None:
    client.headers[API_KEY_HEADER] = secrets[0]
    for wrong, told in (
        ({"limits": ["often"]}, "'often' is not a limit; write one like 600/minute"),
        ({"networks": ["office"]}, "'office' is no address; write one like 192.0.2.7"),
    ):
        answer = await client.post("/api-keys", json={"name": "key", **wrong})
        assert answer.status_code == 400
        assert told in answer.json()["detail"]
