"""What a proxy is told that asks before it lets a request through."""

import logging

import pytest

from app.auth.keys.service import KeyService
from app.constants import MISSING_KEY_STATUS
from app.gateway import router as gateway
from tests.callers import Answer, answer_of
from tests.conftest import Server

LOGGER = "app.gateway"
ORDERS = [(b"x-forwarded-method", b"PUT"), (b"x-forwarded-uri", b"/orders?token=1")]


def make(service: KeyService, *scopes: str, owner: str = "") -> bytes:
    return service.create("caller", scopes, owner=owner, actor="tests").key.encode()


async def verify(server: Server, *keys: bytes, asked: str = "", method: str = "GET") -> Answer:
    options = {"query_string": asked.encode(), "method": method}
    return await answer_of(server.api, *keys, path=gateway.PATH, **options)


def identity(answer: Answer) -> list[str | None]:
    return [answer.header(f"x-key-{name}") for name in ("id", "owner", "scopes")]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PROPFIND"])
async def test_the_answer_says_who_calls(server: Server, method: str) -> None:
    made = server.keys.create("a", ["b:c", "a:*"], owner="Ann & Bob 100% é", actor="tests")
    answer = await verify(server, made.key.encode(), asked="scope=a:b&scope=b:c", method=method)
    assert (answer.status, answer.body) == (200, b"")
    assert identity(answer) == [made.id, "Ann%20&%20Bob%20100%25%20%C3%A9", "a:* b:c"]
    assert answer.header("cache-control") == "no-store"


async def test_every_header_is_sent_also_without_a_value(server: Server) -> None:
    _, owner, scopes = identity(await verify(server, make(server.keys)))
    assert (owner, scopes) == ("", "")


async def test_who_may_not_pass_is_refused(server: Server) -> None:
    key = make(server.keys, "a:b")
    assert (await verify(server)).status == MISSING_KEY_STATUS
    for method in ("GET", "PUT"):
        answer = await verify(server, key, asked="scope=a:b&scope=c:d", method=method)
        assert (answer.status, answer.body) == (403, b'{"detail":"Missing scope: c:d"}')
        assert identity(answer) == [None] * 3


@pytest.mark.parametrize("asked", ["scopes=a:b", "scope=", "scope=A", "scope=a:b&x=1"])
async def test_a_misspelled_question_lets_nobody_in(server: Server, asked: str) -> None:
    assert (await verify(server, make(server.keys, "*"), asked=asked)).status == 400


async def test_only_of_a_trusted_proxy_the_log_says_what_it_asks_for(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    gateway._tell_nameless.cache_clear()
    key = make(server.keys)
    for client in (("192.0.2.7", 0), ("192.0.2.7", 7), ("192.0.2.8", 8)):  # the first is believed
        await answer_of(server.api, key, path=gateway.PATH, headers=ORDERS, client=client)
    said = [each.getMessage() for each in caplog.records if each.name.startswith(LOGGER)]
    asked, warning = said
    assert asked == "Asked for PUT '/orders': 200"
    assert "FORWARDED_ALLOW_IPS" in warning
