"""Where they get in: the routers that apply the rule of access, and the check that none is left out.

Put an endpoint on a `GuardedRouter` and only callers with a valid key reach it; put it on a
`PublicRouter` and anyone does. A route on neither stops the service from starting.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from app.access import CALLER, RESPONSES, GuardedRoute, Refusal, authenticate, get_caller
from app.keys import KeyStore

logger = logging.getLogger(__name__)


class GuardedRouter(APIRouter):
    """Everything on it (HTTP, WebSocket, mounted apps, nested routers) needs a valid key."""

    def __init__(self, **options: Any) -> None:
        responses = {**RESPONSES, **options.pop("responses", {})}
        super().__init__(responses=responses, **{"route_class": GuardedRoute, **options})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if CALLER not in scope:  # a guarded router inside another one has nothing left to ask
            app: GuardedAPI = scope["app"]
            caller = await authenticate(scope["headers"], app.keys)
            if isinstance(caller, Refusal):
                await caller(scope, receive, send)
                return
            if app.logs_callers:
                logger.debug("Let in %s %r: key %s.", scope["type"], scope["path"], caller.id)
            scope[CALLER] = caller
        await APIRouter.handle(self, scope, receive, send)  # faster than super()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.handle(scope, receive, send)  # mounted: the other way into a router


class PublicRouter(APIRouter):
    """Everything on it is open to strangers."""


class GuardedAPI(FastAPI):
    """A FastAPI application whose guarded routers ask `keys`."""

    def __init__(self, keys: KeyStore, **options: Any) -> None:
        super().__init__(**options)
        self.keys: Final = keys
        # Asked once, so that no request has to.
        self.logs_callers = logger.isEnabledFor(logging.DEBUG)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, with the key on every guarded operation."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes[get_caller.scheme_name] = jsonable_encoder(get_caller.model, exclude_none=True)
            for route in iter_route_contexts(self.routes):
                if isinstance(route.original_route, GuardedRoute) and route.include_in_schema:
                    for method in route.methods or ():
                        operation = document["paths"][route.path_format][method.lower()]
                        operation.setdefault("security", [{get_caller.scheme_name: []}])
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
