"""Checks of the guard against the installed FastAPI and against the declared routes."""

from collections.abc import Callable, Iterable, Iterator
from inspect import unwrap
from types import SimpleNamespace
from typing import Annotated, Any, ForwardRef, Literal, NamedTuple, get_args, get_origin

from fastapi import APIRouter, FastAPI, Response, params
from fastapi.dependencies.models import Dependant
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount, Router
from starlette.types import Scope

from app.auth.access.dependencies import get_caller, require
from app.auth.access.routers import GuardedRouter, PublicRouter, dependant_of, leaves_of
from app.auth.access.rule import API, CALLER, Refusal, logger
from app.auth.errors import UnguardedRouteError
from app.auth.key import Key
from app.auth.log import RECORD, RequestRecord


class Place(NamedTuple):
    """A route, or a router with the dependencies of everything on it."""

    name: str
    asks: Dependant
    returns: tuple[Any, ...] = ()  # the fields that FastAPI makes of the annotation
    routes: list[BaseRoute] | None = None  # of a router


def places_in(app: Any, path: str = "", included_with: Iterable[Any] = ()) -> Iterator[Place]:
    """Walk an application or a router, with its nested routers and mounted applications."""
    router = getattr(app, "router", app)
    for route in router.routes:
        yield from places_at(route, path)
    asks = dependant_of([*included_with, *getattr(router, "dependencies", ())])
    yield Place(f"{path or '/'} ({type(app).__name__})", asks, routes=router.routes)


def places_at(route: Any, path: str = "") -> Iterator[Place]:
    if inner := getattr(route, "original_router", None):
        how = route.include_context
        yield from places_in(inner, path + how.prefix, how.dependencies)
    elif isinstance(route, Mount | Host):
        app: Any = route.app
        while app is not None and not isinstance(app, Starlette | Router):
            app = getattr(app, "app", None)  # unwrap middleware
        if app is not None:
            yield from places_in(app, path + getattr(route, "path", ""))
    elif isinstance(dependant := getattr(route, "dependant", None), Dependant):
        fields = (getattr(route, f"{name}_field", None) for name in ("response", "stream_item"))
        yield Place(f"{path}{route.path} ({route.name})", dependant, tuple(filter(None, fields)))


def check_places(places: Iterable[Place], *, has_scopes: bool) -> None:
    """Raises UnguardedRouteError if FastAPI cannot read an annotation, or if a route requires a
    scope although every key has all scopes."""
    unread, asked = dict[tuple[int, str], str](), dict[str, str]()
    for place in places:
        for call, name in unread_at(place):
            of = "" if call is place.asks.call else f" of {_name_of(call)}"
            unread.setdefault((id(call), name), f"{name}{of} in {place.name}")
        for scope in _asked_of_keys(place.asks):
            asked.setdefault(scope, f"{scope} for {place.name}")
    if unread:
        raise UnguardedRouteError(
            f"Annotations that FastAPI cannot read: {', '.join(unread.values())}. Import the names"
            " in them outside `if TYPE_CHECKING`, and put no quotes inside; a dependency is the"
            " whole annotation, not a part as in `Caller | None`."
        )
    if asked and not has_scopes:
        raise UnguardedRouteError(
            f"Scopes that restrict nobody: {', '.join(asked.values())}. Every key has all of them:"
            " ask for none, and tell keys apart by `caller.id`."
        )


def _name_of(call: Any) -> str:
    call = getattr(call, "func", call)  # unwrap a partial
    return str(getattr(call, "__name__", type(call).__name__))


def unread_at(place: Place) -> Iterator[tuple[Any, str]]:
    """Yield each function and its parameter (or `return`) whose annotation FastAPI cannot read.

    FastAPI reads such a parameter from the query or the body, and ignores its dependency.
    """
    pending = [place.asks]
    for dependant in pending:
        pending += dependant.dependencies
        fields = [*dependant.path_params, *dependant.query_params, *dependant.header_params]
        for field in (*fields, *dependant.cookie_params, *dependant.body_params):
            annotation = field.field_info.annotation
            if _is_unresolved(annotation) or _has_dependency(annotation):
                yield dependant.call, field.name
    if any(_is_unresolved(field.field_info.annotation) for field in place.returns):
        yield place.asks.call, "return"


def _is_unresolved(annotation: Any) -> bool:
    return any(isinstance(part, str | ForwardRef) for part in _parts(annotation))


def _has_dependency(annotation: Any) -> bool:
    return any(isinstance(part, params.Depends) for part in _parts(annotation, aliases=True))


