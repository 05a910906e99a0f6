"""Middleware for every request: its id, default headers, and its line in the log."""

import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from secrets import token_hex
from typing import Final

from fastapi.routing import iter_route_contexts
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.access.rule import PRESENTED, route_of
from app.auth.key import canonical, digest, masked
from app.auth.log import RECORD, Observer, RequestRecord, request_id

logger = logging.getLogger(__name__)

_BELIEVED: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Defaults: a header that the answer has already stays.
_HEADERS: Final = {
    b"content-security-policy": b"frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class RequestLog:
    """The outermost ASGI middleware, so that it also sees the answers to errors.

    `observers` may still grow after this call.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Observer] = ()) -> None:
        self._app, self._observers = app, observers
        self._paths: dict[int, str] | None = None  # declared paths, by the id() of the route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or RECORD in scope:  # an outer RequestLog does the work
            await self._app(scope, receive, send)
            return
        client, _ = scope.get("client") or ("", 0)
        method = "WS" if scope["type"] == "websocket" else scope["method"]
        record = scope[RECORD] = RequestRecord(client, method)
        began_at, api = time.perf_counter(), scope["app"]
        id = _id_of(scope)
        id_before = request_id.set(id)
        span = trace.get_current_span()  # records nothing unless OpenTelemetry is set up
        if span.is_recording() and scope["type"] == "http":
            _mask(span, scope)

        def begin(status: int) -> None:
            record.status = status
            if self._observers:
                record.seconds = time.perf_counter() - began_at
                self._find_route(record, scope, api)
            for observe in self._observers:
                observe(record)
            if record.key:
                span.set_attribute("api_key.id", record.key.id)

        def send_with_headers(message: Message) -> Awaitable[None]:
            type = message["type"]
            if type.endswith("response.start"):
                begin(message["status"])
                missing = {**_HEADERS, b"x-request-id": id.encode()}
                for name, _ in (headers := message.get("headers", ())):
                    missing.pop(name, None)
                message["headers"] = [*headers, *missing.items()]
            elif type == "websocket.accept":
                begin(101)
            elif type == "websocket.close" and not record.status:
                begin(403)  # the status that the server sends
            return send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            if not record.status:  # there was no answer
                begin(0)
            if logger.isEnabledFor(logging.INFO):
                self._find_route(record, scope, api)
                _log(scope, record, 1000 * (time.perf_counter() - began_at))
            request_id.reset(id_before)

    def _find_route(self, record: RequestRecord, scope: Scope, api: Starlette) -> None:
        if record.route is not None:
            return
        if self._paths is None:
            contexts = list(iter_route_contexts(api.routes))
            times = Counter(id(context.original_route) for context in contexts)
            self._paths = {
                id(context.original_route): context.path_format or ""
                for context in contexts
                if times[id(context.original_route)] == 1
            }
        record.route = self._paths.get(id(scope.get("route"))) or route_of(scope)


def _id_of(scope: Scope) -> str:
    """Return the caller's X-Request-ID, or a new id if that is malformed or a key."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            id: str = value.decode("latin-1")
            if _BELIEVED.fullmatch(id) and (masked(id) == id or not _is_key(value, scope)):
                return id
    return token_hex(8)


def _is_key(value: bytes, scope: Scope) -> bool:
    hashed = digest(canonical(value).lower())
    offered, keys = scope.get(PRESENTED), scope["app"].keys
    return (isinstance(offered, tuple) and offered[0] == hashed) or bool(keys.may_exist(hashed))


def _mask(span: trace.Span, scope: Scope) -> None:
    """Mask keys in the path and the query, which FastAPI has recorded unchanged."""
    span.set_attribute("url.path", masked(scope["path"]))
    if query := scope["query_string"].decode("latin-1"):
        span.set_attribute("url.query", masked(query))


def _log(scope: Scope, record: RequestRecord, milliseconds: float) -> None:
    key_id = record.key.id if record.key else ""
    logger.info(
        "%s %s %s %d in %.1f ms%s",
        record.client,
        record.method,
        record.route or repr(masked(scope["path"])),
        record.status,
        milliseconds,
        f", key {key_id}" if key_id else "",
        extra={
            "client": record.client,
            "method": record.method,
            "route": record.route,
            "status": record.status,
            "duration_ms": round(milliseconds, 1),
            "key_id": key_id,
        },
    )
