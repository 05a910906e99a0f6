"""Scopes: what a key is for. They hold for everything on the router that asks for them."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Security
from starlette.applications import Starlette
from starlette.routing import Mount

from app.auth import GuardedAPI, GuardedRouter, PublicRouter, get_caller, require
from app.auth.key import Key
from tests.callers import (
    Keys,
    answer_of,
    endpoint,
    mounted_on,
    on,
    refusal_of,
    refusals_of,
    start_up,
    starts,
    status_of,
    websocket_endpoint,
    with_endpoints,
    with_every_kind,
)

WITH_ENDPOINTS = [("/x", "http"), ("/x", "websocket")]


def needs(*scopes: str) -> Any:
    def dependency(caller: Annotated[Key, Security(get_caller, scopes=scopes)]) -> None: ...

    return Depends(dependency)


async def asks_for_both(api: GuardedAPI, keys: Keys) -> bool:
    """For `a:b` and `c`, on every kind of route."""
    told = [
        await refusals_of(api, keys.issue(*held)) for held in (["a:b"], ["c"], ["a:b", "c"], ["*"])
    ]
    return told == [{"Missing scope: c"}, {"Missing scope: a:b"}, {None}, {None}]


@pytest.mark.parametrize(
    "dependencies",
    [
        [require("a:b", "c")],
        [require("a:b"), require("c")],
        [needs("a:b"), needs("c")],
        [Security(needs("a:b").dependency, scopes=["c"])],
    ],
)
async def test_an_endpoint_may_ask_for_them(
    api: GuardedAPI, keys: Keys, dependencies: list[Any]
) -> None:
    router = GuardedRouter()
    router.add_api_route("/x", endpoint, dependencies=dependencies)
    router.add_api_websocket_route("/x", websocket_endpoint, dependencies=dependencies)
    on(api, router)
    for type in ("http", "websocket"):
        for held, told in ((["a:b"], "Missing scope: c"), (["c"], "Missing scope: a:b")):
            assert await refusal_of(api, keys.issue(*held), path="/x", type=type) == told
        assert await refusal_of(api, keys.issue("a:b", "c"), path="/x", type=type) is None


def guarded(*dependencies: Any) -> GuardedRouter:
    return GuardedRouter(dependencies=dependencies)


A, C = require("a:b"), require("c")


@pytest.mark.parametrize(
    "include",
    [
        lambda api: on(api, with_every_kind(guarded(A, needs("c")))),
        lambda api: on(api, on(guarded(C), on(guarded(), with_every_kind(guarded(A))))),
        lambda api: on(api, on(guarded(), with_every_kind(guarded()), dependencies=[A, C])),
        lambda api: on(api, with_every_kind(APIRouter()), dependencies=[A, C]),
        lambda api: on(api, on(guarded(A), on(APIRouter(), with_every_kind(guarded(C))))),
        lambda api: on(api, on(PublicRouter(), with_every_kind(guarded(A, C)))),
    ],
)
async def test_they_hold_for_everything_on_a_router(
    api: GuardedAPI, keys: Keys, include: Callable[[GuardedAPI], None]
) -> None:
    include(api)
    assert await starts(api)
    assert await asks_for_both(api, keys)


@pytest.mark.parametrize(
    "around",
    [
        lambda fill: on(guarded(A), fill(APIRouter(dependencies=[C]))),
        lambda fill: on(guarded(A), on(APIRouter(), fill(guarded()), dependencies=[C])),
        lambda fill: on(PublicRouter(), fill(guarded(A)), dependencies=[C]),
    ],
)
async def test_where_they_would_not_hold_for_everything_the_start_stops(
    keys: Keys, around: Callable[[Callable[[Any], Any]], APIRouter]
) -> None:
    assert await starts(on(GuardedAPI(keys), around(with_endpoints)))
    answer = await start_up(on(GuardedAPI(keys), around(with_every_kind)))
    assert "Scopes that do not hold: c for /raw (raw); " in answer["message"]
    assert "/x" not in answer["message"]


@pytest.mark.parametrize(
    "app",
    [
        on(FastAPI(), with_endpoints(APIRouter(dependencies=[A]))),
        on(FastAPI(), with_endpoints(guarded(A))),
        Starlette(routes=[Mount("/", with_endpoints(guarded(A)))]),
    ],
)
async def test_a_mounted_application_refuses_in_the_same_way(
    api: GuardedAPI, keys: Keys, app: Any
) -> None:
    on(api, mounted_on(GuardedRouter(), app))
    for type in ("http", "websocket"):
        for held, told in (("a:b", None), ("c", "Missing scope: a:b")):
            assert await refusal_of(api, keys.issue(held), path="/mounted/x", type=type) == told


@pytest.mark.parametrize(
    ("held", "covers"),
    [
        ("*", True),
        ("reports:read", True),
        ("reports:*", True),
        ("reports", False),
        ("reports:write", False),
        ("reports:read:all", False),
        ("report:*", False),
        ("REPORTS:READ", False),
    ],
)
async def test_a_wildcard_covers_what_is_below_it(
    api: GuardedAPI, keys: Keys, held: str, covers: bool
) -> None:
    on(api, with_endpoints(guarded(require("reports:read"))))
    answer = await answer_of(api, keys.issue(held), path="/x")
    assert answer.status == (200 if covers else 403)


async def test_a_missing_scope_refuses_before_anything_is_read_or_run(
    api: GuardedAPI, keys: Keys
) -> None:
    ran: list[str] = []

    async def dependency() -> None:
        ran.append("dependency")

    async def create_item(item: dict[str, str]) -> None:
        ran.append("endpoint")

    by_router, by_inclusion, by_endpoint = guarded(A), APIRouter(), guarded(Depends(dependency))
    for router, path in ((by_router, "/1"), (by_inclusion, "/2"), (by_endpoint, "/3")):
        needed = [A] if router is by_endpoint else []
        router.add_api_route(path, create_item, methods=["POST"], dependencies=needed)
    on(api, by_router, by_endpoint, dependencies=[Depends(dependency)])
    on(api, by_inclusion, dependencies=[Depends(dependency), A])
    for path in ("/1", "/2", "/3"):  # `ask` fails the test if the body is read
        assert await status_of(api, keys.issue("c"), path=path, method="POST") == 403
    assert ran == []
