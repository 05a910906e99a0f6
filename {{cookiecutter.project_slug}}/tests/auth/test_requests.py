"""What a request leaves behind: a line in the log, headers; no key, and nothing in caches."""

import logging
import traceback
from pathlib import Path

import pytest
from fastapi import Request, Response, WebSocket
from starlette.datastructures import Headers
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth import GuardedAPI, GuardedRouter, PublicRouter
from app.auth.key import new_secret, with_prefix
from app.constants import API_KEY_HEADER
from tests.callers import Keys, answer_of, application, ask, on

# No key, wherever somebody looks.


class Watching:
    """Middleware that looks at the request before and after the endpoint does."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        self._app, self._seen = app, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._seen.append(f"{headers} {scope}")
        try:
            await self._app({**scope, "headers": list(scope["headers"])}, receive, send)
        finally:
            self._seen.append(f"{headers} {scope}")


async def test_nobody_who_sees_a_request_sees_its_key(api: GuardedAPI, keys: Keys) -> None:
    seen: list[str] = []
    api.add_middleware(Watching, seen=seen)

    async def endpoint(request: Request) -> None:
        seen.append(f"{request.headers} {request.scope}")

    async def websocket_endpoint(websocket: WebSocket) -> None:
        seen.append(f"{websocket.headers} {websocket.scope}")
        await websocket.close()

    async def failing(request: Request) -> None:
        raise ValueError(f"{request.headers}")

    for router in (GuardedRouter(prefix="/guarded"), PublicRouter(prefix="/public")):
        router.add_api_route("/x", endpoint)
        router.add_api_route("/failing", failing)
        router.add_api_websocket_route("/x", websocket_endpoint)
        on(api, router)
    paths = [("/guarded/x", "websocket"), ("/public/x", "websocket"), ("/no-such-page", "http")]
    paths += [
        (f"/{on}/{what}", "http") for on in ("guarded", "public") for what in ("x", "failing")
    ]
    for path, type in paths:
        for secrets in ([keys.issue()], [new_secret().encode()] * 2, [b"any text"]):
            seen.clear()
            try:
                await ask(api, *secrets, path=path, type=type, headers=[(b"other", b"seen")])
            except ValueError as error:
                seen += traceback.format_exception(error)
            assert secrets[0].decode() not in f"{seen}", path
            assert API_KEY_HEADER.lower() not in f"{seen}".lower(), path
            assert "seen" in f"{seen}", path


async def test_no_key_in_the_log_and_no_lines_that_a_caller_makes(
    api: GuardedAPI, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "app")
    router, secret = GuardedRouter(), keys.issue().decode()
    router.add_api_route("/x/{name}", lambda: None)
    on(api, router)
    prefixed = with_prefix(secret, "acme")
    for spelled in (secret, secret.upper(), prefixed, "a\nINFO: \x1b[2J\u2028", "a" * 60_000):
        for path in (f"/x/{spelled}", f"/{spelled}"):
            for secrets in ([], [secret.encode()]):
                await ask(api, *secrets, path=path, query_string=spelled.encode(), body=b"")
    for said in ("Refused http '/x/[key]': no key.", "GET '/[key]' 404 in ", ", key key-0"):
        assert said in caplog.text
    for message in caplog.messages:
        assert secret not in message.lower()
        assert prefixed not in message
        assert len(message) < 500
        assert not set(message) & {"\n", "\x1b", "\u2028"}


async def test_no_cache_keeps_the_answer_to_a_caller_unless_the_endpoint_says_so(
    api: GuardedAPI, keys: Keys, tmp_path: Path
) -> None:
    async def cached(response: Response, says: str) -> None:
        response.headers["Cache-Control"] = says

    (tmp_path / "file.txt").write_text("file")
    router, public = GuardedRouter(), PublicRouter()
    router.add_api_route("/json", lambda: {})
    router.add_api_route("/cached", cached)
    router.mount("/mount", application)
    router.mount("/files", StaticFiles(directory=tmp_path))
    public.add_api_route("/public", lambda: None)
    on(api, router, public)
    for path in ("/json", "/mount/x", "/files/file.txt", "/no-such-page", "/cached"):
        answer = await answer_of(api, keys.issue(), path=path, body=b"")
        assert answer.header("cache-control") == "no-store", path
    assert (await answer_of(api, path="/json")).header("cache-control") == "no-store"
    assert (await answer_of(api, path="/public")).header("cache-control") is None
    # `public` is to be said: people write `max-age` who think of the caller's own cache.
    for says, prefix in (
        ("private", ""),
        ("public", ""),
        ("S-MaxAge=6", ""),
        ("max-age=6", "private, "),
    ):
        query = f"says={says}".encode()
        answer = await answer_of(api, keys.issue(), path="/cached", query_string=query)
        assert answer.header("cache-control") == prefix + says
