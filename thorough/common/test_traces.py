"""What a request leaves behind: no key anywhere, and nothing in caches between."""

import functools
import inspect
import logging
import re
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request, Response, WebSocket, routing
from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.auth import GuardedAPI, GuardedRouter, PublicRouter, require
from app.auth.key import new_secret, with_prefix
from app.auth.log import configure_logging
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.callers import Keys, answer_of, ask, start_up
from tests.thorough.servers import LiveServer

# Once it was checked, the secret is gone from the request; in fact, before anything else runs.


class Logging:
    """Middleware of an owner, who wants to see what came: before and after the call."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        self._app, self._seen = app, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self._seen.append(f"{headers} {scope}")
        try:
            # Others copy the scope, or the headers, or both.
            await self._app({**scope, "headers": list(scope["headers"])}, receive, send)
        finally:
            self._seen.append(f"{headers} {scope} {Headers(scope=scope)}")


@pytest.mark.parametrize("path", ["/guarded", "/public", "/failing", "/no-such-page"])
@pytest.mark.parametrize("type", ["http", "websocket"])
@pytest.mark.parametrize("copies", [1, 2])
async def test_nobody_who_sees_a_request_sees_its_key(
    api: GuardedAPI, keys: Keys, type: str, path: str, copies: int
) -> None:
    seen: list[str] = []
    api.add_middleware(CORSMiddleware, allow_origins=["*"])
    api.add_middleware(Logging, seen=seen)
    api.add_middleware(GZipMiddleware)
    api.add_middleware(Logging, seen=seen)
    guarded, public = GuardedRouter(), PublicRouter()

    async def endpoint(request: Request) -> None:
        seen.append(f"{request.headers} {request.scope}")

    async def websocket_endpoint(websocket: WebSocket) -> None:
        seen.append(f"{websocket.headers} {websocket.scope}")
        await websocket.close()

    async def failing(request: Request) -> None:
        raise ValueError(f"{request.headers}")

    for router, its_path in ((guarded, "/guarded"), (public, "/public")):
        router.add_api_route(its_path, endpoint)
        router.add_api_websocket_route(its_path, websocket_endpoint)
    guarded.add_api_route("/failing", failing)
    for each in (guarded, public):
        api.include_router(each)
    other = (b"x-other", b"seen")

    for secret in (keys.issue(), new_secret().encode(), b"any \xe9 text"):
        seen.clear()
        try:
            await ask(api, *[secret] * copies, path=path, type=type, headers=[other])
        except ValueError as error:
            seen += traceback.format_exception(error)
        assert repr(secret)[2:-1] not in f"{seen}"
        assert API_KEY_HEADER.lower() not in f"{seen}".lower()
        assert "seen" in f"{seen}"


def shown(error: BaseException) -> Iterator[str]:
    """All local variables of all frames, as error trackers show them; but those of the tests."""
    for each in (error, error.__context__, error.__cause__):
        place: TracebackType | None = each.__traceback__ if each else None
        while place:
            if not Path(place.tb_frame.f_code.co_filename).is_relative_to(
                Path(__file__).parents[1]
            ):
                for value in place.tb_frame.f_locals.values():
                    yield repr(value)
                    yield repr(getattr(value, "__dict__", None))
                    if isinstance(value, Request):
                        yield repr(value.headers)
            place = place.tb_next


async def test_no_key_in_the_frames_of_an_error(
    api: GuardedAPI, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Any:
        raise ValueError("failed")

    async def endpoint() -> None:
        fails()

    router = GuardedRouter()
    router.add_api_route("/endpoint", endpoint)
    router.add_api_websocket_route("/endpoint", endpoint)
    router.add_api_route("/dependency", lambda: None, dependencies=[Depends(endpoint)])
    router.add_route("/starlette", fails)
    router.mount("/mount", fails)
    router.add_api_route("/{number:int}", lambda: None)
    api.include_router(router)
    secret = keys.issue()

    async def frames_of(path: str, type: str) -> None:
        with pytest.raises(ValueError, match=r"failed|digits") as error:
            await ask(api, secret, path=path, type=type, headers=[(b"x-other", b"seen")])
        text = "\n".join(shown(error.value))
        assert secret.decode() not in text
        assert "seen" in text

    for path in ("/endpoint", "/dependency", "/starlette", "/mount/x", "/" + 5000 * "9"):
        await frames_of(path, "http")
    await frames_of("/endpoint", "websocket")
    for name in ("cached", "lookup"):
        monkeypatch.setattr(keys, "cached", lambda _: None)
        monkeypatch.setattr(keys, name, fails)
        await frames_of("/endpoint", "http")


# Nor is it in the log, wherever a caller puts it.


def test_no_key_in_the_lines_of_the_server(
    keys: Keys,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "websockets")  # those of the client
    caplog.set_level(logging.DEBUG, "app")
    configure_logging("DEBUG")
    api, router = GuardedAPI(keys), GuardedRouter()

    @router.get("/x/{name:path}")
    async def endpoint(name: str) -> None: ...

    @router.websocket("/x/{name:path}")
    async def websocket_endpoint(websocket: WebSocket, name: str) -> None:
        await websocket.accept()
        await websocket.close()

    api.include_router(router)
    secret = keys.issue().decode()
    prefixed = with_prefix(secret, "acme")
    with LiveServer(api) as live:
        for spelling in (secret, secret.upper(), prefixed, "a" * 60_000):
            for path in (f"/x/{spelling}/y?key={spelling}", f"/{spelling}"):
                for header in (
                    f"{API_KEY_HEADER}: {secret}\r\nX-Request-ID: {spelling}\r\n",
                    f"X-Request-ID: {spelling}\r\n",
                    "",
                ):
                    request = f"GET {path} HTTP/1.1\r\nHost: service\r\n{header}\r\n"
                    assert live.send_raw(request.encode())
        url = f"ws://127.0.0.1:{live.address[1]}/x/{secret}?key={prefixed}"
        with connect(url, additional_headers={API_KEY_HEADER: secret}):
            pass
        with pytest.raises(InvalidStatus):
            connect(url)

    captured = capfd.readouterr()
    lines = [*caplog.text.splitlines(), *captured.out.splitlines(), *captured.err.splitlines()]
    everything = "\n".join(lines)
    for spelling in (secret, secret.upper(), prefixed):
        assert spelling not in everything
    assert max(map(len, lines)) < 1000
    # The lines were there to be searched.
    for said in (
        "127.0.0.1 GET /x/{name} 200 in ",
        "127.0.0.1 WS /x/{name} 101 in ",
        "ms, key key-0",
        "Refused http '/x/[key]/y': no key.",
        "127.0.0.1 GET '/[key]' 404 in ",
        '"WebSocket /x/[key]" [accepted]',
        f"< {API_KEY_HEADER}: [key]",
    ):
        assert said.lower() in everything.lower()


async def test_a_path_cannot_make_lines_of_its_own(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "app")
    api, router = GuardedAPI(keys), GuardedRouter()
    router.add_api_route("/x/{name}", lambda: None)
    api.include_router(router)
    for prefix in ("/x/x", "/y"):
        await ask(api, path=f"{prefix}\nINFO: Let in\x1b[2J\u2028")
    assert [re.split(r": | in \d", message)[0] for message in caplog.messages] == [
        r"Refused http '/x/x\\nINFO",
        "127.0.0.1 GET /x/{name} " + f"{MISSING_KEY_STATUS}",
        r"127.0.0.1 GET '/y\\nINFO",
    ]
    assert not any(set(message) & {"\n", "\x1b", "\u2028"} for message in caplog.messages)


# The probe at the start is nobody's request.


class Spans(trace.TracerProvider, trace.Tracer):
    """Telemetry that keeps what would be sent."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self

    def start_span(self, name: str, *_: Any, **__: Any) -> trace.Span:
        self.started.append(name)
        return trace.INVALID_SPAN

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def test_the_probe_at_the_start_leaves_no_trace(
    api: GuardedAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "app")
    spans = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: spans)
    init = FastAPI.__init__

    class Tracing:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                spans.started.append("middleware")
            await self._app(scope, receive, send)

    def instrument(app: Any, *arguments: Any, **options: Any) -> None:
        """As ddtrace and OpenTelemetry's own instrumentation do it, for all applications."""
        options["middleware"] = [Middleware(Tracing), *options["middleware"]]
        init(app, *arguments, **options)
        build = app.build_middleware_stack

        def build_instrumented() -> ASGIApp:
            spans.started.append("add-on")
            stack: ASGIApp = build()
            return stack

        app.build_middleware_stack = build_instrumented

    monkeypatch.setattr(FastAPI, "__init__", instrument)
    build_stack, serialize = FastAPI.build_middleware_stack, routing.serialize_response

    @functools.wraps(build_stack)
    def build_traced(app: FastAPI) -> ASGIApp:
        return Tracing(build_stack(app))

    async def serialize_traced(**options: Any) -> Any:
        spans.started.append("serialization")
        return await serialize(**options)

    monkeypatch.setattr(FastAPI, "build_middleware_stack", build_traced)
    monkeypatch.setattr(routing, "serialize_response", serialize_traced)

    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    assert (spans.started, caplog.messages) == ([], [])

    await ask(GuardedAPI(Keys()), path="/docs")
    assert sorted(spans.started) == ["GET", "add-on", *["middleware"] * 2]


