"""The application, which asks every caller for a key before anything else is done.

What is not declared public needs one, whenever and however it was added. A route of the application
itself, on neither of the two routers, is guarded as well, but stops the start-up: it does not say
which of the two was meant.
"""

import re
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from fastapi.utils import generate_unique_id
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import access
from app.auth.access import (
    API,
    CALLER,
    MEANT,
    OFFERED,
    PROBLEM_SCHEMA,
    RESPONSES,
    SEEN,
    Admission,
    Refusal,
    get_caller,
    require,
)
from app.auth.errors import SettingsError, StoreUnavailableError, UnguardedRouteError
from app.auth.guesses import Guesses
from app.auth.keys import Key
from app.auth.routing import (
    Dependencies,
    GuardedRouter,
    Leaf,
    PublicRouter,
    leaves_of,
    scopes_in,
    with_scopes_of,
)
from app.auth.selfcheck import FaultyRoutes, check_places, places_in, unread_at

_NO_STORE: Final = (b"cache-control", b"no-store")
_FOR_WHOM: Final = re.compile(rb"private|public|s-maxage|no-store", re.IGNORECASE)

# For the OpenAPI document, of operations that say nothing else.
_GUARDED: Final = {"name": "Guarded", "description": "For callers with a valid key."}
_PUBLIC: Final = {"name": "Public", "description": "For everybody."}
_MALFORMED: Final = {"400": {"description": "The request is malformed"}}  # a server finds that


