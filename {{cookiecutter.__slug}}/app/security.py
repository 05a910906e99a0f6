"""Who gets in: the rule of access, and the routers that apply it.

Put an endpoint on a `GuardedRouter` and only callers with a valid key reach it; put it on a
`PublicRouter` and anyone does. A route on neither stops the service from starting.
"""

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Security
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.keys import Key, KeyStore, digest, id_of, is_canonical

logger = logging.getLogger(__name__)

_HEADER: Final = API_KEY_HEADER.lower().encode()
_CALLER: Final = "app.caller"  # where the ASGI scope holds the caller's key
_PROBLEM_JSON: Final = "application/problem+json"
_CHALLENGES: Final = {401: {"WWW-Authenticate": "APIKey"}}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller does not get in: for the log, never for the caller."""

    reason: str


async def authenticate(headers: Iterable[tuple[bytes, bytes]], keys: KeyStore) -> Key | Refusal:
    """The rule of access: exactly one key header, and its digest belongs to a key in force.

    Only the canonical spelling of a key has that digest. Every secret that arrives, known or not,
    costs one digest and one lookup.
    """
    secret = None
    for name, value in headers:
        if name == _HEADER:
            if secret is not None:
                return Refusal("more than one key")
            secret = value
    if secret is None:
        return Refusal("no key")
    hashed = digest(secret)
    if key := await keys.find(hashed):
        return key
    if not is_canonical(secret.decode("latin-1")):
        return Refusal("not a key")
    return Refusal(f"unknown key {id_of(hashed)}")


# One answer for every reason, so that a stranger learns nothing from it.
_refuse = JSONResponse(
    {"detail": "Invalid or missing API Key"},
    status_code=MISSING_KEY_STATUS,
    headers=_CHALLENGES.get(MISSING_KEY_STATUS),
    media_type=_PROBLEM_JSON,
)
_hang_up = WebSocketClose(code=1008)  # 1008: policy violation


def _answer_to_a_stranger(scope: Scope) -> ASGIApp:
    """The refusal; for a WebSocket on a server that cannot send a response, a closed door."""
    extensions = scope.get("extensions") or {}
    can_respond = scope["type"] == "http" or "websocket.http.response" in extensions
    return _refuse if can_respond else _hang_up


class GuardedRoute(APIRoute):
    """Marks the operations that the OpenAPI document shows as guarded."""


class GuardedRouter(APIRouter):
    """Everything on it (HTTP, WebSocket, mounted apps, nested routers) needs a valid key."""

    def __init__(self, **options: Any) -> None:
        refusal = {
            "description": "Invalid or missing API key",
            "content": {
                _PROBLEM_JSON: {
                    "schema": {
                        "type": "object",
                        "properties": {"detail": {"type": "string"}},
                        "required": ["detail"],
                    }
                }
            },
        }
        responses = {MISSING_KEY_STATUS: refusal, **options.pop("responses", {})}
        super().__init__(responses=responses, **{"route_class": GuardedRoute, **options})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _CALLER not in scope:  # a guarded router inside another one has nothing left to ask
            caller = await authenticate(scope["headers"], scope["app"].keys)
            if isinstance(caller, Refusal):
                logger.info("Refused %s %r: %s.", scope["type"], scope["path"], caller.reason)
                await _answer_to_a_stranger(scope)(scope, receive, send)
                return
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("Let in %s %r: key %s.", scope["type"], scope["path"], caller.id)
            scope[_CALLER] = caller
        await super().handle(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.handle(scope, receive, send)  # mounted: the other way into a router


class PublicRouter(APIRouter):
    """Everything on it is open to strangers."""


class _CallerOfRequest(SecurityBase):
    def __init__(self) -> None:
        self.scheme_name = "APIKeyHeader"
        self.model = APIKey(name=API_KEY_HEADER, **{"in": APIKeyIn.header})

    async def __call__(self, connection: HTTPConnection) -> Key:
        caller = connection.scope.get(_CALLER)
        if not isinstance(caller, Key):
            raise RuntimeError(f"{connection.scope['path']} asks for its caller: guard its router")
        return caller


_caller = _CallerOfRequest()

Caller = Annotated[Key, Security(_caller)]
"""The calling key, as an argument of a guarded endpoint: `async def endpoint(caller: Caller)`."""


class GuardedAPI(FastAPI):
    """A FastAPI application whose guarded routers ask `keys`."""

    def __init__(self, keys: KeyStore, **options: Any) -> None:
        super().__init__(**options)
        self.keys: Final = keys

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, with the key on every guarded operation."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes[_caller.scheme_name] = jsonable_encoder(_caller.model, exclude_none=True)
            for route in iter_route_contexts(self.routes):
                if isinstance(route.original_route, GuardedRoute) and route.include_in_schema:
                    for method in route.methods or ():
                        operation = document["paths"][route.path_format][method.lower()]
                        operation.setdefault("security", [{_caller.scheme_name: []}])
        return super().openapi()


class UnguardedRouteError(RuntimeError):
    """A route is neither guarded nor declared public."""


async def check_guard() -> None:
    """Raises UnguardedRouteError if this release of FastAPI goes past `GuardedRouter.handle`.

    It is how FastAPI enters a router, but no part of what it documents.
    """
    entered = []

    class Probe(GuardedRouter):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            entered.append(scope["type"])

    async def endpoint() -> None:
        """Never called."""

    async def nothing(*_: object) -> Any:
        """Neither received nor sent."""

    router = Probe()
    router.add_api_route("/", endpoint)
    router.add_api_websocket_route("/", endpoint)
    app = FastAPI()
    app.include_router(router)
    for type in ("http", "websocket"):
        scope: Scope = {"type": type, "method": "GET", "path": "/", "headers": []}
        with contextlib.suppress(Exception):
            await app(scope, nothing, nothing)
    if entered != ["http", "websocket"]:
        raise UnguardedRouteError("This release of FastAPI goes past the guard: install another.")


def check_routes(app: FastAPI, public_paths: Collection[str]) -> None:
    """Raises UnguardedRouteError if any route is on neither kind of router.

    `public_paths` are the ones that FastAPI itself adds to the application.
    """
    unguarded = [
        f"{getattr(route, 'path', '')} ({getattr(route, 'name', type(route).__name__)})"
        for route in _unguarded_routes(app.router)
        if getattr(route, "path", None) not in public_paths
    ]
    if unguarded:
        raise UnguardedRouteError(
            f"Neither guarded nor public: {', '.join(unguarded)}."
            " Put each on a GuardedRouter or a PublicRouter."
        )


def _unguarded_routes(router: APIRouter) -> Iterator[BaseRoute]:
    for route in router.routes:
        if isinstance(included := getattr(route, "original_router", None), APIRouter):
            yield from _unguarded_routes(included)
        elif not isinstance(router, GuardedRouter | PublicRouter):
            yield route
    if not isinstance(router, PublicRouter):
        # Files of `router.frontend()`: FastAPI serves them without entering the router.
        yield from router._low_priority_routes