def _parts(annotation: Any, *, aliases: bool = False) -> Iterator[Any]:
    """Yield the annotation and its parts. `aliases` also follows `type X = ...`."""
    parts = [annotation]
    for part in parts:
        yield part
        args = get_args(part)
        if get_origin(part) is Literal:
            args = ()
        elif get_origin(part) is Annotated:  # text in the metadata is no annotation
            args = (args[0], *(item for item in args[1:] if not isinstance(item, str)))
        parts += args
        value = getattr(part, "__value__", None) if aliases else None
        if value is not None and not any(value is other for other in parts):
            parts.append(value)


def _asked_of_keys(dependant: Dependant, above: tuple[str, ...] = ()) -> Iterator[str]:
    scopes = (*above, *(dependant.own_oauth_scopes or ()))
    if dependant.call is get_caller:
        yield from scopes
    for dependency in dependant.dependencies:
        yield from _asked_of_keys(dependency, scopes)


class FaultyRoutes:
    """Refuses the routes that would stop the start-up. It finds routes added later, and works
    without a start-up (`--lifespan off`, mounted in another application)."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._lists: list[list[BaseRoute]] = []
        self._count = -1
        self._faults: list[tuple[BaseRoute, str]] = []

    def refuse(self, scope: Scope) -> None:
        """Raises UnguardedRouteError if the request is for one of them."""
        if sum(map(len, self._lists)) != self._count:  # a cheap check: it runs per request
            self._look()
        if self._faults:
            going_to_answer = self._api.route_for(scope)
            for route, fault in self._faults:
                if route is going_to_answer:
                    raise UnguardedRouteError(fault)

    def _look(self) -> None:
        lists = [place.routes for place in places_in(self._api)]
        self._lists = [routes for routes in lists if routes is not None]
        self._count = sum(map(len, self._lists))
        self._faults.clear()
        for route in self._api.routes:
            try:
                check_places(places_at(route), has_scopes=self._api.keys.has_scopes)
            except UnguardedRouteError as error:
                self._faults.append((route, f"{error}"))


async def check_guard(application: Callable[[Any], Any]) -> None:
    """Raises UnguardedRouteError if the installed FastAPI bypasses the guard.

    `application` creates a GuardedAPI from a key store.

    The guard depends on undocumented parts of FastAPI: how a router finds a route (`matches`) and
    handles a request (`handle`), and where it keeps included routers (`original_router`,
    `include_context`), scopes (`own_oauth_scopes`) and parameters (`dependant`).
    """
    entered: set[str] = set()

    def filled(router: Any, path: str) -> Any:
        async def endpoint() -> Response:
            entered.add(path)
            return Response()

        async def mounted(*_: object) -> None:
            entered.add(path)

        router.add_api_route(path, endpoint)
        router.add_api_websocket_route(path, endpoint)
        router.mount(f"{path}/mounted", mounted)
        return router

    # No key store is needed: each request below already has its caller.
    app = filled(application(SimpleNamespace(has_scopes=True)), "/bare")
    public, needed = filled(PublicRouter(), "/public"), [require("needed")]
    public.include_router(filled(GuardedRouter(), "/in-public"))
    app.include_router(public)
    app.include_router(filled(GuardedRouter(), "/guarded"))
    app.include_router(filled(GuardedRouter(dependencies=needed), "/scoped"))
    # Instrumentation adds middleware, or wraps functions: it sees none of these requests.
    app.user_middleware = [
        each for each in app.user_middleware if each.cls.__module__.startswith(f"{__package__}.")
    ]
    stack = unwrap(FastAPI.build_middleware_stack)(app)

    async def nothing(*_: object) -> Any:
        """Receive or send nothing."""

    async def where_enters(caller: Key | Refusal) -> set[str]:
        entered.clear()
        for path in ("/bare", "/public", "/in-public", "/guarded", "/scoped"):
            for type, end in (("http", ""), ("http", "/mounted/"), ("websocket", "")):
                scope: Scope = {"type": type, "method": "GET", "path": path + end, "app": app}
                scope.update({"query_string": b"", "headers": [], CALLER: caller, API: app})
                scope[RECORD] = RequestRecord("", "GET")
                await stack(scope, nothing, nothing)
        return set(entered)

    logger.disabled = True
    try:
        strangers = await where_enters(Refusal("no key"))
        callers = await where_enters(Key("", "", frozenset()))
    finally:
        logger.disabled = False
    plain = APIRouter()
    plain.include_router(filled(APIRouter(), "/plain"), dependencies=needed)

    def unreadable(key: Any) -> Any: ...

    unreadable.__annotations__.update(dict.fromkeys(("key", "return"), "NameOfNothing"))
    plain.add_api_route("/unreadable", unreadable)
    unread = [name for place in places_in(plain) for _, name in unread_at(place)]
    if (
        strangers != {"/public"}
        or callers != {"/bare", "/public", "/in-public", "/guarded"}
        or not any(leaf.loose for leaf in leaves_of(plain.routes, guarded=False))
        or unread != ["key", "return"]
    ):
        raise UnguardedRouteError("This release of FastAPI goes past the guard: install another.")
