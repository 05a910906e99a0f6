"""What is around every request: an id, headers of the answer, a line in the log, observers."""

import logging
import re
from contextlib import suppress

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.auth import GuardedAPI, GuardedRouter, PublicRouter
from app.auth.key import digest, with_prefix
from app.auth.log import RequestRecord, request_id
from app.constants import MISSING_KEY_STATUS
from tests.callers import Keys, answer_of, ask, with_every_kind

A_UUID_OF_A_PROXY = b"4bf92f35-77b3-4da6-a3ce-929d0e0e4736"  # not-a-key


@pytest.fixture
def api(api: GuardedAPI) -> GuardedAPI:
    async def item(id: str) -> str:
        return request_id.get()

    async def failing() -> None:
        raise RuntimeError("failed")

    async def framed() -> PlainTextResponse:
        return PlainTextResponse("", headers={"Content-Security-Policy": "default-src 'none'"})

    guarded, public = with_every_kind(GuardedRouter()), PublicRouter()
    guarded.add_api_route("/items/{id}", item)
    guarded.add_api_route("/failing", failing)
    public.add_api_route("/framed", framed)
    api.include_router(guarded, prefix="/v1")
    api.include_router(public)
    return api


async def test_a_request_has_one_line_with_its_route_and_its_key(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    secret, fields = keys.issue(), ("method", "route", "status", "client", "key_id")
    for path, method, route, status in (
        ("/v1/items/7", "GET", "/v1/items/{id}", 200),
        ("/v1/mount/x/y", "GET", "/v1/mount/{path}", 200),
        ("/framed", "GET", "/framed", 200),
        ("/nothing/here", "GET", "", 404),
        ("/v1/x", "WS", "/v1/x", 101),
    ):
        caplog.clear()
        type = "websocket" if method == "WS" else "http"
        await ask(api, secret, path=path, type=type, body=b"", query_string=b"q=1")
        (line,) = caplog.records
        told = [vars(line)[name] for name in fields]
        assert told == [method, route, status, "127.0.0.1", "key-0"]
        said = re.escape(f"127.0.0.1 {method} {route or repr(path)} {status} in ")
        assert re.fullmatch(rf"{said}\d+\.\d ms, key key-0", line.message)


async def test_a_request_of_a_stranger_has_a_line_too(
    api: GuardedAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    await ask(api, path="/v1/items/7")
    refusal, line = map(vars, caplog.records)
    assert (refusal["reason"], refusal["route"]) == ("no key", "/v1/items/{id}")
    told = (line["route"], line["status"], line["key_id"])
    assert told == ("/v1/items/{id}", MISSING_KEY_STATUS, "")


async def test_observers_are_told_once_of_each_request(api: GuardedAPI, keys: Keys) -> None:
    told: list[RequestRecord] = []
    api.add_observer(told.append)
    secret = keys.issue()
    for secrets in ([secret], []):
        for type in ("http", "websocket"):
            await ask(api, *secrets, path="/v1/x", type=type, body=b"")
    seen = [(each.key and each.key.id, each.digest, each.outcome, each.refusal) for each in told]
    served, refused = ("key-0", digest(secret), "served", ""), (None, b"", "refused", "no key")
    assert seen == [served, served, refused, refused]


async def test_the_id_of_a_caller_is_the_id_if_it_looks_like_one_and_is_no_key(
    api: GuardedAPI, keys: Keys
) -> None:
    secret, other = keys.issue(), keys.issue()
    for id in (b"abc-123", b"3F.b_", A_UUID_OF_A_PROXY):
        answer = await answer_of(api, secret, path="/v1/items/7", headers=[(b"x-request-id", id)])
        assert (answer.header("x-request-id"), answer.body) == (id.decode(), b'"%b"' % id)
    prefixed = with_prefix(secret.decode(), "acme").encode()
    for id in (b"", b"x" * 65, b"two words", b"a\nb", b"\xe9", secret, secret.upper(), prefixed):
        for secrets in ([], [secret], [other]):
            answer = await answer_of(
                api, *secrets, path="/v1/items/7", headers=[(b"x-request-id", id)]
            )
            assert re.fullmatch("[0-9a-f]{16}", answer.header("x-request-id") or ""), id


async def test_every_answer_has_the_headers_once(api: GuardedAPI, keys: Keys) -> None:
    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(RuntimeError):  # of the endpoint that fails
            await api(scope, receive, send)

    for path, status in (("/v1/items/7", 200), ("/v1/failing", 500), ("/framed", 200), ("/x", 404)):
        answer = await answer_of(server, keys.issue(), path=path)
        assert answer.status == status
        sent = [answer.header(name) for name in ("referrer-policy", "x-content-type-options")]
        assert sent == ["no-referrer", "nosniff"]
        framing = "default-src 'none'" if path == "/framed" else "frame-ancestors 'none'"
        assert answer.header("content-security-policy") == framing
