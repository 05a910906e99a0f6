"""Scopes: what a key is for. They hold for everything on the router that asks for them."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Response, Security, WebSocket
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from app.auth import GuardedAPI, GuardedRouter, PublicRouter, get_caller, require
from app.auth.key import Key
from tests.callers import Keys, answer_of, ask, start_up, status_of

WITH_RESPONSES: dict[str, Any] = {"websocket.http.response": {}}


async def endpoint() -> str:
    return "You have access!"


async def websocket_endpoint(websocket: WebSocket) -> None:
    await websocket.accept()


async def starlette_endpoint(_: Request) -> Response:
    return PlainTextResponse("You have access!")


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse("You have access!")(scope, receive, send)


def with_endpoints(router: Any) -> Any:
    router.add_api_route("/x", endpoint)
    router.add_api_websocket_route("/x", websocket_endpoint)
    return router


def filled(router: Any) -> Any:
    """With routes of every kind, also those for which FastAPI has no dependencies."""
    router.add_route("/raw", starlette_endpoint, name="raw")
    router.add_websocket_route("/raw", websocket_endpoint, name="raw")
    router.mount("/mount", application, name="mount")
    return with_endpoints(router)


def on(router: Any, *included: Any, **options: Any) -> Any:
    for each in included:
        router.include_router(each, **options)
    return router


async def assert_needed(api: GuardedAPI, keys: Keys, *needed: str, kinds: Any = None) -> None:
    """Of everything that `filled` has: who lacks one of the scopes is refused, and told which."""
    every = [(path, type) for path in ("/x", "/raw", "/mount/x") for type in ("http", "websocket")]
    callers = {keys.issue(*(each for each in needed if each != lacking)) for lacking in needed}
    for path, type in kinds or every:
        assert await enters(api, keys.issue(*needed), path, type)
        assert await enters(api, keys.issue("*"), path, type)
        for caller in callers:
            assert not await enters(api, caller, path, type)


async def enters(api: GuardedAPI, secret: bytes, path: str, type: str) -> bool:
    answer = await ask(api, secret, path=path, type=type)
    if isinstance(answer, list):
        if answer[0]["type"] == "websocket.accept":
            return True
        assert answer == [{"type": "websocket.close", "code": 1008, "reason": ""}]
        sent = await ask(api, secret, path=path, type=type, extensions=WITH_RESPONSES)
        assert isinstance(sent, list)
        start, body = sent
        assert start["type"] == "websocket.http.response.start"
        assert start["status"] == 403
        assert b"Missing scope: " in body["body"]
        return False
    if answer.status != 200:
        assert answer.status == 403
        assert answer.body.startswith(b'{"detail":"Missing scope: ')
        assert answer.header("content-type") == "application/problem+json"
        assert answer.header("cache-control") == "no-store"
        return False
    return True


# Where they can be asked for.


def needs(*scopes: str) -> Callable[..., object]:
    def dependency(caller: Annotated[Key, Security(get_caller, scopes=scopes)]) -> None: ...

    return dependency


@pytest.mark.parametrize(
    "dependencies",
    [
        [require("a:b", "c")],
        [require("a:b"), require("c")],
        [Security(get_caller, scopes=["a:b", "c"])],
        [Depends(needs("a:b")), Depends(needs("c"))],
        [Security(needs("a:b"), scopes=["c"])],
    ],
)
async def test_an_endpoint_may_ask_for_them(
    api: GuardedAPI, keys: Keys, dependencies: list[Any]
) -> None:
    router = GuardedRouter()
    router.add_api_route("/x", endpoint, dependencies=dependencies)
    router.add_api_websocket_route("/x", websocket_endpoint, dependencies=dependencies)
    api.include_router(router)
    await assert_needed(api, keys, "a:b", "c", kinds=[("/x", "http"), ("/x", "websocket")])


def asked_by_the_router(api: GuardedAPI) -> None:
    api.include_router(filled(GuardedRouter(dependencies=[require("a:b"), Depends(needs("c"))])))


def asked_by_nested_routers(api: GuardedAPI) -> None:
    inner = filled(GuardedRouter(dependencies=[require("a:b")]))
    api.include_router(on(GuardedRouter(dependencies=[require("c")]), on(GuardedRouter(), inner)))


def asked_where_it_is_included(api: GuardedAPI) -> None:
    router = on(GuardedRouter(), filled(GuardedRouter()), dependencies=[require("a:b")])
    api.include_router(router, dependencies=[require("c")])


def asked_where_a_plain_one_is_included(api: GuardedAPI) -> None:
    plain = on(APIRouter(), filled(APIRouter()))
    api.include_router(on(GuardedRouter(), plain, dependencies=[require("a:b", "c")]))


def asked_where_a_plain_one_is_included_in_the_application(api: GuardedAPI) -> None:
    api.include_router(filled(APIRouter()), dependencies=[require("a:b", "c")])


def asked_around_a_plain_one(api: GuardedAPI) -> None:
    plain = on(APIRouter(), filled(APIRouter()))
    api.include_router(on(GuardedRouter(dependencies=[require("a:b", "c")]), plain))


def asked_by_a_router_in_a_plain_one(api: GuardedAPI) -> None:
    plain = on(APIRouter(), filled(GuardedRouter(dependencies=[require("a:b")])))
    api.include_router(on(GuardedRouter(dependencies=[require("c")]), plain))


def asked_by_a_router_in_a_public_one(api: GuardedAPI) -> None:
    inner = filled(GuardedRouter(dependencies=[require("a:b", "c")]))
    api.include_router(on(PublicRouter(), inner))


@pytest.mark.parametrize(
    "include",
    [
        asked_by_the_router,
        asked_by_nested_routers,
        asked_where_it_is_included,
        asked_where_a_plain_one_is_included,
        asked_where_a_plain_one_is_included_in_the_application,
        asked_around_a_plain_one,
        asked_by_a_router_in_a_plain_one,
        asked_by_a_router_in_a_public_one,
    ],
)
async def test_they_hold_for_everything_on_a_router(
    api: GuardedAPI, keys: Keys, include: Callable[[GuardedAPI], None]
) -> None:
    include(api)
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    await assert_needed(api, keys, "a:b", "c")


def asked_by_a_plain_router(filled: Any) -> Any:
    plain = filled(APIRouter(dependencies=[require("c")]))
    return on(GuardedRouter(dependencies=[require("a:b")]), plain)


def asked_by_a_plain_router_in_a_plain_one(filled: Any) -> Any:
    plain = on(APIRouter(), filled(APIRouter(dependencies=[Depends(needs("c"))])))
    return on(GuardedRouter(dependencies=[require("a:b")]), plain)


def asked_where_a_plain_router_includes(filled: Any) -> Any:
    plain = on(APIRouter(), filled(GuardedRouter()), dependencies=[require("c")])
    return on(GuardedRouter(dependencies=[require("a:b")]), plain)


def asked_where_a_public_router_includes(filled: Any) -> Any:
    inner = filled(GuardedRouter(dependencies=[require("a:b")]))
    return on(PublicRouter(), inner, dependencies=[require("c")])


@pytest.mark.parametrize(
    "make",
    [
        asked_by_a_plain_router,
        asked_by_a_plain_router_in_a_plain_one,
        asked_where_a_plain_router_includes,
        asked_where_a_public_router_includes,
    ],
)
async def test_where_they_would_not_hold_for_everything_the_start_up_stops(
    keys: Keys, make: Callable[[Any], APIRouter]
) -> None:
    # What FastAPI has dependencies for is fine.
    api = on(GuardedAPI(keys), make(with_endpoints))
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    await assert_needed(api, keys, "a:b", "c", kinds=[("/x", "http"), ("/x", "websocket")])

    answer = await start_up(on(GuardedAPI(keys), make(filled)))
    assert answer["type"] == "lifespan.startup.failed"
    assert (
        "Scopes that do not hold: c for /raw (raw); c for /raw (raw); c for /mount (mount)."
        in answer["message"]
    )


async def test_those_of_the_whole_application_are_for_what_has_dependencies(keys: Keys) -> None:
    api = GuardedAPI(keys, dependencies=[require("a", "b")], openapi_url=None)
    api.include_router(with_endpoints(GuardedRouter()))
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    await assert_needed(api, keys, "a", "b", kinds=[("/x", "http"), ("/x", "websocket")])

    api.include_router(filled(GuardedRouter()))
    assert "a, b for /raw (raw)" in (await start_up(api))["message"]


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (["*"], None),
        (["reports:read"], None),
        (["reports:*"], None),
        (["reports:write"], "reports:read"),
        (["reports"], "reports:read"),
        (["reports:read:all"], "reports:read"),
        (["REPORTS:READ"], "reports:read"),
        ([], "reports:read"),
    ],
)
async def test_a_wildcard_covers_what_is_below_it(
    api: GuardedAPI, keys: Keys, held: list[str], missing: str | None
) -> None:
    api.include_router(with_endpoints(GuardedRouter(dependencies=[require("reports:read")])))
    answer = await answer_of(api, keys.issue(*held), path="/x")
    assert answer.status == (403 if missing else 200)
    if missing:
        assert answer.body == b'{"detail":"Missing scope: %b"}' % missing.encode()


# How a caller who lacks one is refused.


@pytest.mark.parametrize(
    "application",
    [
        with_endpoints(FastAPI(dependencies=[require("a")])),
        on(FastAPI(), with_endpoints(APIRouter(dependencies=[require("a")]))),
        on(FastAPI(), with_endpoints(GuardedRouter(dependencies=[require("a")]))),
        Starlette(routes=[Mount("/", with_endpoints(GuardedRouter(dependencies=[require("a")])))]),
    ],
)
async def test_a_mounted_application_refuses_in_the_same_way(
    api: GuardedAPI, keys: Keys, application: Any
) -> None:
    router = GuardedRouter()
    router.mount("/mounted", application)
    api.include_router(router)
    for type in ("http", "websocket"):
        assert await enters(api, keys.issue("a"), "/mounted/x", type)
        assert not await enters(api, keys.issue("b"), "/mounted/x", type)


async def test_a_missing_scope_refuses_before_anything_is_read_or_run(
    api: GuardedAPI, keys: Keys
) -> None:
    ran: list[str] = []

    async def dependency() -> None:
        ran.append("dependency")

    async def create_item(item: dict[str, str]) -> None:
        ran.append("handler")

    asking = GuardedRouter(dependencies=[require("items:write")])
    plain, inner = APIRouter(), GuardedRouter(dependencies=[Depends(dependency)])
    for router, path in ((asking, "/by-router"), (plain, "/by-inclusion"), (inner, "/by-endpoint")):
        needed = [require("items:write")] if router is inner else []
        router.add_api_route(path, create_item, methods=["POST"], dependencies=needed)
    api.include_router(asking, dependencies=[Depends(dependency)])
    api.include_router(plain, dependencies=[Depends(dependency), require("items:write")])
    api.include_router(inner, dependencies=[Depends(dependency)])

    # `ask` fails the test if the body is read.
    for path in ("/by-router", "/by-inclusion", "/by-endpoint"):
        assert await status_of(api, keys.issue("items:read"), path=path, method="POST") == 403
    assert ran == []


async def test_they_are_in_the_document(api: GuardedAPI) -> None:
    inner = GuardedRouter(dependencies=[require("router")])
    inner.add_api_route("/x", endpoint, dependencies=[require("endpoint"), Depends(needs("deep"))])
    outer = on(APIRouter(dependencies=[require("plain")]), inner, dependencies=[require("include")])
    api.include_router(outer, prefix="/outer", dependencies=[require("outermost")])

    operation = api.openapi()["paths"]["/outer/x"]["get"]

    (security,) = operation["security"]
    scopes = {"router", "endpoint", "deep", "plain", "include", "outermost"}
    assert set(security["APIKeyHeader"]) == scopes