# Whatever plain FastAPI takes works.


class TellingApart:
    """Middleware that takes a plain function for the ASGI 2 of 2018, as error trackers do."""

    def __init__(self, app: ASGIApp) -> None:
        assert inspect.iscoroutinefunction(getattr(app, "__call__", None)), app  # noqa: B004
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def test_each_callable_of_the_stack_is_a_coroutine_function(
    api: GuardedAPI, keys: Keys
) -> None:
    api.add_middleware(TellingApart)
    await answer_of(TellingApart(api), keys.issue(), path="/docs")
    layer: Any = api.middleware_stack
    assert type(layer) is ServerErrorMiddleware  # which instrumentation looks for
    while layer is not None:
        TellingApart(layer)
        layer = vars(layer).get("app") or vars(layer).get("_app")


# No cache between serves an answer to somebody else.


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("mounted")(scope, receive, send)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/json", 200),
        ("/text", 200),
        ("/stream", 200),
        ("/starlette", 200),
        ("/mount/x", 200),
        ("/files/file.txt", 200),
        ("/fastapi/x", 200),
        ("/fastapi/no-such-page", 404),
        ("/no-such-page", 404),
        ("/invalid/x", 422),
        ("/teapot", 418),
        ("/scoped", 403),
    ],
)
async def test_no_cache_keeps_the_answer_to_a_caller(
    api: GuardedAPI, keys: Keys, tmp_path: Path, path: str, status: int
) -> None:
    (tmp_path / "file.txt").write_text("file")
    router, inner = GuardedRouter(), FastAPI()

    async def text() -> Response:
        return PlainTextResponse("text", headers={"X-Other": "kept"})

    async def parts() -> AsyncIterator[str]:
        yield "stream"

    async def stream() -> Response:
        return StreamingResponse(parts())

    async def number(number: int) -> None: ...

    router.add_api_route("/json", lambda: {})
    router.add_api_route("/text", text)
    router.add_api_route("/stream", stream)
    router.add_api_route("/invalid/{number}", number)
    router.add_api_route("/teapot", lambda: None, status_code=418)
    router.add_api_route("/scoped", lambda: None, dependencies=[require("scope")])
    router.add_route("/starlette", lambda _: PlainTextResponse("starlette"))
    router.mount("/mount", application)
    router.mount("/files", StaticFiles(directory=tmp_path))
    inner.add_api_route("/x", lambda: None)
    router.mount("/fastapi", inner)
    api.include_router(router)

    answer = await answer_of(api, keys.issue(), path=path, body=b"")

    assert (answer.status, answer.header("cache-control")) == (status, "no-store")
    assert answer.header("x-other") == ("kept" if path == "/text" else None)
    refused = await answer_of(api, path="/json")
    assert refused.header("cache-control") == "no-store"


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("private, max-age=60", "private, max-age=60"),
        ("public, max-age=60", "public, max-age=60"),
        ("S-MaxAge=60", "S-MaxAge=60"),
        # As people and packages write it who think of the caller's own cache.
        ("max-age=60", "private, max-age=60"),
        ("no-cache", "private, no-cache"),
    ],
)
async def test_an_endpoint_may_say_what_caches_do(
    api: GuardedAPI, keys: Keys, said: str, sent: str
) -> None:
    guarded, public = GuardedRouter(), PublicRouter()

    async def cached(response: Response) -> None:
        response.headers["Cache-Control"] = said
        response.headers["X-Other"] = "kept"

    guarded.add_api_route("/guarded", cached)
    public.add_api_route("/public", lambda: None)
    for router in (guarded, public):
        api.include_router(router)

    answer = await answer_of(api, keys.issue(), path="/guarded")
    assert (answer.header("cache-control"), answer.header("x-other")) == (sent, "kept")
    assert (await answer_of(api, path="/public")).header("cache-control") is None