class GuardedAPI(FastAPI):
    """A FastAPI application that asks `keys` whether a caller's key is in force.

    `public_paths` are the pages that others have added to the application itself and that are
    open to strangers. Its own documentation is. `around` is put around all middleware, so that it
    sees every request and every answer.
    """

    def __init__(
        self,
        keys: access.KeyStore,
        *,
        public_paths: Collection[str] = (),
        around: Callable[[ASGIApp], ASGIApp] | None = None,
        middleware: Sequence[Middleware] = (),
        routes: Iterable[BaseRoute] = (),
        **options: Any,
    ) -> None:
        self.keys: Final = keys
        self._public_paths: Final = frozenset(public_paths)
        self._around: Final = around
        self._problem = ""  # the one that has stopped the start-up
        given = list(routes)
        super().__init__(
            routes=given,
            # The innermost: what is added later sees requests before the guard does.
            middleware=[
                *middleware,
                Middleware(_Guard, api=self),
                Middleware(FaultyRoutes, api=self),
            ],
            # A redirect would come before the guard, and tell a caller to send the key elsewhere.
            redirect_slashes=False,
            **options,
        )
        self.router.lifespan_context = self._following_keys(self.router.lifespan_context)
        self._public: Final = [route for route in self.routes if not _is_in(route, given)]
        self._guarded: Final[list[BaseRoute]] = []
        self.frontends: Final = APIRouter(
            dependencies=self.router.dependencies,
            dependency_overrides_provider=self,
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            send = self._in_one_line(send)
        else:
            access.take_secret(scope)
        await FastAPI.__call__(self, scope, receive, send)  # faster than super()

    def _in_one_line(self, send: Send) -> Send:
        """What stops the start-up is told without the frames that it came from."""

        def send_in_one_line(message: Message) -> Awaitable[None]:
            if message["type"] == "lifespan.startup.failed" and self._problem:
                message["message"] = self._problem
            return send(message)

        return send_in_one_line

    def build_middleware_stack(self) -> ASGIApp:
        stack = super().build_middleware_stack()
        return self._around(stack) if self._around else stack

    def include_router(
        self, router: APIRouter, *, dependencies: Dependencies = None, **options: Any
    ) -> None:
        router, options = with_scopes_of(dependencies, router, options)
        before = len(self.routes)
        super().include_router(router, **options)
        if isinstance(router, PublicRouter):
            self._public.extend(self.routes[before:])
            self.frontends.include_router(router.frontends, **options)
        elif isinstance(router, GuardedRouter):
            self._guarded.extend(self.routes[before:])

    def frontend(self, *_: Any, **__: Any) -> None:
        raise UnguardedRouteError("A frontend is public: put it on a PublicRouter")

    def check_routes(self) -> None:
        """Raises UnguardedRouteError if any route is on neither kind of router, if scopes that a
        router asks for do not hold for a route on it, or if `check_places` finds a fault."""
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
        """The route that is going to answer, as the router chooses it; None if there is none."""
        partial = None
        for route in self.routes:
            try:
                match, _ = route.matches(scope)
            except Exception:  # say, a number with too many digits: the router will not get further
                return route
            if match is Match.FULL:
                return route
            if match is Match.PARTIAL and partial is None:
                partial = route
        return partial

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, with what it does not know of an operation: whether it needs a key,
        and how it refuses. Its id is the name of its function, if no other has that name."""
        known = self.openapi_schema
        document = super().openapi()
        if document is known:
            return document
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})[PROBLEM_SCHEMA["title"]] = PROBLEM_SCHEMA
        scheme = jsonable_encoder(get_caller.model, exclude_none=True)
        components.setdefault("securitySchemes", {})[get_caller.scheme_name] = scheme
        operations = [
            (document["paths"][context.path_format][method.lower()], context, guarded)
            for context, guarded in self._operations()
            for method in context.methods or ()
        ]
        names = Counter(context.name for _, context, _ in operations)
        for operation, context, guarded in operations:
            operation.setdefault("security", [{get_caller.scheme_name: []}] if guarded else [])
            operation.setdefault("tags", [(_GUARDED if guarded else _PUBLIC)["name"]])
            refusals = RESPONSES if guarded else _MALFORMED
            operation["responses"] = {**refusals, **operation["responses"]}
            if names[context.name] == 1 and operation["operationId"] == generate_unique_id(context):
                operation["operationId"] = context.name
        declared = document.get("tags", [])
        used = {tag for operation, _, _ in operations for tag in operation["tags"]}
        used -= {tag["name"] for tag in declared}
        document["tags"] = [tag for tag in (_GUARDED, _PUBLIC) if tag["name"] in used] + declared
        return document

    def _operations(self) -> Iterator[tuple[Any, bool]]:
        """What the document has, and whether it is guarded."""
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
                await check_guard()
                async with self.keys.follow(), lifespan(app) as state:
                    self.check_routes()  # now, for a lifespan may have added some
                    yield state
            except (SettingsError, StoreUnavailableError, UnguardedRouteError) as error:
                self._problem = f"{error}"
                raise

        return following


def _is_in(route: BaseRoute, routes: Sequence[BaseRoute]) -> bool:
    return any(each is route for each in routes)  # a Route equals others that look like it


def _named(context: RouteContext) -> str:
    return f"{context.path or '/'} ({context.name or type(context.original_route).__name__})"


class _Guard:
    """Middleware that asks for the key, once a request, before anything is read or run."""

    def __init__(self, app: ASGIApp, api: GuardedAPI) -> None:
        self._app, self._api, self._keys = app, api, api.keys
        self._guesses = Guesses()
        # For strangers, where there is no route: public files, or your own page for what is not
        # found.
        self._elsewhere = ExceptionMiddleware(api.frontends, api.exception_handlers)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # What nobody has to wait for takes no coroutine of its own either.
        offered = scope.get(OFFERED)
        if isinstance(offered, tuple) and (caller := self._keys.recall(offered[0])):
            return self._let_in(caller, scope, receive, _not_stored(send))
        return self._decide(scope, receive, send)

    def _let_in(self, caller: Key, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope[CALLER], scope[API] = caller, self._api
        if seen := scope.get(SEEN):
            seen.key, (seen.digest, _) = caller, scope[OFFERED]
        return self._app(scope, receive, send)

    async def _decide(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        caller = scope.get(CALLER)
        if caller is None:
            caller = await access.authenticate(scope, self._keys, self._guesses)
            headers: Sequence[tuple[bytes, bytes]] = ()
            if isinstance(caller, Admission):
                caller, headers = caller
            if isinstance(caller, Key):
                await self._let_in(caller, scope, receive, _not_stored(send, headers))
                return
            scope[CALLER], scope[API] = caller, self._api
        elif scope[API].keys is not self._keys:
            raise RuntimeError("A GuardedAPI lies in one that asks other keys, and took the key")
        if isinstance(caller, Key):
            await self._app(scope, receive, send)
            return
        route = self._api.route_for(scope)
        if route is None:
            scope["router"] = self._api.router
            await self._elsewhere(scope, receive, send)
        elif self._api.is_public(route):
            await self._app(scope, receive, send)
        else:
            scope[MEANT] = route
            await caller(scope, receive, send)


def _not_stored(send: Send, more: Sequence[tuple[bytes, bytes]] = ()) -> Send:
    """No cache between may keep the answer for somebody else, unless the endpoint says so. It gets
    more headers besides.

    That it may be kept is not enough: as with an Authorization header, `public` is to be said.
    """

    def send_not_stored(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *more]
            for place, (name, value) in enumerate(headers):
                if name == b"cache-control":
                    if not _FOR_WHOM.search(value):
                        private = (name, b"private, " + value)
                        headers[place] = private
                    break
            else:
                headers.append(_NO_STORE)
            message["headers"] = headers
        return send(message)

    return send_not_stored


# Whether all of this works.


async def check_guard() -> None:
    """Raises UnguardedRouteError if this release of FastAPI goes past the guard.

    Beyond what FastAPI documents, the guard rests on how a router finds a route (`matches`) and is
    entered (`handle`), and on where it keeps what was included (`original_router`,
    `include_context`), scopes (`own_oauth_scopes`) and what it makes of parameters (`dependant`).
    """
    entered: set[str] = set()

    def filled(router: Any, path: str) -> Any:
        async def endpoint() -> None:
            entered.add(path)

        async def mounted(*_: object) -> None:
            entered.add(path)

        router.add_api_route(path, endpoint)
        router.add_api_websocket_route(path, endpoint)
        router.mount(f"{path}/mounted", mounted)
        return router

    nobodys_keys: Any = SimpleNamespace(has_scopes=True)  # all requests are of somebody known
    app = filled(GuardedAPI(nobodys_keys), "/bare")
    public, needed = filled(PublicRouter(), "/public"), [require("needed")]
    public.include_router(filled(GuardedRouter(), "/in-public"))
    app.include_router(public)
    app.include_router(filled(GuardedRouter(), "/guarded"))
    app.include_router(filled(GuardedRouter(dependencies=needed), "/scoped"))
    # Not `app` itself: add-ons are not to see these requests.
    stack = type(app).build_middleware_stack(app)

    async def nothing(*_: object) -> Any:
        """Neither received nor sent."""

    async def where_enters(caller: Key | Refusal) -> set[str]:
        entered.clear()
        for path in ("/bare", "/public", "/in-public", "/guarded", "/scoped"):
            for type, end in (("http", ""), ("http", "/mounted/"), ("websocket", "")):
                scope: Scope = {"type": type, "method": "GET", "path": path + end, "app": app}
                scope.update({"query_string": b"", "headers": [], CALLER: caller, API: app})
                await stack(scope, nothing, nothing)
        return set(entered)

    access.logger.disabled = True
    try:
        strangers = await where_enters(Refusal("no key"))
        callers = await where_enters(Key("", "", frozenset()))
    finally:
        access.logger.disabled = False
    plain = APIRouter()
    plain.include_router(filled(APIRouter(), "/plain"), dependencies=needed)

    def unreadable(key: Any) -> Any: ...

    unreadable.__annotations__ = dict.fromkeys(("key", "return"), "NameOfNothing")
    plain.add_api_route("/unreadable", unreadable)
    unread = [name for place in places_in(plain) for _, name in unread_at(place)]
    if (
        strangers != {"/public"}
        or callers != {"/bare", "/public", "/in-public", "/guarded"}
        or not any(leaf.loose for leaf in leaves_of(plain.routes, guarded=False))
        or unread != ["key", "return"]
    ):
        raise UnguardedRouteError("This release of FastAPI goes past the guard: install another.")
