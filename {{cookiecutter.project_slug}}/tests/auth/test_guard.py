"""The guard: what it covers, when it asks, and that no route is forgotten."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket

from app.auth import Caller, GuardedAPI, GuardedRouter, PublicRouter
from app.auth.errors import UnguardedRouteError
from app.constants import MISSING_KEY_STATUS
from tests.callers import (
    STRANGER,
    Keys,
    application,
    ask,
    endpoint,
    on,
    refusal_of,
    refusals_of,
    start_up,
    status_of,
    with_every_kind,
)

if TYPE_CHECKING:
    from app.auth.key import Key as OnlyForTheTypeChecker


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


@pytest.mark.parametrize("type", ["http", "websocket"])
async def test_a_key_is_checked_once_a_request(api: GuardedAPI, keys: Keys, type: str) -> None:
    async def needs_the_caller(caller: Caller) -> None: ...

    async def whoami(caller: Caller) -> str:
        return caller.id

    async def live(websocket: WebSocket, caller: Caller) -> None:
        await websocket.accept(subprotocol=caller.id)

    router = GuardedRouter(dependencies=[Depends(needs_the_caller, use_cache=False)] * 3)
    router.add_api_route("/whoami", whoami)
    router.add_api_websocket_route("/whoami", live)
    on(api, on(GuardedRouter(), on(GuardedRouter(), router)))
    outer, secret = on(GuardedAPI(keys), mounted_on(GuardedRouter(), api)), keys.issue()
    for app, path in ((api, "/whoami"), (outer, "/mounted/whoami")):
        keys.asked = 0
        assert "key-0" in f"{await ask(app, secret, path=path, type=type)}"
        assert keys.asked == 1


async def test_a_websocket_is_closed_where_no_answer_can_be_sent(api: GuardedAPI) -> None:
    on(api, with_every_kind(GuardedRouter()))
    sent = await ask(api, path="/x", type="websocket", extensions=None)
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]


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


async def test_everything_else_on_a_public_router_is_public(api: GuardedAPI) -> None:
    on(api, on(PublicRouter(), with_every_kind(APIRouter())), prefix="/a")
    on(api, on(PublicRouter(), with_every_kind(PublicRouter())), prefix="/b")
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    assert await refusals_of(api, prefix="/a") == await refusals_of(api, prefix="/b") == {None}


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


# What an endpoint asks for counts, or it never answers.


async def unreadable(caller: "OnlyForTheTypeChecker") -> None: ...


async def perhaps(caller: Caller | None = None) -> None: ...


@pytest.mark.parametrize(
    "add",
    [
        lambda router: router.add_api_route("/mounted/x", unreadable),
        lambda router: router.add_api_route("/mounted/x", perhaps),
        lambda router: router.add_api_route(
            "/mounted/x", endpoint, dependencies=[Depends(unreadable)]
        ),
        lambda router: on(
            router, mounted_on(GuardedRouter(dependencies=[Depends(unreadable)]), application)
        ),
    ],
    ids=range(4),
)
async def test_what_fastapi_cannot_read_stops_the_start_and_never_answers(
    keys: Keys, add: Callable[[GuardedRouter], object]
) -> None:
    for is_started in (True, False):
        api, router = GuardedAPI(keys), GuardedRouter()
        if is_started:
            assert (await start_up(api))["type"] == "lifespan.startup.complete"
            assert await status_of(api, keys.issue(), path="/no-such-page") == 404
        add(router)
        api.include_router(router)
        with pytest.raises(UnguardedRouteError, match="FastAPI cannot read: caller"):
            await ask(api, keys.issue(), path="/mounted/x")
    assert "FastAPI cannot read: caller" in (await start_up(api))["message"]


async def test_only_what_lies_on_the_application_itself_can_be_declared_public(keys: Keys) -> None:
    api = with_every_kind(GuardedAPI(keys, public_paths=["/raw", "/mount", "/docs"]))
    assert await refusal_of(api, path="/raw") is None
    assert await refusal_of(api, path="/mount/x") is None
    assert await refusal_of(api, path="/x") == STRANGER
    api = GuardedAPI(keys, public_paths=["/x", "/raw", "/mount"])
    assert await is_guarded(on(api, with_every_kind(GuardedRouter())), keys)


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
