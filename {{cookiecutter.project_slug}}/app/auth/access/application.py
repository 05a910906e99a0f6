"""The application. It checks the key of every caller before any other code runs.

A route that is not declared public needs a key, whenever and however it is added. A route on
neither of the two routers is guarded too, but stops the start-up, because its intent is unclear.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match
from starlette.types import Message, Receive, Scope, Send

from app.auth.access.middleware import Guard
from app.auth.access.openapi import complete
from app.auth.access.policy import Policy
from app.auth.access.request_log import Exchange, RequestLog
from app.auth.access.routers import (
    Dependencies,
    GuardedRouter,
    Leaf,
    PublicRouter,
    leaves_of,
    refuse_frontend,
    scopes_in,
    with_scopes_of,
)
from app.auth.access.rule import PROBLEM_JSON, KeyStore, extract_key, take_bearer
from app.auth.access.selfcheck import check_guard, check_places, places_in
from app.auth.errors import SettingsError, StoreUnavailableError, UnguardedRouteError
from app.auth.log import RECORD, Observer

_TOO_LARGE: Final = {"description": "The body is too large", "content": {"text/plain": {}}}


async def _as_text(_: Request, error: Any) -> PlainTextResponse:
    # As Starlette answers where the length of the body is declared.
    return PlainTextResponse(f"{error.detail}", error.status_code, error.headers)


class GuardedAPI(FastAPI):
    """A FastAPI application that asks `keys` whether a caller's key is in force.

    `policies` bound keys further, each by a restriction that keys carry. `observers` get the record
    of each request when its answer starts. `public_paths` are pages that packages add to the
    application itself and that need no key. The application's own documentation is public.
    Successful requests for `probes` have a line at the level DEBUG alone. With `accept_bearer`,
    `Authorization: Bearer KEY` counts as the header of the key; with `show_owners`, the lines of
    requests name the owner of the key.
    """

    def __init__(
        self,
        keys: KeyStore,
        *,
        policies: Sequence[Policy] = (),
        observers: Sequence[Observer] = (),
        public_paths: Iterable[str] = (),
        probes: Iterable[str] = ("/health/live", "/health/ready"),
        accept_bearer: bool = False,
        show_owners: bool = False,
        middleware: Sequence[Middleware] = (),
        routes: Iterable[BaseRoute] = (),
        **options: Any,
    ) -> None:
        self.keys: Final = keys
        self.policies: Final = tuple(policies)
        self._log: Final = RequestLog(self, observers, probes, show_owners)
        self._public_paths: Final = frozenset(public_paths)
        self._accept_bearer: Final = accept_bearer
        self._problem = ""  # the error that stopped the start-up
        given = list(routes)
        if options.get("max_body_size") is not None:
            for option, added in (("responses", _TOO_LARGE), ("exception_handlers", _as_text)):
                options[option] = {413: added, **(options.get(option) or {})}
        handlers = options.pop("exception_handlers", None) or {}
        super().__init__(
            routes=given,
            # Innermost: middleware that is added later sees requests before the guard does.
            middleware=[*middleware, Middleware(Guard, api=self)],
            exception_handlers={HTTPException: _answer_of, **handlers},
            # A redirect would bypass the guard and make callers send the key to another URL.
            redirect_slashes=False,
            **options,
        )
        self.max_body_size = None  # the router bounds bodies, behind the guard
        self.router.lifespan_context = self._following_keys(self.router.lifespan_context)
        self._public: Final = [route for route in self.routes if not _is_in(route, given)]
        self._guarded: Final[list[BaseRoute]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await FastAPI.__call__(self, scope, receive, self._in_one_line(send))
            return
        if RECORD in scope:  # in another GuardedAPI
            await FastAPI.__call__(self, scope, receive, send)
            return
        if self._accept_bearer:
            take_bearer(scope)
        exchange = Exchange(self._log, scope, extract_key(scope), send)
        try:
            await FastAPI.__call__(self, scope, receive, exchange.send)  # faster than super()
        finally:
            exchange.end()

    def _in_one_line(self, send: Send) -> Send:
        """Report the error that stops the start-up without its traceback."""

        def send_in_one_line(message: Message) -> Awaitable[None]:
            if message["type"] == "lifespan.startup.failed" and self._problem:
                message["message"] = self._problem
            return send(message)

        return send_in_one_line

    def add_observer(self, observe: Observer) -> None:
        """Call `observe` for each request, when its answer starts."""
        self._log.observers.append(observe)

    def include_router(
        self, router: APIRouter, *, dependencies: Dependencies = None, **options: Any
    ) -> None:
        router, options = with_scopes_of(dependencies, router, options)
        before = len(self.routes)
        super().include_router(router, **options)
        if isinstance(router, PublicRouter):
            self._public.extend(self.routes[before:])
        elif isinstance(router, GuardedRouter):
            self._guarded.extend(self.routes[before:])

    frontend = refuse_frontend

    def check_routes(self) -> None:
        """Raises UnguardedRouteError if a route is on neither kind of router, if nothing checks a
        router's scopes for one of its routes, or if `check_places` finds a fault."""
        unclear = [
            _named(context)
            for route in self.routes
            if not _is_in(route, self._guarded) and not self.is_public(route)
            for context in iter_route_contexts([route])
        ]
        if unclear:
            raise UnguardedRouteError(
                f"Neither guarded nor public: {', '.join(unclear)}. Put each on a GuardedRouter or"
                " a PublicRouter; a router of a package goes on one of them with include_router, a"
                " page that a package adds to the application into public_paths."
            )
        loose = [
            f"{', '.join(sorted(leaf.loose))} for {_named(RouteContext(leaf.route))}"
            for leaf in self._leaves(self.routes)
            if leaf.loose
        ]
        if loose:
            raise UnguardedRouteError(
                f"Scopes that do not hold: {'; '.join(loose)}. Give them to the GuardedRouter that"
                " it is on, or to include_router of a GuardedRouter or of the application."
            )
        check_places(places_in(self), has_scopes=self.keys.has_scopes)

    def is_public(self, route: BaseRoute) -> bool:
        return _is_in(route, self._public) or getattr(route, "path", None) in self._public_paths

    def route_for(self, scope: Scope) -> BaseRoute | None:
        """Return the route that the router will choose, if any."""
        partial = None
        for route in self.routes:
            try:
                match, _ = route.matches(scope)
            except Exception:  # such as too many digits in a number: the router fails too
                return route
            if match is Match.FULL:
                return route
            if match is Match.PARTIAL and partial is None:
                partial = route
        return partial

    def openapi(self) -> dict[str, Any]:
        """Return FastAPI's document with the security and the refusals of each operation."""
        known = self.openapi_schema
        document = super().openapi()
        if document is not known:
            complete(document, self._operations(), self.policies, bearer=self._accept_bearer)
        return document

    def _operations(self) -> Iterator[tuple[Any, bool]]:
        """Yield each documented operation, and whether it is guarded."""
        for route in self.routes:
            guarded = [leaf.route for leaf in self._leaves([route]) if leaf.guarded]
            for context in iter_route_contexts([route]):
                if isinstance(context.original_route, APIRoute) and context.include_in_schema:
                    yield context, _is_in(context.original_route, guarded)

    def _leaves(self, routes: Iterable[BaseRoute]) -> Iterator[Leaf]:
        asked = scopes_in(self.router.dependencies)
        for route in routes:
            yield from leaves_of([route], guarded=not self.is_public(route), asked=asked)

    def _following_keys(
        self, lifespan: Callable[[Any], AbstractAsyncContextManager[Any]]
    ) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
        @asynccontextmanager
        async def following(app: FastAPI) -> AsyncGenerator[Any]:
            self._problem = ""
            try:
                _check_asyncio()
                await check_guard(type(self))
                async with AsyncExitStack() as running:
                    await running.enter_async_context(self.keys.follow())
                    for policy in self.policies:
                        await running.enter_async_context(policy.running())
                    state = await running.enter_async_context(lifespan(app))
                    self.check_routes()  # now, for a lifespan may have added some
                    yield state
            except (SettingsError, StoreUnavailableError, UnguardedRouteError) as error:
                self._problem = f"{error}"
                raise

        return following


def _check_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise SettingsError("Run it on asyncio, such as: hypercorn -k asyncio") from None


async def _answer_of(request: Request, error: HTTPException) -> Response:
    """FastAPI's answer. The router's 404 and 405 get the media type of the refusals."""
    answer = await http_exception_handler(request, error)
    if type(error) is HTTPException:  # endpoints raise FastAPI's, which is a subclass
        answer.headers["Content-Type"] = PROBLEM_JSON
    return answer


def _is_in(route: BaseRoute, routes: Sequence[BaseRoute]) -> bool:
    return any(each is route for each in routes)  # a Route equals similar ones


def _named(context: RouteContext) -> str:
    return f"{context.path or '/'} ({context.name or type(context.original_route).__name__})"
