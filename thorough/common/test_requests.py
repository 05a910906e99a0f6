"""What is around every request: an id, headers of the answer, a line in the log."""

import gc
import logging
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from opentelemetry import trace
from starlette import datastructures
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import Caller, GuardedAPI, GuardedRouter, PublicRouter, require
from app.auth.access.policy import Denial, Headers
from app.auth.access.rule import Refusal
from app.auth.key import Key, digest, with_prefix
from app.auth.log import RequestRecord, add_request_id, request_id
from app.constants import MISSING_KEY_STATUS
from tests.callers import HEADER, Keys, answer_of, ask

logger = logging.getLogger("app.of-the-owner")


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    api = GuardedAPI(keys)
    guarded, public, both = GuardedRouter(prefix="/guarded"), PublicRouter(), GuardedRouter()

    @guarded.get("/items/{id}")
    async def item(id: str) -> str:
        logger.warning("looked up")
        return request_id.get()

    @guarded.get("/failing")
    async def failing() -> None:
        raise RuntimeError("failed")

    @guarded.get("/scoped", dependencies=[require("reports:read")])
    async def scoped() -> None: ...

    async def asks(caller: Caller) -> None: ...

    @guarded.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    @public.get("/framed")
    async def framed() -> PlainTextResponse:
        return PlainTextResponse("", headers={"Content-Security-Policy": "default-src 'none'"})

    @both.get("/twice/{name}")
    async def twice(name: str) -> None: ...

    guarded.mount("/mounted", PlainTextResponse("mounted"))
    inner = FastAPI(dependencies=[Depends(asks)])
    inner.add_api_route("/{number}", lambda: None)
    guarded.mount("/inner", inner)
    api.include_router(guarded)
    api.include_router(public)
    api.include_router(both, prefix="/v1")
    api.include_router(both, prefix="/v2")
    return api


