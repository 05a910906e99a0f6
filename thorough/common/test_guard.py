"""The guard: what it covers, when it asks, and that nobody forgets it."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Response, WebSocket
from fastapi.routing import APIRoute, _IncludedRouter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Match, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.auth import Caller, GuardedAPI, GuardedRouter, PublicRouter, require
from app.auth.errors import SettingsError, UnguardedRouteError
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.callers import Answer, Keys, answer_of, ask, start_up, status_of
from tests.thorough.servers import LiveServer

WELCOME = "You have access!"


async def endpoint() -> Response:
    return PlainTextResponse(WELCOME)


async def websocket_endpoint(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(WELCOME)
    await websocket.close()


async def starlette_endpoint(_: Request) -> Response:
    return PlainTextResponse(WELCOME)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """It knows nothing of keys, and answers whatever it is asked."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse(WELCOME)(scope, receive, send)


KINDS = [(path, type) for path in ("/x", "/raw", "/mount/x") for type in ("http", "websocket")]


def filled(router: Any) -> Any:
    """With a route of each of the KINDS."""
    router.add_api_route("/x", endpoint, name="x")
    router.add_api_websocket_route("/x", websocket_endpoint, name="x")
    router.add_route("/raw", starlette_endpoint, name="raw")
    routes = router.router if isinstance(router, FastAPI) else router
    routes.add_websocket_route("/raw", websocket_endpoint, name="raw")
    router.mount("/mount", application, name="mount")
    return router


def on(router: Any, *included: Any, **options: Any) -> Any:
    for each in included:
        router.include_router(each, **options)
    return router


async def is_let_in(app: ASGIApp, *secrets: bytes, path: str, type: str = "http") -> bool:
    """Whether a request gets to what is there; one that does not is refused like any other."""
    answer = await ask(app, *secrets, path=path, type=type)
    if isinstance(answer, list):
        if answer[0]["type"] == "websocket.accept":
            return True
        assert answer == [{"type": "websocket.close", "code": 1008, "reason": ""}]
        return False
    if answer.status == 200:
        assert answer.body.decode() == WELCOME
        return True
    assert answer.status == MISSING_KEY_STATUS
    assert answer.body == b'{"detail":"Invalid or missing API Key"}'
    return False


async def assert_guarded(app: ASGIApp, secret: bytes, prefix: str = "") -> None:
    for path, type in KINDS:
        assert not await is_let_in(app, path=prefix + path, type=type)
        assert await is_let_in(app, secret, path=prefix + path, type=type)


# A refused request costs nothing.


async def test_a_refused_request_is_not_read_and_runs_nothing(api: GuardedAPI) -> None:
    ran: list[str] = []

    async def dependency() -> None:
        ran.append("dependency")

    router = GuardedRouter(dependencies=[Depends(dependency)])

    @router.post("/items")
    async def create_item(item: dict[str, str]) -> None:
        ran.append("handler")

    api.include_router(router, dependencies=[Depends(dependency)])

    # `ask` fails the test if the body is read.
    assert await status_of(api, path="/items", method="POST") == MISSING_KEY_STATUS
    assert ran == []


def test_broken_json_from_a_stranger_is_refused_not_explained(api: GuardedAPI) -> None:
    router = GuardedRouter()

    @router.post("/items")
    async def create_item(item: dict[str, str]) -> None: ...

    api.include_router(router)
    with LiveServer(api) as live:
        answer = live.send_raw(
            b"POST /items HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000\r\n\r\n{broken"
        )
    assert str(MISSING_KEY_STATUS).encode() in answer


async def test_a_method_that_does_not_exist_is_refused_like_one_that_does(
    api: GuardedAPI, keys: Keys
) -> None:
    api.include_router(filled(GuardedRouter()))
    assert await status_of(api, path="/x", method="DELETE") == MISSING_KEY_STATUS
    assert await status_of(api, keys.issue(), path="/x", method="DELETE") == 405


