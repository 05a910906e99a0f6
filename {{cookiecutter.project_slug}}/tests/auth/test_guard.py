"""The guard: what it covers, when it asks, and that no route is forgotten."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI

from app.auth import GuardedAPI, GuardedRouter, PublicRouter
from app.constants import MISSING_KEY_STATUS
from tests.callers import (
    STRANGER,
    Keys,
    application,
    ask,
    endpoint,
    on,
    refusals_of,
    start_up,
    status_of,
    with_every_kind,
)


def mounted_on(router: Any, app: Any) -> Any:
    router.mount("/mounted", app)
    return router


async def is_guarded(app: Any, keys: Keys, prefix: str = "") -> bool:
    """Every kind of route refuses a stranger and lets in a caller."""
    strangers = await refusals_of(app, prefix=prefix)
    return (strangers, await refusals_of(app, keys.issue(), prefix=prefix)) == ({STRANGER}, {None})


async def test_a_refused_request_is_not_read_and_runs_nothing(api: GuardedAPI) -> None:
    ran: list[str] = []

    async def dependency() -> None:
        ran.append("dependency")

    async def create_item(item: dict[str, str]) -> None:
        ran.append("endpoint")

    router = GuardedRouter(dependencies=[Depends(dependency)])
    router.add_api_route("/items", create_item, methods=["POST"])
    api.include_router(router, dependencies=[Depends(dependency)])
    for method in ("POST", "DELETE"):  # `ask` fails the test if the body is read
        assert await status_of(api, path="/items", method=method) == MISSING_KEY_STATUS
    assert ran == []


@pytest.mark.parametrize(
    ("router", "prefix"),
    [
        (with_every_kind(GuardedRouter()), ""),
        (on(GuardedRouter(), on(APIRouter(), with_every_kind(APIRouter())), prefix="/v1"), "/v1"),
        (on(GuardedRouter(), with_every_kind(PublicRouter())), ""),
        (on(PublicRouter(), on(APIRouter(), with_every_kind(GuardedRouter()))), ""),
        (mounted_on(PublicRouter(), with_every_kind(GuardedRouter())), "/mounted"),
        (mounted_on(PublicRouter(), on(FastAPI(), with_every_kind(GuardedRouter()))), "/mounted"),
        (mounted_on(GuardedRouter(), with_every_kind(FastAPI())), "/mounted"),
    ],
)
async def test_everything_on_a_guarded_router_is_guarded(
    api: GuardedAPI, keys: Keys, router: APIRouter, prefix: str
) -> None:
    assert (await start_up(on(api, router)))["type"] == "lifespan.startup.complete"
    assert await is_guarded(api, keys, prefix)


# A route that nobody has thought about is guarded, and stops the start.


FORGOTTEN: list[Callable[[GuardedAPI], object]] = [
    with_every_kind,
    lambda api: on(api, on(APIRouter(), with_every_kind(APIRouter()))),
    lambda api: on(api.router, with_every_kind(PublicRouter())),  # past its own include_router
    lambda api: with_every_kind(api).mount("/docs", application),  # below what is public
]


@pytest.mark.parametrize("when", ["before the start", "in the lifespan", "after the start"])
@pytest.mark.parametrize("forget", FORGOTTEN, ids=range(4))
async def test_a_route_on_neither_router_is_guarded_and_stops_the_start(
    keys: Keys, forget: Callable[[GuardedAPI], object], when: str
) -> None:
    @asynccontextmanager
    async def lifespan(app: GuardedAPI) -> AsyncGenerator[None]:
        if when == "in the lifespan":
            forget(app)
        yield

    api = GuardedAPI(keys, lifespan=lifespan)
    if when == "before the start":
        forget(api)
    answer = await start_up(api)
    if when == "after the start":
        assert answer["type"] == "lifespan.startup.complete"
        forget(api)
    else:
        assert answer["message"].startswith("Neither guarded nor public: /")
        assert "/x (x)" in answer["message"]
    assert await is_guarded(api, keys)


async def test_no_spelling_of_a_path_leads_past_the_guard(api: GuardedAPI, keys: Keys) -> None:
    router = with_every_kind(GuardedRouter())
    router.add_api_route("/{name}/{rest:path}", endpoint)
    on(api, router, prefix="/guarded")
    on(api, with_every_kind(PublicRouter()), prefix="/public")
    ends = ["x", "x/", "X", "x//", "./x", "/x", "%78", "x%2f", "x;a=b", "x?", "x\x00", "x\udce9"]
    ends += ["", "mount", "mount//x", "mount/../x", "../public/x", "../public/mount/"]
    paths = [f"/guarded/{end}" for end in ends]
    paths += ["", "*", "//guarded/x", "guarded/x", "http://service/guarded/x", "/guarded\\x"]
    paths += ["/public/../guarded/x", "/public//../guarded/x", "/GUARDED/x"]
    for path in paths:
        for method in ("GET", "OPTIONS", "get", ""):
            for root_path in ("", "/guarded"):
                status = await status_of(api, path=path, method=method, root_path=root_path)
                assert status in (MISSING_KEY_STATUS, 404), path
        sent = await ask(api, path=path, type="websocket", extensions=None)
        assert "websocket.close" in f"{sent}", path
    # Nor does a slash too many or too few lead a caller elsewhere, with the key.
    for path in ("/guarded/mount", "/public/x/", "/public/mount"):
        assert await status_of(api, keys.issue(), path=path) == 404


async def test_a_fastapi_that_goes_past_the_guard_stops_the_start(
    api: GuardedAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another release might: it leaves out middleware, or enters routers in another way."""
    build = FastAPI.build_middleware_stack

    def build_without_middleware(app: FastAPI) -> Any:
        app.user_middleware = []
        return build(app)

    with monkeypatch.context() as release:
        release.setattr(FastAPI, "build_middleware_stack", build_without_middleware)
        assert "goes past the guard" in (await start_up(api))["message"]
    monkeypatch.setattr(GuardedRouter, "handle", APIRouter.handle)
    assert "goes past the guard" in (await start_up(api))["message"]
