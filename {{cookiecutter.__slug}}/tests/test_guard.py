"""The guard: what it covers, when it asks, and that nobody forgets it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from fastapi import APIRouter, Depends, FastAPI, Response, WebSocket
from fastapi.routing import _IncludedRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.access import Caller
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.security import GuardedAPI, GuardedRouter, PublicRouter
from tests.servers import Answer, LiveServer, ask, start_up, status_of


async def websocket_endpoint(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("You have access!")
    await websocket.close()


async def starlette_endpoint(request: Request) -> Response:
    return PlainTextResponse("You have access!")


# A refused request costs nothing.


async def test_a_refused_request_is_not_read_and_runs_nothing(service: FastAPI) -> None:
    ran: list[str] = []

    async def dependency() -> None:
        ran.append("dependency")

    router = GuardedRouter(dependencies=[Depends(dependency)])

    @router.post("/items")
    async def create_item(item: dict[str, str]) -> None:
        ran.append("handler")

    service.include_router(router, dependencies=[Depends(dependency)])

    # `ask` fails the test if the body is read.
    assert await status_of(service, path="/items", method="POST") == MISSING_KEY_STATUS
    assert ran == []


def test_broken_json_from_a_stranger_is_refused_not_explained(
    service: FastAPI, live: LiveServer
) -> None:
    router = GuardedRouter()

    @router.post("/items")
    async def create_item(item: dict[str, str]) -> None: ...

    service.include_router(router)
    answer = live.send_raw(
        b"POST /items HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000000\r\n\r\n{broken"
    )
    assert str(MISSING_KEY_STATUS).encode() in answer


async def test_a_method_that_does_not_exist_is_refused_like_one_that_does(
    service: FastAPI, secrets: list[str]
) -> None:
    assert await status_of(service, method="DELETE") == MISSING_KEY_STATUS
    assert await status_of(service, secrets[0].encode(), method="DELETE") == 405


# One check a request.


@pytest.mark.parametrize("type", ["http", "websocket"])
@pytest.mark.parametrize("depth", range(6))
async def test_one_check_however_many_requirements_nest(
    service: GuardedAPI, secrets: list[str], ids: list[str], depth: int, type: str
) -> None:
    def needs_the_caller(_: int) -> Callable[..., object]:
        def dependency(caller: Caller) -> None:
            assert caller.id == ids[0]

        return dependency

    router = GuardedRouter(dependencies=[Depends(needs_the_caller(n)) for n in range(depth)])

    @router.get("/whoami")
    async def whoami(caller: Caller) -> str:
        return caller.id

    @router.websocket("/whoami")
    async def whoami_websocket(websocket: WebSocket, caller: Caller) -> None:
        await websocket.accept()
        await websocket.send_text(caller.id)

    for _ in range(depth):
        outer = GuardedRouter()
        outer.include_router(router)
        router = outer
    service.include_router(router)

    with patch.object(service.keys, "find", side_effect=service.keys.find) as lookups:
        answer = await ask(service, secrets[0].encode(), path="/whoami", type=type)

    assert ids[0] in str(answer)
    assert lookups.call_count == 1


async def test_a_public_endpoint_cannot_have_a_caller(service: FastAPI) -> None:
    router = PublicRouter()

    @router.get("/whoami")
    async def whoami(caller: Caller) -> None: ...

    service.include_router(router)
    with pytest.raises(RuntimeError, match="/whoami asks for its caller: guard its router"):
        await ask(service, path="/whoami")


# WebSockets.


def test_a_websocket_is_guarded_like_the_rest(
    service: FastAPI, live: LiveServer, secrets: list[str]
) -> None:
    router = GuardedRouter()
    router.add_api_websocket_route("/ws", websocket_endpoint)
    service.include_router(router)
    url = f"ws://127.0.0.1:{live.address[1]}/ws"

    with connect(url, additional_headers={API_KEY_HEADER: secrets[0]}) as websocket:
        assert websocket.recv() == "You have access!"

    with pytest.raises(InvalidStatus) as refused:
        connect(url)
    assert refused.value.response.status_code == MISSING_KEY_STATUS
    assert refused.value.response.body == b'{"detail":"Invalid or missing API Key"}'


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({"websocket.http.response": {}}, "websocket.http.response.start"),
        ({}, "websocket.close"),
        (None, "websocket.close"),
    ],
)
async def test_a_refused_websocket_is_never_accepted(
    service: FastAPI, extensions: dict[str, Any] | None, expected: str
) -> None:
    router = GuardedRouter()
    router.add_api_websocket_route("/ws", websocket_endpoint)
    service.include_router(router)

    sent = await ask(service, path="/ws", type="websocket", extensions=extensions)

    assert isinstance(sent, list)
    assert sent[0]["type"] == expected


# Everything on a guarded router is guarded.


def nested(inner: APIRouter) -> GuardedRouter:
    router = GuardedRouter()
    router.include_router(inner)
    return router


def mounted_in_the_open(router: GuardedRouter) -> PublicRouter:
    public = PublicRouter()
    public.mount("/mounted", router)
    return public


def with_endpoint(router: APIRouter, path: str = "/x") -> Any:
    router.add_api_route(path, lambda: "You have access!")
    return router


def with_mount(router: APIRouter) -> Any:
    router.mount("/x", PlainTextResponse("You have access!"))
    return router


def with_starlette_route(router: APIRouter) -> Any:
    router.add_route("/x", starlette_endpoint)
    return router


@pytest.mark.parametrize(
    ("router", "path"),
    [
        (with_endpoint(GuardedRouter()), "/x"),
        (with_endpoint(GuardedRouter(prefix="/v1")), "/v1/x"),
        (with_starlette_route(GuardedRouter()), "/x"),
        (with_mount(GuardedRouter()), "/x/"),
        (nested(with_endpoint(GuardedRouter())), "/x"),
        (nested(with_endpoint(PublicRouter())), "/x"),
        (mounted_in_the_open(with_endpoint(GuardedRouter())), "/mounted/x"),
    ],
)
async def test_everything_on_a_guarded_router_is_guarded(
    service: FastAPI, secrets: list[str], router: APIRouter, path: str
) -> None:
    service.include_router(router)

    assert (await start_up(service))["type"] == "lifespan.startup.complete"
    assert await status_of(service, path=path) == MISSING_KEY_STATUS
    answer = await ask(service, secrets[0].encode(), path=path)
    assert isinstance(answer, Answer)
    assert b"You have access!" in answer.body


# Nobody forgets the guard.


def add_bare_endpoint(service: FastAPI) -> None:
    service.add_api_route("/forgotten", lambda: "open", name="forgotten")


def add_bare_websocket(service: FastAPI) -> None:
    service.add_api_websocket_route("/forgotten", websocket_endpoint, name="forgotten")


def add_mount(service: FastAPI) -> None:
    service.mount("/forgotten", PlainTextResponse("open"), name="forgotten")


def add_starlette_route(service: FastAPI) -> None:
    service.add_route("/forgotten", starlette_endpoint, name="forgotten")


def add_frontend(service: FastAPI) -> None:
    Path("forgotten").mkdir()
    service.router.frontend("/", directory="forgotten")


def add_guarded_frontend(service: FastAPI) -> None:
    Path("forgotten").mkdir()
    router = GuardedRouter()
    router.frontend("/", directory="forgotten")
    service.include_router(router)


def add_plain_router(service: FastAPI) -> None:
    router = APIRouter()
    router.add_api_route("/forgotten", lambda: "open", name="forgotten")
    service.include_router(router)


@pytest.mark.parametrize(
    ("add", "named"),
    [
        (add_bare_endpoint, "/forgotten (forgotten)"),
        (add_bare_websocket, "/forgotten (forgotten)"),
        (add_mount, "/forgotten (forgotten)"),
        (add_starlette_route, "/forgotten (forgotten)"),
        (add_plain_router, "/forgotten (forgotten)"),
        (add_frontend, "Frontend"),
        (add_guarded_frontend, "Frontend"),
    ],
)
async def test_a_route_that_says_nothing_stops_the_start_up(
    service: FastAPI, add: Callable[[FastAPI], None], named: str
) -> None:
    add(service)
    answer = await start_up(service)
    assert answer["type"] == "lifespan.startup.failed"
    assert "Neither guarded nor public" in answer["message"]
    assert named in answer["message"]


async def test_a_public_frontend_may_be_public(service: FastAPI, tmp_path: Path) -> None:
    router = PublicRouter()
    router.frontend("/", directory=tmp_path)
    service.include_router(router)
    assert (await start_up(service))["type"] == "lifespan.startup.complete"


async def test_a_fastapi_that_goes_past_the_guard_stops_the_start_up(
    service: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As another release might: straight to the routes of a router, not through its `handle`.
    monkeypatch.setattr("fastapi.routing._IncludedRouter.handle", _IncludedRouter._handle_selected)
    assert await status_of(service) == 200  # the guard alone would let a stranger in

    answer = await start_up(service)

    assert answer["type"] == "lifespan.startup.failed"
    assert "This release of FastAPI goes past the guard" in answer["message"]
