"""Whether the guard works with the FastAPI that is installed."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.types import Scope

from app.auth.access.dependencies import require
from app.auth.access.route_checks import places_in, unread_at
from app.auth.access.routers import GuardedRouter, PublicRouter, leaves_of
from app.auth.access.rule import API, CALLER, Refusal, logger
from app.auth.errors import UnguardedRouteError
from app.auth.key import Key


async def check_guard(application: Callable[[Any], Any]) -> None:
    """Raises UnguardedRouteError if this release of FastAPI goes past the guard.

    `application` makes a GuardedAPI for a key store.

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

    # No store: each of these requests says who calls.
    app = filled(application(SimpleNamespace(has_scopes=True)), "/bare")
    public, needed = filled(PublicRouter(), "/public"), [require("needed")]
    public.include_router(filled(GuardedRouter(), "/in-public"))
    app.include_router(public)
    app.include_router(filled(GuardedRouter(), "/guarded"))
    app.include_router(filled(GuardedRouter(dependencies=needed), "/scoped"))
    # Not `app` itself: neither the log nor add-ons are to see these requests.
    stack = FastAPI.build_middleware_stack(app)

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
