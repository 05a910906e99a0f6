"""Scopes: what a key is for. They hold for everything on the router that asks for them."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, Security

from app.auth import GuardedAPI, GuardedRouter, PublicRouter, get_caller, require
from app.auth.key import Key
from tests.callers import (
    Keys,
    on,
    refusals_of,
    start_up,
    status_of,
    with_endpoints,
    with_every_kind,
)

A, C = require("a:b"), require("c")


def needs(*scopes: str) -> Any:
    def dependency(caller: Annotated[Key, Security(get_caller, scopes=scopes)]) -> None: ...

    return Depends(dependency)


def asking(*dependencies: Any) -> GuardedRouter:
    return GuardedRouter(dependencies=dependencies)


@pytest.mark.parametrize(
    "include",
    [
        lambda api: on(api, with_every_kind(asking(A, needs("c")))),
        lambda api: on(api, on(asking(C), on(asking(), with_every_kind(asking(A))))),
        lambda api: on(api, on(asking(), with_every_kind(asking()), dependencies=[A, C])),
        lambda api: on(api, with_every_kind(APIRouter()), dependencies=[A, C]),
        lambda api: on(api, on(asking(A), on(APIRouter(), with_every_kind(asking(C))))),
        lambda api: on(api, on(PublicRouter(), with_every_kind(asking(require("a:b", "c"))))),
    ],
    ids=range(6),
)
async def test_they_hold_for_everything_on_a_router(
    api: GuardedAPI, keys: Keys, include: Callable[[GuardedAPI], None]
) -> None:
    include(api)
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    for held, told in (("a:b", "Missing scope: c"), ("c", "Missing scope: a:b"), ("*", None)):
        assert await refusals_of(api, keys.issue(held)) == {told}
    assert await refusals_of(api, keys.issue("a:b", "c")) == {None}


@pytest.mark.parametrize(
    "around",
    [
        lambda fill: on(asking(A), fill(APIRouter(dependencies=[C]))),
        lambda fill: on(asking(A), on(APIRouter(), fill(asking()), dependencies=[C])),
        lambda fill: on(PublicRouter(), fill(asking(A)), dependencies=[C]),
    ],
    ids=range(3),
)
async def test_where_they_would_not_hold_for_everything_the_start_stops(
    keys: Keys, around: Callable[[Callable[[Any], Any]], APIRouter]
) -> None:
    answer = await start_up(on(GuardedAPI(keys), around(with_endpoints)))
    assert answer["type"] == "lifespan.startup.complete"
    answer = await start_up(on(GuardedAPI(keys), around(with_every_kind)))
    assert "Scopes that do not hold: c for /raw (raw); " in answer["message"]


async def test_a_wildcard_covers_what_is_below_it(api: GuardedAPI, keys: Keys) -> None:
    on(api, on(asking(), with_endpoints(APIRouter(dependencies=[require("reports:read")]))))
    for held in ("*", "reports:read", "reports:*"):
        assert await status_of(api, keys.issue(held), path="/x") == 200
    for held in ("reports", "reports:write", "reports:read:all", "report:*", "REPORTS:READ"):
        assert await status_of(api, keys.issue(held), path="/x") == 403


async def test_a_missing_scope_refuses_before_anything_runs(api: GuardedAPI, keys: Keys) -> None:
    ran: list[str] = []

    async def dependency() -> None:
        ran.append("dependency")

    async def create_item(item: dict[str, str]) -> None:
        ran.append("endpoint")

    by_router, by_endpoint, by_inclusion = asking(A), asking(Depends(dependency)), APIRouter()
    by_router.add_api_route("/1", create_item, methods=["POST"])
    by_endpoint.add_api_route("/2", create_item, methods=["POST"], dependencies=[A])
    by_endpoint.add_api_route("/3", create_item, methods=["POST"], dependencies=[needs("a:b")])
    by_inclusion.add_api_route("/4", create_item, methods=["POST"])
    on(api, by_router, by_endpoint, dependencies=[Depends(dependency)])
    on(api, by_inclusion, dependencies=[Depends(dependency), A])
    for path in ("/1", "/2", "/3", "/4"):  # `ask` fails the test if the body is read
        assert await status_of(api, keys.issue("c"), path=path, method="POST") == 403
    assert ran == []
