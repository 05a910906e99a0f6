"""Proxies that ask: they are told who calls, once, and believed as far as they are trusted."""

import http.client
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Scope

from app.auth import GuardedAPI
from app.auth.access import request_log
from app.auth.key import Key, new_secret
from app.auth.keys.service import KeyService
from app.auth.log import RequestRecord
from app.auth.store.cache import DatabaseKeyStore
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.gateway import router as gateway
from tests.callers import Answer, answer_of, status_of
from tests.thorough.servers import LiveServer
from tests.thorough.test_usage import WEEK, of_key

ME, FORGED = "tests", "203.0.113.9"


async def verify(
    service: GuardedAPI, *keys: bytes, query: bytes = b"", method: str = "GET"
) -> Answer:
    return await answer_of(service, *keys, path=gateway.PATH, query_string=query, method=method)


@given(owner=st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_any_owner_can_be_read_from_a_header(owner: str) -> None:
    told = gateway.identity_of(Key("id", "name", frozenset(), owner=owner))["X-Key-Owner"]
    assert unquote(told) == owner
    assert all("!" <= letter <= "~" for letter in told)


@pytest.mark.parametrize("owner", ["acme", "ann@example.com", "org:7/eu", "a+b|c\"',;=&?#"])
def test_a_plain_owner_is_told_as_it_is(owner: str) -> None:
    assert gateway.identity_of(Key("id", "name", frozenset(), owner=owner))["X-Key-Owner"] == owner


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "TRACE", "M-SEARCH", "X" * 100])
async def test_every_method_is_answered_and_refused_alike(
    service: GuardedAPI, key_service: KeyService, method: str
) -> None:
    key = key_service.create("key", ["a:*"], actor=ME).key.encode()
    expected = {
        b"": 200,
        b"scope=a:b": 200,
        b"scope=a:b&scope=a:c": 200,
        b"scope=b:c": 403,
        b"scope=a:b&scope=b:c": 403,
        b"scope=*": 403,
        b"scope=": 400,
        b"scopes=a:b": 400,
        b"scope=a:b&other": 400,
        b"scope=\xff": 400,
        b"scope=" + new_secret().encode() + b":x": 403,
    }
    for query, status in expected.items():
        answer = await verify(service, key, query=query, method=method)
        assert answer.status == status, query
        assert answer.header("cache-control") == "no-store"
        assert answer.header("x-key-owner") == ("" if status == 200 else None)
    assert (await verify(service, method=method)).status == MISSING_KEY_STATUS


async def test_a_question_counts_once(
    service: GuardedAPI, key_service: KeyService, store: DatabaseKeyStore
) -> None:
    made = key_service.create("key", ["a:b"], restrictions={"limits": ["5/hour"]}, actor=ME)
    key = made.key.encode()
    for query in (b"", b"scope=a:b", b"scope=c:d"):  # also if it is answered with no
        await verify(service, key, query=query)
    allowed = await verify(service, key, method="PURGE")
    assert (allowed.header("ratelimit") or "").startswith('"hour";r=1;')
    assert allowed.header("ratelimit-policy") == '"hour";q=5;w=3600'
    assert (await verify(service, key)).status == 200
    refused = await verify(service, key)
    assert (refused.status, refused.header("x-key-id")) == (429, None)
    assert int(refused.header("retry-after") or 0) > 0
    await store.flush()
    used = of_key(key_service, made.id, WEEK)
    assert (used.served, used.refused, used.limited) == (4, 1, 1)


async def test_a_question_makes_no_reason_and_shows_no_key(
    service: GuardedAPI, key_service: KeyService, said: pytest.LogCaptureFixture
) -> None:
    records: list[RequestRecord] = []
    service.add_observer(records.append)
    key, text = key_service.create("key", actor=ME).key, new_secret()
    for scope in ("reports:read", text):
        assert (await verify(service, key.encode(), query=f"scope={scope}".encode())).status == 403
    assert {(each.refusal, each.outcome) for each in records} == {
        ("missing scope at /verify", "refused")
    }
    assert "missing scope reports:read" in said.text
    assert "missing scope [key]" in said.text
    assert text not in said.text