async def test_a_request_leaves_nothing_to_the_collector_of_garbage(
    api: GuardedAPI, keys: Keys
) -> None:
    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_of(message: Message) -> None:
            assert scope["type"] == "http"  # servers know the request that they answer
            await send(message)

        await api(scope, receive, send_of)

    secret = keys.issue()
    await ask(server, secret, path="/guarded/items/1")
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await ask(server, secret, path="/guarded/items/1")
        gc.collect()
        left = [each for each in gc.garbage if isinstance(each, RequestRecord)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert left == []


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of the lines that requests have."""
    return [vars(each) for each in caplog.records if each.name == "app.requests"]


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        ("/guarded/items/7", "/guarded/items/{id}", 200),
        ("/guarded/scoped", "/guarded/scoped", 403),
        ("/mounted/x/y", "/mounted/{path}", 200),
        ("/inner/7", "/inner/{path}", 200),
        ("/v1/twice/x", "/v1/twice/{name}", 200),
        ("/v2/twice/x", "/v2/twice/{name}", 200),
        ("/framed", "/framed", 200),
        ("/docs", "/docs", 200),
        ("/nothing/here", "", 404),
    ],
)
@pytest.mark.parametrize("copied", [False, True])
async def test_a_request_has_one_line_with_its_route_and_its_key(
    api: GuardedAPI,
    keys: Keys,
    caplog: pytest.LogCaptureFixture,
    path: str,
    route: str,
    status: int,
    copied: bool,
) -> None:
    class Copying:
        """Middleware that hands on a scope of its own, as some does."""

        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self._app({**scope}, receive, send)

    if copied:
        api.add_middleware(Copying)
    caplog.set_level(logging.INFO, "app")
    secret = keys.issue()
    for _ in range(2):  # what is looked up once is kept
        await ask(api, secret, path=path, query_string=b"q=1", root_path="", body=b"")
        line = lines(caplog)[-1]
        assert line["duration_ms"] < 5000
        fields = ("route", "status", "method", "client", "key_id")
        assert [line[each] for each in fields] == [route, status, "GET", "127.0.0.1", "key-0"]
        assert re.fullmatch(
            rf"127\.0\.0\.1 GET {re.escape(route or repr(path))} {status}"
            r" in \d+\.\d ms, key key-0",
            line["message"],
        )
    assert len(lines(caplog)) == 2


@pytest.mark.parametrize("shown", [False, True])
async def test_a_line_names_the_owner_of_the_key_if_asked_for(
    caplog: pytest.LogCaptureFixture, shown: bool
) -> None:
    class OwnedKeys(Keys):
        async def lookup(self, digest: bytes) -> Key | Refusal:
            found = await super().lookup(digest)
            return replace(found, owner="acme") if isinstance(found, Key) else found

    keys = OwnedKeys()
    caplog.set_level(logging.INFO, "app")
    await ask(GuardedAPI(keys, show_owners=shown), keys.issue(), path="/x")
    line = lines(caplog)[-1]
    assert line["message"].endswith(", key key-0 of acme" if shown else ", key key-0")
    assert line.get("owner", "") == ("acme" if shown else "")


async def test_a_request_of_a_stranger_has_a_line_too(
    api: GuardedAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    for path in ("/guarded/items/7", "/mounted/x", "/v2/twice/x"):
        await ask(api, path=path)
    refusals = [vars(each) for each in caplog.records if each.name == "app.auth.access.rule"]
    routes = ["/guarded/items/{id}", "/mounted/{path}", "/v2/twice/{name}"]
    assert [each["route"] for each in refusals] == routes
    told = [(each["route"], each["status"], each["key_id"]) for each in lines(caplog)]
    assert told == [(route, MISSING_KEY_STATUS, "") for route in routes]


async def test_a_refusal_by_scope_names_the_key(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    await ask(api, keys.issue(), path="/guarded/scoped")
    refusal = next(vars(each) for each in caplog.records if each.name == "app.auth.access.rule")
    assert (refusal["reason"], refusal["key_id"]) == ("missing scope reports:read", "key-0")
    assert refusal["message"].endswith("missing scope reports:read (key-0).")


async def test_a_websocket_has_a_line_as_well(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    for secrets in ([keys.issue()], []):
        await ask(api, *secrets, path="/guarded/live", type="websocket")
    told = [
        (each["method"], each["route"], each["status"], each["key_id"]) for each in lines(caplog)
    ]
    assert told == [("WS", "/guarded/live", 101, "key-0"), ("WS", "/guarded/live", 403, "")]


async def test_a_path_that_no_router_can_read_has_no_route(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    router = GuardedRouter()
    router.add_api_route("/{number:int}", lambda: None)
    api.include_router(router)
    with pytest.raises(ValueError, match="digits"):
        await ask(api, keys.issue(), path="/" + 5000 * "9")
    assert [(each["route"], each["status"]) for each in lines(caplog)] == [("", 500)]


async def test_an_application_without_any_route_has_lines_too(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    api = GuardedAPI(keys, openapi_url=None)
    assert api.routes == []
    await ask(api, path="/x")
    assert [(each["route"], each["status"]) for each in lines(caplog)] == [("", 404)]


async def test_a_route_is_that_of_the_method_if_there_is_one(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    router = GuardedRouter(prefix="/things")
    router.add_api_route("/new", lambda: None, methods=["POST"])
    router.add_api_route("/{id}", lambda: None)
    api.include_router(router)
    for method in ("GET", "POST", "PUT"):
        await ask(api, path="/things/new", method=method)
    routes = [each["route"] for each in lines(caplog)]
    assert routes == ["/things/{id}", "/things/new", "/things/new"]


async def test_whoever_wants_no_lines_has_none(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "app")
    await ask(api, keys.issue(), path="/guarded/items/7")
    await ask(api, path="/guarded/items/7")
    assert [each.name for each in caplog.records] == ["app.of-the-owner"]


async def test_each_request_is_told_once_to_who_counts(keys: Keys) -> None:
    told: list[RequestRecord] = []
    api = GuardedAPI(keys, observers=[told.append])
    router = GuardedRouter()
    router.add_api_route("/parts", lambda: StreamingResponse(iter(["one", "two"])))

    @router.websocket("/gone")
    async def gone(socket: WebSocket) -> None:
        raise RuntimeError("failed")

    @router.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("one")
        await socket.close()

    api.include_router(router)
    secret = keys.issue()
    for secrets in ([secret], []):
        await ask(api, *secrets, path="/parts", body=b"")
        await ask(api, *secrets, path="/live", type="websocket")
    with pytest.raises(RuntimeError):
        await ask(api, secret, path="/gone", type="websocket")  # which gets no answer
    assert [(each.key is not None, each.refusal) for each in told] == [
        *[(True, "")] * 2,
        *[(False, "no key")] * 2,
        (True, ""),
    ]
    assert {each.digest for each in told if each.key} == {digest(secret)}


class Once:
    """A policy that lets each key in once."""

    name = "once"
    asked = 0

    def parse(self, values: Sequence[str]) -> list[str]:
        return [*values]

    def check_within(self, inner: Sequence[str], outer: Sequence[str]) -> None: ...

    def concerns(self, key: Key) -> bool:
        return True

    async def admit(self, key: Key, client: str) -> Headers | Denial:
        self.asked += 1
        if self.asked > 1:
            return Denial("over its limit", status=429, detail="Too many requests")
        return [(b"ratelimit", b'"minute";r=0;t=60')]

    def running(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def upgrade(self) -> bool:
        return False


async def test_a_limit_is_told_to_its_caller_and_to_who_counts(keys: Keys) -> None:
    once, told = Once(), list[RequestRecord]()
    api = GuardedAPI(keys, policies=[once], observers=[told.append])
    router = GuardedRouter()

    @router.get("/x")
    async def x() -> None: ...

    @router.get("/scoped", dependencies=[require("a:b")])
    async def scoped() -> None: ...

    @router.get("/failing")
    async def failing() -> None:
        raise RuntimeError("failed")

    api.include_router(router)
    secret = keys.issue()
    first = await answer_of(api, secret, path="/x")
    assert (first.status, first.header("ratelimit")) == (200, '"minute";r=0;t=60')
    assert first.header("cache-control") == "no-store"
    assert (await answer_of(api, secret, path="/x")).status == 429
    once.asked = 0
    assert (await answer_of(api, secret, path="/scoped")).status == 403
    once.asked = 0

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(RuntimeError):
            await api(scope, receive, send)

    failed = await answer_of(server, secret, path="/failing")
    assert (failed.status, failed.header("ratelimit")) == (500, '"minute";r=0;t=60')
    assert [seen.outcome for seen in told] == ["served", "limited", "refused", "served"]
    assert {seen.key.id for seen in told if seen.key} == {"key-0"}
    assert {seen.digest for seen in told} == {digest(secret)}


# The id.


AS_MANY_PROXIES_SEND_IT = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"  # not-a-key


@pytest.mark.parametrize("id", ["abc-123", "3F.b_", AS_MANY_PROXIES_SEND_IT])
async def test_an_id_that_comes_is_the_id(api: GuardedAPI, keys: Keys, id: str) -> None:
    headers = [(b"x-request-id", id.encode())]
    answer = await answer_of(api, keys.issue(), path="/guarded/items/7", headers=headers)
    assert (answer.header("x-request-id"), answer.body) == (id, f'"{id}"'.encode())


@pytest.mark.parametrize("id", [b"", b"x" * 65, b"two words", b"a\nb", b"\xe9", b"<script>"])
async def test_an_id_that_does_not_look_like_one_is_not_believed(
    api: GuardedAPI, keys: Keys, id: bytes
) -> None:
    secret, ids = keys.issue(), set()
    for headers in ([(b"x-request-id", id)], []):
        answer = await answer_of(api, secret, path="/guarded/items/7", headers=headers)
        ids.add(answer.header("x-request-id"))
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", each or "") for each in ids)


@pytest.mark.parametrize("sent", ["both", "only as an id", "as an id beside another key"])
async def test_a_key_in_the_place_of_an_id_is_not_repeated(
    api: GuardedAPI, keys: Keys, sent: str
) -> None:
    secret, other = keys.issue(), keys.issue()
    if sent != "both":
        await ask(api, secret, path="/guarded/items/7")  # it is in use
    offered = {"both": [secret], "only as an id": []}.get(sent, [other])
    prefixed = with_prefix(secret.decode(), "acme").encode()
    parts = (
        b"req-" + secret,
        b"aa" + secret + b".1",
        b"a" * 28 + prefixed[-36:],
        b"ab_" + prefixed,
    )
    overlapping = b"00000000-0000-4000-8000-0000" + secret
    for spelled in (secret, secret.upper(), prefixed, *parts, overlapping):
        headers = [(b"x-request-id", spelled)]
        answer = await answer_of(api, *offered, path="/guarded/items/7", headers=headers)
        assert re.fullmatch("[0-9a-f]{16}", answer.header("x-request-id") or "")


async def test_lines_of_the_owner_carry_the_id_while_the_request_is_answered(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(add_request_id)
    try:
        headers = [(b"x-request-id", b"abc-123")]
        await ask(api, keys.issue(), path="/guarded/items/7", headers=headers)
        logger.warning("afterwards")
    finally:
        caplog.handler.removeFilter(add_request_id)
    owners = [vars(each) for each in caplog.records if each.name == logger.name]
    assert [each.get("request_id") for each in owners] == ["abc-123", None]


# The headers.


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/guarded/items/7", 200),
        ("/guarded/scoped", 403),
        ("/guarded/failing", 500),
        ("/framed", 200),
        ("/nothing", 404),
    ],
)
async def test_every_answer_has_the_headers_once(
    api: GuardedAPI, keys: Keys, path: str, status: int
) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": "GET", "path": path, "query_string": b""}
    scope["headers"] = [(HEADER, keys.issue())]
    try:
        await api(scope, receive, send)
    except RuntimeError:
        assert path == "/guarded/failing"
    headers = datastructures.Headers(raw=sent[0]["headers"])
    assert sent[0]["status"] == status
    for name in ("content-security-policy", "referrer-policy", "x-content-type-options"):
        assert len(headers.getlist(name)) == 1
    own = path == "/framed"
    assert headers["content-security-policy"] == (
        "default-src 'none'" if own else "frame-ancestors 'none'"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"]


async def test_of_two_around_each_other_the_outer_one_counts(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    secret = keys.issue()
    outer, router = GuardedAPI(keys), GuardedRouter()
    router.mount("/outer", api)
    outer.include_router(router)
    answer = await answer_of(outer, secret, path="/outer/guarded/items/7")
    assert answer.status == 200
    assert [each["route"] for each in lines(caplog)] == ["/outer/{path}"]


# The span of OpenTelemetry, if there is one.


class Span(trace.NonRecordingSpan):
    """One that keeps what it is told."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name, self.attributes = "", attributes

    def is_recording(self) -> bool:
        return True

    def update_name(self, name: str) -> None:
        self.name = name

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        self.attributes.update(attributes)


async def test_the_span_tells_the_key_and_what_was_refused(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "app")
    secret = keys.issue()
    router = GuardedRouter()
    router.add_api_route("/{number:int}", lambda: None)
    api.include_router(router)
    opened, refused, nowhere, unclear = (Span() for _ in range(4))
    told = {"path": "/guarded/items/7", "peer": secret.decode(), "method": "A\x1b[2J", "port": 80}
    served = Span(**told)
    served.name = f"GET /{secret.decode()}"
    with trace.use_span(served):
        await ask(api, secret, path="/guarded/items/7")
    with trace.use_span(opened):
        await ask(api, secret, path="/guarded/live", type="websocket")
    with trace.use_span(refused):
        await ask(api, path="/guarded/items/7")
    with trace.use_span(nowhere):
        await ask(api, path="/nothing")
    with trace.use_span(unclear):
        await ask(api, path="/" + 5000 * "9")  # which no router can read
    assert opened.attributes == {"caller.id": "key-0"}
    masked = {"peer": "[key]", "method": r"A\x1b[2J", "caller.id": "key-0"}
    assert (served.name, served.attributes) == ("GET /[key]", told | masked)
    assert refused.name == "GET /guarded/items/{id}"
    assert refused.attributes == {
        "http.route": "/guarded/items/{id}",
        "caller.id": "",
        "caller.refusal": "no key",
    }
    assert nowhere.attributes == {}
    assert unclear.attributes["caller.refusal"] == "no key"
    assert "http.route" not in unclear.attributes