@pytest.mark.parametrize("path", ["/x/", "/y", "/mount", "/deep/x/", "/deep/y", "/open/"])
@pytest.mark.parametrize("callers", [0, 1])
async def test_a_slash_too_many_or_too_few_is_no_redirect(
    api: GuardedAPI, keys: Keys, path: str, callers: int
) -> None:
    router = filled(GuardedRouter())
    router.add_api_route("/y/", endpoint)
    public = PublicRouter()
    public.add_api_route("/open", endpoint)
    on(api, router, public)
    api.include_router(on(GuardedRouter(), router), prefix="/deep")

    answer = await answer_of(api, *[keys.issue()] * callers, path=path)

    assert (answer.status, answer.header("location")) == (404, None)


# One check a request.


@pytest.mark.parametrize("type", ["http", "websocket"])
@pytest.mark.parametrize("depth", range(6))
async def test_one_check_however_many_requirements_nest(
    api: GuardedAPI, keys: Keys, depth: int, type: str
) -> None:
    def needs_the_caller(_: int) -> Callable[..., object]:
        def dependency(caller: Caller) -> None:
            assert caller.id == "key-0"

        return dependency

    router = GuardedRouter(dependencies=[Depends(needs_the_caller(n)) for n in range(depth)])

    @router.get("/whoami")
    async def whoami(caller: Caller) -> str:
        return caller.id

    @router.websocket("/whoami")
    async def whoami_websocket(websocket: WebSocket, caller: Caller) -> None:
        await websocket.accept()
        await websocket.send_text(caller.id)

    for _ in range(depth):
        router = on(GuardedRouter(), router)
    api.include_router(router)
    outer, secret = GuardedAPI(keys), keys.issue()
    around = GuardedRouter()
    around.mount("/api", api)
    outer.include_router(around)

    for app, path in ((api, "/whoami"), (outer, "/api/whoami")):
        with patch.object(keys, "cached", wraps=keys.cached) as asked:
            assert "key-0" in str(await ask(app, secret, path=path, type=type))
        assert asked.call_count == 1


async def test_a_public_endpoint_cannot_have_a_caller(api: GuardedAPI) -> None:
    router = PublicRouter()

    @router.get("/whoami")
    async def whoami(caller: Caller) -> None: ...

    api.include_router(router)
    with pytest.raises(RuntimeError, match="/whoami asks for its caller: put it on a Guarded"):
        await ask(api, path="/whoami")


# The size of a body.


def bounded(keys: Keys) -> GuardedAPI:
    api = GuardedAPI(keys, max_body_size=10)
    for router, prefix in ((GuardedRouter(), ""), (PublicRouter(), "/public")):

        @router.post("/read")
        async def read(request: Request) -> int:
            return len(await request.body())

        @router.post("/unread")
        async def unread() -> None: ...

        @router.post("/larger", max_body_size=20)
        async def larger(request: Request) -> int:
            return len(await request.body())

        api.include_router(router, prefix=prefix)
    return api


@pytest.mark.parametrize("path", ["/read", "/unread", "/larger"])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_stranger_is_refused_before_the_size_of_a_body_counts(
    keys: Keys, path: str, declared: bool
) -> None:
    headers = [(b"content-length", b"99") if declared else (b"transfer-encoding", b"chunked")]
    answer = await answer_of(bounded(keys), path=path, method="POST", headers=headers)
    assert (answer.status, answer.header("connection")) == (MISSING_KEY_STATUS, None)


def of_request(answer: Answer) -> Answer:
    """Without its id."""
    headers = [each for each in answer.headers if each[0] != b"x-request-id"]
    return Answer(answer.status, tuple(headers), answer.body)