async def test_no_route_is_searched_for(
    service: GuardedAPI, key_service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the slowest step of all."""
    searched: list[Scope] = []
    monkeypatch.setattr(request_log, "route_of", searched.append)
    await verify(service, key_service.create("key", actor=ME).key.encode())
    assert not searched


def test_the_document_tells_the_question_and_the_answer(service: GuardedAPI) -> None:
    (operation,) = service.openapi()["paths"][gateway.PATH].values()
    (scope,) = operation["parameters"]
    assert (scope["name"], scope["in"], scope["schema"]["type"]) == ("scope", "query", "array")
    assert operation["responses"].keys() >= {"200", "400", "403", "429", "503"}
    assert operation["responses"]["200"]["headers"].keys() >= {"X-Key-Id", "X-Key-Owner"}
    assert "content" not in operation["responses"]["200"]


# Who is believed. uvicorn decides it, so it is asked.


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the gateway and the log of requests say."""
    caplog.set_level(logging.INFO, "app")
    caplog.set_level(logging.DEBUG, "app.gateway")
    gateway._tell_nameless.cache_clear()
    yield caplog
    gateway._tell_nameless.cache_clear()


def of(said: pytest.LogCaptureFixture, logger: str) -> list[str]:
    return [record.getMessage() for record in said.records if record.name.startswith(logger)]


@contextmanager
def answering(service: GuardedAPI, trusted: str) -> Iterator[LiveServer]:
    with LiveServer(service, forwarded_allow_ips=trusted) as server:
        yield server


def ask(server: LiveServer, *headers: tuple[str, str]) -> int:
    with closing(http.client.HTTPConnection(*server.address, timeout=60)) as connection:
        connection.putrequest("GET", gateway.PATH)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse().status


def forwarded(path: str, address: str = FORGED) -> list[tuple[str, str]]:
    named = {"For": address, "Method": "DELETE", "Uri": path}
    return [(f"X-Forwarded-{name}", value) for name, value in named.items()]


def test_a_trusted_proxy_says_who_asks_for_what(
    service: GuardedAPI, secrets: list[str], said: pytest.LogCaptureFixture
) -> None:
    key = (API_KEY_HEADER, secrets[0])
    with answering(service, "127.0.0.1") as server:
        assert ask(server, key, *forwarded("/orders/7?token=secret")) == 200
        assert ask(server, *forwarded(f"/{secrets[0]}\xe9")) == MISSING_KEY_STATUS
        assert ask(server, key, ("X-Forwarded-For", FORGED)) == 200  # no path, no line
    assert of(said, "app.gateway") == [
        "Asked for DELETE '/orders/7': 200",
        f"Asked for DELETE '/[key]\xe9': {MISSING_KEY_STATUS}",
    ]
    asked = [record for record in said.records if record.name.startswith("app.gateway")]
    assert (vars(asked[0])["asked_method"], vars(asked[0])["asked_path"]) == ("DELETE", "/orders/7")
    assert {vars(record)["client"] for record in said.records if record.name == "app.requests"} == {
        FORGED
    }


@pytest.mark.parametrize(
    ("trusted", "headers"),
    [
        ("127.0.0.1", []),  # the proxy says nothing of the caller
        ("127.0.0.1", forwarded("/orders")[1:]),
        ("127.0.0.1", forwarded("/orders", "")),
        ("127.0.0.1", forwarded("/orders", "unknown")),
        ("10.0.0.1", forwarded("/orders")),  # the proxy is not trusted
        ("10.0.0.1", forwarded("/orders", "127.0.0.1")),
    ],
)
def test_a_proxy_that_is_not_believed_is_told_of_once(
    service: GuardedAPI,
    secrets: list[str],
    said: pytest.LogCaptureFixture,
    trusted: str,
    headers: list[tuple[str, str]],
) -> None:
    with answering(service, trusted) as server:
        for _ in range(2):
            assert ask(server, (API_KEY_HEADER, secrets[0]), *headers) == 200
    (warning,) = of(said, "app.gateway")
    assert warning.startswith(f"A question to {gateway.PATH} came without the address")


def test_at_the_usual_level_a_question_has_one_line(
    service: GuardedAPI, secrets: list[str], said: pytest.LogCaptureFixture
) -> None:
    said.set_level(logging.INFO, "app.gateway")
    with answering(service, "127.0.0.1") as server:
        assert ask(server, (API_KEY_HEADER, secrets[0]), *forwarded("/orders")) == 200
    assert of(said, "app.gateway") == []
    assert len(of(said, "app.requests")) == 1


async def test_a_socket_without_addresses_is_told_of_too(
    service: GuardedAPI, said: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await answer_of(service, path=gateway.PATH, client=None)
    assert len(of(said, "app.gateway")) == 1


def test_wrong_keys_slow_down_their_own_address_alone(
    service: GuardedAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.access.clients.BURST", 2)
    wrong = (API_KEY_HEADER, new_secret())
    with answering(service, "127.0.0.1") as server:
        statuses = [ask(server, wrong, *forwarded("/")) for _ in range(4)]
        assert statuses == [MISSING_KEY_STATUS] * 3 + [429]
        assert ask(server, wrong, *forwarded("/", "203.0.113.10")) == MISSING_KEY_STATUS


async def test_other_requests_are_none_of_its_business(
    service: GuardedAPI, secrets: list[str], said: pytest.LogCaptureFixture
) -> None:
    headers = [(b"x-forwarded-uri", b"/orders")]
    assert await status_of(service, secrets[0].encode(), headers=headers) == 200
    assert of(said, "app.gateway") == []
