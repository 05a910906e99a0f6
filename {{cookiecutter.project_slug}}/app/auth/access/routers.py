"""Routes on a `GuardedRouter` need a key, routes on a `PublicRouter` do not."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from fastapi import APIRouter, Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from app.auth.access.dependencies import refusal_without, scopes_of
from app.auth.access.rule import CALLER, Refusal
from app.auth.errors import UnguardedRouteError

_NO_SCOPES: Final[frozenset[str]] = frozenset()
_BY_PATH: Final = (APIRoute.matches, APIWebSocketRoute.matches)

Dependencies = Sequence[params.Depends] | None
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def refuse_frontend(*_: Any, **__: Any) -> NoReturn:
    """A frontend answers every path without a route, so it cannot belong to one router."""
    raise UnguardedRouteError(
        "Mount StaticFiles(directory=..., html=True) on one of the routers; a frontend lies on none"
    )


class GuardedRoute(APIRoute):
    """Checks the scopes before the body is read. `get_caller` checks them again."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if not (needed := sorted(set(scopes_of(self.dependant)))):
            return handle

        async def handle_if_covered(request: Request) -> Any:  # a Refusal works as a Response
            return refusal_without(needed, request.scope) or await handle(request)

        return handle_if_covered


class _Router(APIRouter):
    """Asks its routes only if a path ends like one of theirs; a prefix may stand before it."""

    _ends: tuple[str, ...] = ()
    frontend = refuse_frontend

    def __init__(self, **options: Any) -> None:
        options.setdefault("redirect_slashes", False)
        super().__init__(**options)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """FastAPI calls this for an included router, and again for the one that it chooses."""
        if len(self.routes) != len(self._ends):  # a cheap check: it runs per request
            routes: list[Any] = self.routes
            paths = [route.path if type(route).matches in _BY_PATH else "{" for route in routes]
            self._ends = tuple("" if "{" in path else path for path in paths)
        return super().matches(scope) if scope["path"].endswith(self._ends) else (Match.NONE, {})


class GuardedRouter(_Router):
    """Every route on it (HTTP, WebSocket, mounted apps, nested routers) needs a valid key.

    The scopes in its `dependencies`, and in those of `include_router`, apply to all of them.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("route_class", GuardedRoute)
        super().__init__(**options)
        self.scopes: Final = sorted(scopes_in(self.dependencies))

    def handle(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """FastAPI calls this for an included router."""
        return (self._refusal(scope) or super().handle)(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette calls this for a mounted router."""
        await (self._refusal(scope) or super().__call__)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        caller = scope.get(CALLER, _NOBODY_ASKED)
        if isinstance(caller, Refusal):  # this router is inside a public one
            return caller
        return refusal_without(self.scopes, scope) if self.scopes else None

    def include_router(
        self, router: APIRouter, *, dependencies: Dependencies = None, **options: Any
    ) -> None:
        router, options = with_scopes_of(dependencies, router, options)
        super().include_router(router, **options)


_NOBODY_ASKED: Final = Refusal("no GuardedAPI around it")


class PublicRouter(_Router):
    """Routes on it need no key, except those on a GuardedRouter inside it."""


def dependant_of(dependencies: Dependencies) -> Dependant:
    def nothing() -> None:
        """An operation without other dependencies."""

    return APIRoute("/", nothing, dependencies=dependencies).dependant


def scopes_in(dependencies: Dependencies) -> frozenset[str]:
    return frozenset(scopes_of(dependant_of(dependencies)))


def with_scopes_of(
    dependencies: Dependencies, router: APIRouter, options: dict[str, Any]
) -> tuple[APIRouter, dict[str, Any]]:
    """Return what to include instead, so that the scopes also apply to mounted applications and
    Starlette's routes, for which FastAPI ignores dependencies."""
    if not scopes_in(dependencies):
        return router, {**options, "dependencies": dependencies}
    around = GuardedRouter(dependencies=dependencies)
    around.include_router(router, **options)
    return around, {}


class Leaf(NamedTuple):
    """A single route in a tree of routers."""

    route: BaseRoute
    guarded: bool
    loose: frozenset[str]  # scopes of its routers that nothing checks for it


def leaves_of(
    routes: Iterable[Any],
    *,
    guarded: bool,
    asked: frozenset[str] = _NO_SCOPES,
    held: frozenset[str] = _NO_SCOPES,
) -> Iterator[Leaf]:
    for included in routes:
        router = getattr(included, "original_router", None)
        if router is None:
            asks_itself = isinstance(included, APIRoute | APIWebSocketRoute)
            yield Leaf(included, guarded, _NO_SCOPES if asks_itself else asked - held)
            continue
        dependencies = [*included.include_context.dependencies, *router.dependencies]
        is_guarded = isinstance(router, GuardedRouter)
        yield from leaves_of(
            router.routes,
            guarded=guarded or is_guarded,
            asked=asked | scopes_in(dependencies),
            held=held.union(router.scopes) if is_guarded else held,
        )