@pytest.mark.parametrize("prefix", ["", "/public"])
async def test_a_body_that_is_too_large_gets_one_answer(keys: Keys, prefix: str) -> None:
    api, key = bounded(keys), keys.issue()

    async def post(path: str, size: int, *headers: tuple[bytes, bytes]) -> Answer:
        whole, path = b"x" * size, prefix + path
        return await answer_of(api, key, path=path, method="POST", headers=headers, body=whole)

    for path, size in (("/read", 11), ("/unread", 11), ("/larger", 21)):
        answer = await post(path, size, (b"content-length", str(size).encode()))
        assert (answer.status, answer.body) == (413, b"Content Too Large")
        in_chunks = await post(path, size, (b"transfer-encoding", b"chunked"))
        if path != "/unread":  # which a body in chunks does not bother
            assert of_request(answer) == of_request(in_chunks)
    for path, size in (("/read", 10), ("/larger", 20)):
        answer = await post(path, size, (b"content-length", str(size).encode()))
        assert (answer.status, answer.body) == (200, str(size).encode())


# WebSockets.


def test_a_websocket_is_guarded_like_the_rest(api: GuardedAPI, keys: Keys) -> None:
    api.include_router(filled(GuardedRouter()))
    with LiveServer(api) as live:
        url = f"ws://127.0.0.1:{live.address[1]}/x"
        key = {API_KEY_HEADER: keys.issue().decode()}
        with connect(url, additional_headers=key) as websocket:
            assert websocket.recv() == WELCOME
        with pytest.raises(InvalidStatus) as refused:
            connect(url)
    assert refused.value.response.status_code == MISSING_KEY_STATUS
    assert refused.value.response.body == b'{"detail":"Invalid or missing API Key"}'


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({"websocket.http.response": {}}, "websocket.http.response.start"),
        ({}, "websocket.close"),
        (None, "websocket.close"),
    ],
)
async def test_a_refused_websocket_is_never_accepted(
    api: GuardedAPI, extensions: dict[str, Any] | None, expected: str
) -> None:
    api.include_router(filled(GuardedRouter()))
    sent = await ask(api, path="/x", type="websocket", extensions=extensions)
    assert isinstance(sent, list)
    assert sent[0]["type"] == expected


