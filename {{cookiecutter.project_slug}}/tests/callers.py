"""Call an application through ASGI, message by message, and the command line in this process."""

import asyncio
import contextlib
import json
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from time import time
from typing import Any, Final

import httpx
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from typer.testing import CliRunner, Result

from app.auth import GuardedAPI, GuardedRouter
from app.auth.access.rule import UNKNOWN, Refusal
from app.auth.errors import UnguardedRouteError
from app.auth.key import Key, digest, new_secret
from app.cli import main
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.main import create_app
from app.settings import Settings

HEADER: Final = API_KEY_HEADER.lower().encode()
PROBE: Final = "/probe-of-the-tests"
STRANGER: Final = "Invalid or missing API Key"  # what a caller without a valid key is told

# A path and a type for each kind of route that `with_every_kind` adds.
PATHS: Final = ("/x", "/raw", "/mount/x")
KINDS: Final = [(path, type) for path in PATHS for type in ("http", "websocket")]


async def endpoint() -> str:
    return "You have access!"


async def websocket_endpoint(websocket: WebSocket) -> None:
    await websocket.accept()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Knows nothing of keys and answers every request."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse("You have access!")(scope, receive, send)


def with_endpoints(router: Any) -> Any:
    router.add_api_route("/x", endpoint, name="x")
    router.add_api_websocket_route("/x", websocket_endpoint, name="x")
    return router


def with_every_kind(router: Any) -> Any:
    """Adds a route for each of the KINDS, also those that FastAPI gives no dependencies."""
    router.add_route("/raw", lambda _: PlainTextResponse("You have access!"), name="raw")
    getattr(router, "router", router).add_websocket_route("/raw", websocket_endpoint, name="raw")
    router.mount("/mount", application, name="mount")
    return with_endpoints(router)


def on(router: Any, *included: Any, **options: Any) -> Any:
    """The router, with these included."""
    for each in included:
        router.include_router(each, **options)
    return router


def with_probe(service: GuardedAPI) -> GuardedAPI:
    """With a guarded endpoint that is there whatever becomes of yours."""
    router = GuardedRouter()
    router.add_api_route(PROBE, endpoint)
    service.include_router(router)
    return service


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = float(int(time()) + 1)  # seconds since the epoch, as the machine's clock says
        self._passed = 0.0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._passed += seconds

    def monotonic(self) -> float:
        self._passed += 1e-6  # no two looks at a clock are at the same time
        return self._passed


class Keys:
    """A store of keys in memory, for tests of what is built upon one."""

    has_scopes = True

    def __init__(self) -> None:
        self._keys: dict[bytes, Key] = {}
        self._in_use: set[bytes] = set()
        self.found = 0  # how often one was looked up

    def issue(self, *scopes: str) -> bytes:
        """The secret of a new key."""
        secret = new_secret().encode()
        self._keys[digest(secret)] = Key(f"key-{len(self._keys)}", "key", frozenset(scopes))
        return secret

    def cached(self, digest: bytes) -> Key | None:
        return self._keys[digest] if digest in self._in_use else None

    def may_exist(self, digest: bytes) -> bool:
        return digest in self._keys

    async def lookup(self, digest: bytes) -> Key | Refusal:
        self.found += 1
        self._in_use |= {digest} & self._keys.keys()
        return self._keys.get(digest, UNKNOWN)

    async def is_reachable(self) -> bool:
        return True

    def follow(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Answer:
    """What came back, `date` and `server` headers aside."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value.decode() for each, value in self.headers if each == name.encode()]
        return ", ".join(values) if values else None


async def ask(
    app: ASGIApp,
    *secrets: bytes,
    path: str = PROBE,
    type: str = "http",
    method: str = "GET",
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes | None = None,
    **more: Any,
) -> Answer | list[Message]:
    """One request with a key header for each secret; a WebSocket gives the messages sent.

    Fails the test if the body is read, unless there is one.
    """
    sent: list[Message] = []
    parts = [body]

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        if type == "websocket":
            return {"type": "websocket.connect"}
        if body is None:
            raise AssertionError("the request's body was read")
        if not parts:
            await asyncio.Future()  # the caller stays
        return {"type": "http.request", "body": parts.pop()}

    headers = [(b"host", b"service"), *((HEADER, secret) for secret in secrets), *headers]
    scope: dict[str, Any] = {"type": type, "method": method, "path": path, "query_string": b""}
    scope |= {"headers": headers, "raw_path": path.encode(errors="replace"), "root_path": ""}
    scope |= {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "state": {}}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "subprotocols": []}
    await app({**scope, **more}, receive, send)
    if type == "websocket":
        return sent
    start, *bodies = sent
    whole = b"".join(part.get("body", b"") for part in bodies)
    return Answer(start["status"], tuple(start["headers"]), whole)


async def answer_of(app: ASGIApp, *secrets: bytes, **options: Any) -> Answer:
    answer = await ask(app, *secrets, **options)
    assert isinstance(answer, Answer)
    return answer


async def status_of(app: ASGIApp, *secrets: bytes, **options: Any) -> int:
    return (await answer_of(app, *secrets, **options)).status


async def refusal_of(app: ASGIApp, *secrets: bytes, path: str, type: str = "http") -> str | None:
    """What a caller is told who does not get in; None for who does."""
    can_send: dict[str, Any] = {"websocket.http.response": {}}
    answer = await ask(app, *secrets, path=path, type=type, extensions=can_send)
    if isinstance(answer, list):
        if answer[0]["type"] == "websocket.accept":
            return None
        start, body = answer
        answer = Answer(start["status"], tuple(start["headers"]), body["body"])
    if answer.status == 200:
        return None
    detail: str = json.loads(answer.body)["detail"]
    assert answer.status == (MISSING_KEY_STATUS if detail == STRANGER else 403)
    assert answer.header("content-type") == "application/problem+json"
    return detail


async def refusals_of(app: ASGIApp, *secrets: bytes, prefix: str = "") -> set[str | None]:
    """The same for all KINDS."""
    return {await refusal_of(app, *secrets, path=prefix + path, type=type) for path, type in KINDS}


async def start_up(app: ASGIApp) -> Message:
    """What the application tells the server that starts it; it is stopped again."""
    answers: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.shutdown" if answers else "lifespan.startup"}

    async def send(message: Message) -> None:
        answers.append(message)

    # A failure is told to the server first, and then raised.
    with contextlib.suppress(UnguardedRouteError):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return answers[0]


def make_service(settings: Settings) -> GuardedAPI:
    """Your application, with the probe."""
    return with_probe(create_app(settings))


def make_client(app: ASGIApp, key: str = "") -> httpx.AsyncClient:
    """It opens no connection, so nobody has to close it."""
    headers = {API_KEY_HEADER: key} if key else {}
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers)


def run(*arguments: str) -> Result:
    """A command. Whatever it raises fails the test: nobody wants a traceback."""
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def keys(*arguments: str) -> Any:
    """What a `keys` command says in JSON."""
    result = run("keys", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
