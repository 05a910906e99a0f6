"""What is around every request: an id, headers of the answer, a line in the log, observers."""

import logging
import re
from typing import Any

import pytest
from fastapi import WebSocket
from starlette.responses import PlainTextResponse

from app.auth import GuardedAPI, GuardedRouter, PublicRouter
from app.auth.key import digest, with_prefix
from app.auth.log.record import Seen, request_id
from app.constants import MISSING_KEY_STATUS
from tests.callers import Keys, answer_of, ask

A_UUID_OF_A_PROXY = b"4bf92f35-77b3-4da6-a3ce-929d0e0e4736"  # not-a-key
OWN = {"Content-Security-Policy": "default-src 'none'"}


@pytest.fixture
def api(api: GuardedAPI) -> GuardedAPI:
    guarded, public = GuardedRouter(prefix="/guarded"), PublicRouter()

    async def item(id: str) -> str:
        return request_id.get()

    async def failing() -> None:
        raise RuntimeError("failed")

    async def live(websocket: WebSocket) -> None:
        await websocket.accept()

    guarded.add_api_route("/items/{id}", item)
    guarded.add_api_route("/failing", failing)
    guarded.add_api_websocket_route("/live", live)
    guarded.mount("/mounted", PlainTextResponse("mounted"))
    public.add_api_route("/framed", lambda: PlainTextResponse("", headers=OWN))
    api.include_router(guarded)
    api.include_router(public)
    return api


LINES = [
    ("/guarded/items/7", "http", "/guarded/items/{id}", 200),
    ("/mounted/x/y", "http", "/mounted/{path}", 200),
    ("/framed", "http", "/framed", 200),
    ("/nothing/here", "http", "", 404),
    ("/guarded/live", "websocket", "/guarded/live", 101),
]


@pytest.mark.parametrize(("path", "type", "route", "status"), LINES)
async def test_a_request_has_one_line_with_its_route_and_its_key(
    api: GuardedAPI,
    keys: Keys,
    caplog: pytest.LogCaptureFixture,
    path: str,
    type: str,
    route: str,
    status: int,
) -> None:
    caplog.set_level(logging.INFO, "app")
    await ask(api, keys.issue(), path=path, type=type, body=b"", query_string=b"q=1")
    (line,) = caplog.records
    told = ("route", "status", "method", "client", "key_id")
    method = "WS" if type == "websocket" else "GET"
    assert [vars(line)[name] for name in told] == [route, status, method, "127.0.0.1", "key-0"]
    said = re.escape(f"127.0.0.1 {method} {route or repr(path)} {status} in ")
    assert re.fullmatch(rf"{said}\d+\.\d ms, key key-0", line.message)


async def test_a_request_of_a_stranger_has_a_line_too(
    api: GuardedAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    await ask(api, path="/guarded/items/7")
    refusal, line = map(vars, caplog.records)
    assert (refusal["reason"], refusal["key_id"]) == ("no key", "")
    assert refusal["route"] == line["route"] == "/guarded/items/{id}"
    assert (line["status"], line["key_id"]) == (MISSING_KEY_STATUS, "")


async def test_observers_are_told_once_of_each_request(api: GuardedAPI, keys: Keys) -> None:
    told: list[Seen] = []
    api.add_observer(told.append)
    secret = keys.issue()
    for secrets in ([secret], []):
        await ask(api, *secrets, path="/guarded/items/7", body=b"")
        await ask(api, *secrets, path="/guarded/live", type="websocket")
    seen = [(each.key and each.key.id, each.digest, each.refusal) for each in told]
    assert seen == [("key-0", digest(secret), "")] * 2 + [(None, b"", "no key")] * 2


@pytest.mark.parametrize("id", [b"abc-123", b"3F.b_", A_UUID_OF_A_PROXY])
async def test_the_id_of_the_caller_is_the_id(api: GuardedAPI, keys: Keys, id: bytes) -> None:
    headers = [(b"x-request-id", id)]
    answer = await answer_of(api, keys.issue(), path="/guarded/items/7", headers=headers)
    assert (answer.header("x-request-id"), answer.body) == (id.decode(), b'"%b"' % id)


async def test_what_does_not_look_like_an_id_or_is_a_key_is_not_repeated(
    api: GuardedAPI, keys: Keys
) -> None:
    secret, other = keys.issue(), keys.issue()
    prefixed = with_prefix(secret.decode(), "acme").encode()
    for id in (b"", b"x" * 65, b"two words", b"a\nb", b"\xe9", secret, secret.upper(), prefixed):
        for secrets in ([], [secret], [other]):
            headers = [(b"x-request-id", id)]
            answer = await answer_of(api, *secrets, path="/guarded/items/7", headers=headers)
            assert re.fullmatch("[0-9a-f]{16}", answer.header("x-request-id") or ""), id


@pytest.mark.parametrize(
    ("path", "status"), [("/guarded/items/7", 200), ("/guarded/failing", 500), ("/framed", 200)]
)
async def test_every_answer_has_the_headers_once(
    api: GuardedAPI, keys: Keys, path: str, status: int
) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def server(scope: Any, receive: Any, _: Any) -> None:
        await api(scope, receive, send)

    try:
        await ask(server, keys.issue(), path=path)
    except RuntimeError:
        assert path == "/guarded/failing"
    except ValueError:  # `ask` saw no message
        pass
    headers = [name for name, _ in sent[0]["headers"]]
    assert sent[0]["status"] == status
    for name in (b"content-security-policy", b"referrer-policy", b"x-content-type-options"):
        assert headers.count(name) == 1