def test_a_refused_websocket_is_no_error_of_the_server(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the log nor for a tracker that listens to it; one that nobody answers is."""
    asking = GuardedRouter(dependencies=[require("reports:read")])
    api.include_router(filled(asking))
    api.include_router(router := PublicRouter())

    @router.websocket("/unanswered")
    async def unanswered(socket: WebSocket) -> None: ...

    said = logging.getLogger("uvicorn.error")
    with LiveServer(api) as live:
        said.addHandler(caplog.handler)
        try:
            url = f"ws://127.0.0.1:{live.address[1]}"
            key = {API_KEY_HEADER: keys.issue().decode()}
            for path, headers, expected in (
                ("/x", {}, MISSING_KEY_STATUS),
                ("/x", key, 403),
                ("/unanswered", {}, 500),
            ):
                with pytest.raises(InvalidStatus) as refused:
                    connect(f"{url}{path}", additional_headers=headers)
                assert refused.value.response.status_code == expected
        finally:
            said.removeHandler(caplog.handler)
    errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert errors == ["ASGI callable returned without completing handshake."]


# Everything on a guarded router is guarded.


def mounted_on(router: Any, inner: Any) -> Any:
    router.mount("/mounted", inner)
    return router


@pytest.mark.parametrize(
    ("router", "prefix"),
    [
        (filled(GuardedRouter()), ""),
        (on(GuardedRouter(), filled(GuardedRouter()), prefix="/v1"), "/v1"),
        (on(GuardedRouter(), filled(APIRouter())), ""),
        (on(GuardedRouter(), on(APIRouter(), filled(APIRouter()), prefix="/v1")), "/v1"),
        (on(GuardedRouter(), filled(PublicRouter())), ""),
        (on(PublicRouter(), filled(GuardedRouter())), ""),
        (on(PublicRouter(), on(GuardedRouter(), filled(APIRouter())), prefix="/v1"), "/v1"),
        (on(PublicRouter(), on(APIRouter(), filled(GuardedRouter()))), ""),
        (on(PublicRouter(), on(PublicRouter(), filled(GuardedRouter()))), ""),
        (mounted_on(PublicRouter(), filled(GuardedRouter())), "/mounted"),
        (mounted_on(PublicRouter(), on(FastAPI(), filled(GuardedRouter()))), "/mounted"),
        (mounted_on(GuardedRouter(), filled(FastAPI())), "/mounted"),
        (mounted_on(GuardedRouter(), filled(APIRouter())), "/mounted"),
    ],
)
async def test_everything_on_a_guarded_router_is_guarded(
    api: GuardedAPI, keys: Keys, router: APIRouter, prefix: str
) -> None:
    api.include_router(router)

    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    await assert_guarded(api, keys.issue(), prefix)


@pytest.mark.parametrize(
    "router",
    [
        filled(PublicRouter()),
        on(PublicRouter(), filled(APIRouter())),
        on(PublicRouter(), on(APIRouter(), filled(APIRouter()))),
    ],
)
async def test_what_lies_in_a_public_router_is_public(api: GuardedAPI, router: APIRouter) -> None:
    api.include_router(router)
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    for path, type in KINDS:
        assert await is_let_in(api, path=path, type=type)


@pytest.mark.parametrize(
    "app",
    [
        on(FastAPI(), filled(GuardedRouter())),
        on(FastAPI(), on(APIRouter(), filled(GuardedRouter()))),
        Starlette(routes=[Mount("/", filled(GuardedRouter()))]),
    ],
)
async def test_a_guarded_router_without_a_guarded_application_refuses_everybody(
    app: ASGIApp, keys: Keys
) -> None:
    for path, type in KINDS:
        assert not await is_let_in(app, keys.issue(), path=path, type=type)


async def test_the_hosts_of_a_guarded_router_are_guarded(api: GuardedAPI, keys: Keys) -> None:
    router = GuardedRouter()
    router.host("service", application)
    api.include_router(router)
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    assert not await is_let_in(api, path="/whatever")
    assert await is_let_in(api, keys.issue(), path="/whatever")


@pytest.mark.parametrize("outer", [FastAPI, Starlette])
async def test_the_guard_holds_in_another_application(
    api: GuardedAPI, keys: Keys, outer: Callable[[], Any]
) -> None:
    # Its start is not that of `api`, whose routes nobody looks at.
    app = mounted_on(outer(), filled(api))
    assert (await start_up(app))["type"] == "lifespan.startup.complete"
    await assert_guarded(app, keys.issue(), "/mounted")


async def test_the_guard_holds_below_the_path_of_a_proxy(api: GuardedAPI, keys: Keys) -> None:
    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        await api({**scope, "root_path": "/proxy"}, receive, send)

    api.include_router(filled(GuardedRouter()))
    for prefix in ("", "/proxy"):
        await assert_guarded(server, keys.issue(), prefix)


async def test_an_application_inside_another_one_asks_for_the_same_keys(
    api: GuardedAPI, keys: Keys
) -> None:
    filled(api)
    for other, router in ((GuardedAPI(keys), PublicRouter()), (GuardedAPI(keys), GuardedRouter())):
        other.include_router(mounted_on(router, api))
        await assert_guarded(other, keys.issue(), "/mounted")

    other = on(GuardedAPI(Keys()), mounted_on(PublicRouter(), api))
    for secrets in ([], [keys.issue()]):
        with pytest.raises(RuntimeError, match="asks other keys"):
            await ask(other, *secrets, path="/mounted/x")


# Nobody forgets the guard.


def bare_endpoint(api: Any) -> None:
    api.add_api_route("/x", endpoint, name="forgotten")


def bare_websocket(api: Any) -> None:
    api.add_api_websocket_route("/x", websocket_endpoint, name="forgotten")


def bare_mount(api: Any) -> None:
    api.mount("/x", application, name="forgotten")


def bare_starlette_route(api: Any) -> None:
    api.add_route("/x", starlette_endpoint, name="forgotten")


def bare_starlette_websocket(api: Any) -> None:
    api.router.add_websocket_route("/x", websocket_endpoint, name="forgotten")


def bare_host(api: Any) -> None:
    api.host("service", application, name="forgotten")


def plain_router(api: Any) -> None:
    on(api, filled(APIRouter()))


def plain_router_in_a_plain_router(api: Any) -> None:
    on(api, on(APIRouter(), filled(APIRouter())))


def mount_on_the_documentation(api: Any) -> None:
    api.mount("/docs", application, name="forgotten")


def websocket_on_the_documentation(api: Any) -> None:
    api.add_api_websocket_route("/docs", websocket_endpoint, name="forgotten")


def public_router_past_include_router(api: Any) -> None:
    on(api.router, filled(PublicRouter()))


FORGOTTEN = [
    (bare_endpoint, "/x", "http", "/x (forgotten)"),
    (bare_websocket, "/x", "websocket", "/x (forgotten)"),
    (bare_mount, "/x/", "http", "/x (forgotten)"),
    (bare_mount, "/x/", "websocket", "/x (forgotten)"),
    (bare_starlette_route, "/x", "http", "/x (forgotten)"),
    (bare_starlette_websocket, "/x", "websocket", "/x (forgotten)"),
    (bare_host, "/x", "http", "/ (forgotten)"),
    (plain_router, "/x", "http", "/x (x), /x (x), /raw (raw), /raw (raw), /mount (mount)."),
    (plain_router_in_a_plain_router, "/mount/x", "http", "/mount (mount)."),
    (mount_on_the_documentation, "/docs/x", "http", "/docs (forgotten)"),
    (websocket_on_the_documentation, "/docs", "websocket", "/docs (forgotten)"),
    (public_router_past_include_router, "/x", "http", "/x (x)"),
]
forgotten = pytest.mark.parametrize(("forget", "path", "type", "named"), FORGOTTEN)


@forgotten
async def test_a_route_that_says_nothing_stops_the_start_up(
    api: GuardedAPI,
    keys: Keys,
    forget: Callable[[Any], None],
    path: str,
    type: str,
    named: str,
) -> None:
    forget(api)
    answer = await start_up(api)
    assert answer["type"] == "lifespan.startup.failed"
    assert answer["message"].startswith("Neither guarded nor public: ")  # no frames before it
    assert named in answer["message"]
    # Should somebody run it all the same:
    assert not await is_let_in(api, path=path, type=type)
    assert await is_let_in(api, keys.issue(), path=path, type=type)


@forgotten
async def test_a_route_that_a_lifespan_adds_stops_the_start_up(
    keys: Keys, forget: Callable[[Any], None], path: str, type: str, named: str
) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        forget(app)
        yield

    api = GuardedAPI(keys, lifespan=lifespan)
    answer = await start_up(api)
    assert answer["type"] == "lifespan.startup.failed"
    assert named in answer["message"]
    assert not await is_let_in(api, path=path, type=type)


@forgotten
async def test_a_route_that_comes_after_the_start_is_guarded(
    api: GuardedAPI,
    keys: Keys,
    forget: Callable[[Any], None],
    path: str,
    type: str,
    named: str,
) -> None:
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    forget(api)
    assert not await is_let_in(api, path=path, type=type)
    assert await is_let_in(api, keys.issue(), path=path, type=type)


def test_a_server_that_starts_nothing_is_guarded(api: GuardedAPI, keys: Keys) -> None:
    filled(api)
    key = {API_KEY_HEADER: keys.issue().decode()}
    with LiveServer(api, lifespan="off") as live:
        for path in ("/x", "/raw", "/mount/x"):
            assert httpx.get(live.url + path).status_code == MISSING_KEY_STATUS
            assert httpx.get(live.url + path, headers=key).text == WELCOME


def test_without_asyncio_a_start_fails_in_one_line(api: GuardedAPI) -> None:
    """As under `hypercorn -k trio`: no loop of asyncio runs."""
    told: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        told.append(message)

    starting = api({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    with pytest.raises(SettingsError):
        starting.send(None)
    needs = "Run it on asyncio, such as: hypercorn -k asyncio"
    assert told == [{"type": "lifespan.startup.failed", "message": needs}]


async def test_routes_that_are_given_to_the_application_are_guarded(keys: Keys) -> None:
    routes = [
        Route("/x", starlette_endpoint),
        WebSocketRoute("/x", websocket_endpoint),
        Host("elsewhere", application),
    ]
    api = GuardedAPI(keys, routes=iter(routes))
    assert "/x (starlette_endpoint)" in (await start_up(api))["message"]
    for type in ("http", "websocket"):
        assert not await is_let_in(api, path="/x", type=type)
        assert await is_let_in(api, keys.issue(), path="/x", type=type)


async def test_what_other_lifespans_do_is_done(keys: Keys) -> None:
    done: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[dict[str, str]]:
        done.append("own")
        yield {"own": "state"}

    @asynccontextmanager
    async def of_a_router(_: Any) -> AsyncGenerator[dict[str, str]]:
        done.append("router's")
        yield {"router's": "state"}

    async def handler() -> None:
        done.append("handler")

    api = on(GuardedAPI(keys, lifespan=lifespan), GuardedRouter(lifespan=of_a_router))
    async with api.router.lifespan_context(api) as state:
        assert state == {"own": "state", "router's": "state"}
    answer = await start_up(GuardedAPI(keys, on_startup=[handler]))
    assert answer["type"] == "lifespan.startup.complete"
    assert done == ["own", "router's", "handler"]


# What is public says so.


async def test_the_documentation_is_public(api: GuardedAPI, keys: Keys) -> None:
    for path in ("/docs", "/openapi.json", "/redoc", "/docs/oauth2-redirect"):
        assert await status_of(api, path=path) == 200
        assert await status_of(api, keys.issue(), path=path) == 200
        assert await status_of(api, path=path, method="POST") == 405


async def test_pages_that_others_add_are_declared(keys: Keys) -> None:
    api = GuardedAPI(keys, public_paths=["/metrics", "/raw"])
    filled(api)
    api.mount("/metrics", application)
    api.include_router(filled(GuardedRouter()))

    assert "/metrics" not in (message := (await start_up(api))["message"])
    assert "/raw" not in message
    assert "/x (x)" in message
    assert await is_let_in(api, path="/metrics/")
    assert await is_let_in(api, path="/raw")
    assert not await is_let_in(api, path="/x")


async def test_what_is_on_a_guarded_router_cannot_be_declared_public(keys: Keys) -> None:
    api = on(GuardedAPI(keys, public_paths=["/x", "/mount", "/raw"]), filled(GuardedRouter()))
    await assert_guarded(api, keys.issue())


async def test_the_first_route_that_matches_decides(api: GuardedAPI) -> None:
    first, second = PublicRouter(), GuardedRouter()
    for router in (first, second):
        router.add_api_route("/{name}", endpoint)
    second.add_api_route("/x", endpoint, methods=["POST"])
    on(api, first, second)
    assert await is_let_in(api, path="/x")
    assert await status_of(api, path="/x", method="POST") == MISSING_KEY_STATUS
    assert await status_of(api, path="/x", method="DELETE") == 405


class AnyPath(APIRoute):
    """Chooses by more than the path that it was declared with."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches({**scope, "path": "/declared"})


@pytest.mark.parametrize("kind", [PublicRouter, GuardedRouter])
async def test_each_route_is_found_by_any_path_that_it_matches(
    api: GuardedAPI, keys: Keys, kind: Callable[..., APIRouter]
) -> None:
    secret, fixed = keys.issue(), filled(kind())
    api.include_router(fixed, prefix="/here")
    api.include_router(fixed, prefix="/there")
    for prefix in ("/here", "/there"):
        for path, type in KINDS:
            assert await is_let_in(api, secret, path=prefix + path, type=type)
    later = kind(prefix="/later")
    api.include_router(later)
    later.add_api_route("/first", endpoint)
    assert await status_of(api, secret, path="/later/second") == 404
    later.add_api_route("/second", endpoint)
    later.add_api_route("/named/{name}", endpoint)
    for path in ("first", "second", "named/x"):
        assert await is_let_in(api, secret, path=f"/later/{path}")
    assert await status_of(api, secret, path="/later/first", method="DELETE") == 405
    whole = kind(route_class=AnyPath)
    whole.add_api_route("/declared", endpoint)
    api.include_router(whole)
    assert await is_let_in(api, secret, path="/elsewhere")


def a_file(folder: Path, text: str = WELCOME) -> Path:
    folder.mkdir()
    (folder / "file.txt").write_text(text)
    return folder


def on_the_application(api: GuardedAPI, plain: APIRouter) -> None:
    api.include_router(plain)


def on_a_guarded_router(api: GuardedAPI, plain: APIRouter) -> None:
    api.include_router(on(GuardedRouter(), plain))


def on_a_public_router(api: GuardedAPI, plain: APIRouter) -> None:
    api.include_router(on(PublicRouter(), plain))


def on_a_guarded_router_in_a_public_one(api: GuardedAPI, plain: APIRouter) -> None:
    api.include_router(on(PublicRouter(), on(GuardedRouter(), plain)))


@pytest.mark.parametrize(
    "include",
    [
        on_the_application,
        on_a_guarded_router,
        on_a_public_router,
        on_a_guarded_router_in_a_public_one,
    ],
)
async def test_a_frontend_on_a_plain_router_is_for_callers(
    api: GuardedAPI,
    keys: Keys,
    tmp_path: Path,
    include: Callable[[GuardedAPI, APIRouter], None],
) -> None:
    plain = APIRouter()
    plain.frontend("/files", directory=a_file(tmp_path / "files"))
    api.router.frontend("/more-files", directory=a_file(tmp_path / "more"))
    include(api, plain)

    for path in ("/files/file.txt", "/more-files/file.txt"):
        assert await status_of(api, path=path) == 404
        assert await status_of(api, keys.issue(), path=path, body=b"") == 200


async def test_a_frontend_is_refused_with_what_does_instead(
    api: GuardedAPI, tmp_path: Path
) -> None:
    for router in (api, GuardedRouter(), PublicRouter()):
        with pytest.raises(UnguardedRouteError, match="StaticFiles"):
            router.frontend("/", directory=tmp_path)


# What a stranger may try.


@pytest.mark.parametrize("root_path", ["", "/guarded", "/guarded/x"])
async def test_no_spelling_of_a_path_leads_past_the_guard(api: GuardedAPI, root_path: str) -> None:
    router = filled(GuardedRouter())
    router.add_api_route("/{name}/{rest:path}", endpoint)
    api.include_router(router, prefix="/guarded")
    api.include_router(filled(PublicRouter()), prefix="/public")
    spellings = ["x", "x/", "X", "x//", "./x", "/x", "x/.", "%78", "x%2f", "x;a=b", "x?", "x#"]
    spellings += ["x\x00", "x\n", "x\udce9", "\N{FULLWIDTH LATIN SMALL LETTER X}", "raw", ""]
    spellings += ["mount", "mount/", "mount//x", "mount/../x", "../public/x", "../public/mount/"]
    paths = [f"/guarded/{spelling}" for spelling in spellings]
    paths += ["", "*", "//guarded/x", "guarded/x", "/guarded", "http://service/guarded/x"]
    paths += ["/public/../guarded/x", "/public//../guarded/x", "/GUARDED/x", "/guarded\\x"]
    for path in paths:
        for method in ("GET", "HEAD", "OPTIONS", "POST", "TRACE", "get", "", "*"):
            status = await status_of(api, path=path, method=method, root_path=root_path)
            assert status in (MISSING_KEY_STATUS, 404)
        sent = await ask(api, path=path, type="websocket", root_path=root_path)
        assert isinstance(sent, list)
        assert sent[0]["type"] == "websocket.close"


@pytest.mark.parametrize("spell", [tuple, iter, lambda headers: [list(pair) for pair in headers]])
async def test_headers_may_be_what_other_servers_make_of_them(
    api: GuardedAPI, keys: Keys, spell: Callable[[Any], Any]
) -> None:
    """ASGI asks for no more than an iterable of pairs."""

    async def other_server(scope: Scope, receive: Receive, send: Send) -> None:
        await api({**scope, "headers": spell(scope["headers"])}, receive, send)

    api.include_router(filled(GuardedRouter()))
    await assert_guarded(other_server, keys.issue())


async def test_a_path_that_no_route_can_take_is_refused(api: GuardedAPI, keys: Keys) -> None:
    router = GuardedRouter()
    router.add_api_route("/{number:int}", endpoint)
    api.include_router(router)
    path = "/" + 5000 * "9"  # more digits than Python takes
    assert not await is_let_in(api, path=path)
    with pytest.raises(ValueError, match="integer string conversion"):
        await ask(api, keys.issue(), path=path)


async def test_a_connection_of_another_type_gets_nowhere(api: GuardedAPI, keys: Keys) -> None:
    on(filled(api), filled(PublicRouter()))
    for secrets in ([], [keys.issue()]):
        with pytest.raises(AssertionError):  # FastAPI's
            await ask(api, *secrets, path="/x", type="datagram")


# What strangers and callers are told.


async def test_a_stranger_is_told_how_to_ask_where_that_is_the_custom(api: GuardedAPI) -> None:
    api.include_router(filled(GuardedRouter()))
    answer = await answer_of(api, path="/x")
    challenge = {401: "APIKey"}.get(MISSING_KEY_STATUS)
    assert answer.header("www-authenticate") == challenge


async def test_what_is_not_found_is_told_by_the_owner(api: GuardedAPI, keys: Keys) -> None:
    public = PublicRouter()
    public.add_api_route("/", endpoint, name="home")
    api.include_router(public)

    @api.exception_handler(404)
    async def not_found(request: Request, _: Exception) -> Response:
        return PlainTextResponse(f"Try {request.url_for('home')}", 404)

    for secrets in ([], [keys.issue()]):
        answer = await answer_of(api, *secrets, path="/no-such-page")
        assert (answer.status, answer.body) == (404, b"Try http://service/")
        assert await ask(api, *secrets, path="/no-such-page", type="websocket") == [
            {"type": "websocket.close", "code": 1000, "reason": ""}
        ]


async def test_what_is_wrong_with_a_body_is_told_by_fastapi(api: GuardedAPI, keys: Keys) -> None:
    plain = FastAPI()
    router = GuardedRouter()

    async def create_item(item: dict[str, int]) -> None: ...

    for each in (plain, router):
        each.add_api_route("/items", create_item, methods=["POST"])
    api.include_router(router)
    json = [(b"content-type", b"application/json")]
    options: dict[str, Any] = {"path": "/items", "method": "POST", "body": b'{"a": "b"}'}
    answer = await answer_of(api, keys.issue(), headers=json, **options)
    assert answer.status == 422
    assert b'"input":"b"' in answer.body
    assert answer.body == (await answer_of(plain, headers=json, **options)).body


# A release of FastAPI that goes another way stops the start-up.


async def straight_to_the_routes(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
    await _IncludedRouter._handle_selected(self, scope, receive, send)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("fastapi.routing._IncludedRouter.handle", straight_to_the_routes),
        ("app.auth.access.routers.scopes_of", lambda _: ()),
        ("app.auth.access.application.Guard", lambda app, api: app),
        ("app.auth.access.selfcheck.leaves_of", lambda routes, **_: ()),
        ("app.auth.access.selfcheck.unread_at", lambda _: ()),
    ],
)
async def test_a_fastapi_that_goes_past_the_guard_stops_the_start_up(
    api: GuardedAPI, monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    monkeypatch.setattr(name, other)
    answer = await start_up(api)
    assert answer["type"] == "lifespan.startup.failed"
    assert "This release of FastAPI goes past the guard" in answer["message"]
