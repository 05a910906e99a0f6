"""Call an application through ASGI, message by message."""

import asyncio
import contextlib
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from app.auth import GuardedAPI, GuardedRouter
from app.auth.access.rule import UNKNOWN, Refusal
from app.auth.errors import UnguardedRouteError
from app.auth.key import Key, digest, new_secret
from app.constants import API_KEY_HEADER
from app.main import create_app
from app.settings import Settings

HEADER = API_KEY_HEADER.lower().encode()
PROBE = "/probe-of-the-tests"


def with_probe(service: GuardedAPI) -> GuardedAPI:
    """With a guarded endpoint that is there whatever becomes of yours."""
    router = GuardedRouter()

    @router.get(PROBE)
    async def probe() -> str:
        return "You have access!"

    service.include_router(router)
    return service


class Keys:
    """A store of keys in memory, for tests of what is built upon one."""

    has_scopes = True

    def __init__(self) -> None:
        self._keys: dict[bytes, Key] = {}
        self._in_use: set[bytes] = set()
        self.asked = self.found = 0  # how often

    def issue(self, *scopes: str) -> bytes:
        """The secret of a new key."""
        secret = new_secret().encode()
        self._keys[digest(secret)] = Key(f"key-{len(self._keys)}", "key", frozenset(scopes))
        return secret

    def recall(self, digest: bytes) -> Key | None:
        self.asked += 1
        return self._keys[digest] if digest in self._in_use else None

    def knows(self, digest: bytes) -> bool:
        return digest in self._keys

    async def find(self, digest: bytes) -> Key | Refusal:
        self.found += 1
        if digest not in self._keys:
            return UNKNOWN
        self._in_use.add(digest)
        return self._keys[digest]

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
    read: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        if type == "websocket":
            return {"type": "websocket.connect"}
        if body is None:
            raise AssertionError("the request's body was read")
        if read:
            await asyncio.Future()  # the caller stays
        read.append(body)
        return {"type": "http.request", "body": body}

    scope: Scope = {
        "type": type,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(errors="replace"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"service"), *((HEADER, secret) for secret in secrets), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "subprotocols": [],
        "state": {},
        **more,
    }
    await app(scope, receive, send)
    if type == "websocket":
        return sent
    start, *bodies = sent
    return Answer(
        start["status"], tuple(start["headers"]), b"".join(part.get("body", b"") for part in bodies)
    )


async def answer_of(app: ASGIApp, *secrets: bytes, **options: Any) -> Answer:
    answer = await ask(app, *secrets, **options)
    assert isinstance(answer, Answer)
    return answer


async def status_of(app: ASGIApp, *secrets: bytes, **options: Any) -> int:
    return (await answer_of(app, *secrets, **options)).status


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
