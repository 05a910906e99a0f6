"""What an endpoint asks for holds, or the service neither starts nor answers."""

import functools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Query, Security, WebSocket
from fastapi.middleware.gzip import GZipMiddleware
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from typing_extensions import TypeAliasType

from app.auth import Caller, GuardedAPI, GuardedRouter, PublicRouter, get_caller, require
from app.auth.access.selfcheck import _has_dependency
from app.auth.errors import UnguardedRouteError
from app.auth.key import Key
from app.constants import MISSING_KEY_STATUS
from tests.callers import Keys, ask, start_up, status_of

Known = Annotated[Key, require("reports:read")]

if TYPE_CHECKING:  # these names are missing when the service runs
    Item = dict[str, str]
    Reader = Known

NOBODY: Any = None


async def endpoint() -> str:
    return "You have access!"


async def lost(caller: "Reader" = NOBODY) -> str:
    return "You have access!"


async def lost_websocket(websocket: WebSocket, caller: "Reader" = NOBODY) -> None:
    await websocket.accept()


def filled(router: Any) -> Any:
    router.add_api_route("/x", lost, name="x")
    router.add_api_websocket_route("/x", lost_websocket, name="x")
    return router


def on(router: Any, *included: Any, **options: Any) -> Any:
    for each in included:
        router.include_router(each, **options)
    return router


def mounted_on(router: Any, inner: Any) -> Any:
    router.mount("/mounted", inner)
    return router


async def failure(api: GuardedAPI) -> str:
    answer = await start_up(api)
    assert answer["type"] == "lifespan.startup.failed"
    assert "\n" not in answer["message"]
    return str(answer["message"])


async def assert_refuses(app: Any, secret: bytes, path: str = "/x") -> None:
    for type in ("http", "websocket"):
        with pytest.raises(UnguardedRouteError):
            await ask(app, secret, path=path, type=type)


# FastAPI can read what an endpoint asks for.


async def of_text(caller: "Annotated[Reader, Security(get_caller)]" = NOBODY) -> None: ...


async def of_text_inside(caller: Annotated["Known", "a description"] = NOBODY) -> None: ...


async def of_optional(caller: Caller | None = None) -> None: ...


# As `type Alias = Caller`, which Python 3.11 cannot read.
Alias = TypeAliasType("Alias", Caller)


async def of_alias(caller: Alias | None = None) -> None: ...


async def of_list(callers: list[Known] = NOBODY) -> None: ...


async def of_query(items: Annotated["list[Item]", Query()] = NOBODY) -> None: ...


async def of_body(items: list["Item"] = NOBODY) -> None: ...


async def with_return(caller: Caller) -> "Item":
    return {}


async def with_returned_list(caller: Caller) -> list["Item"]:
    return []


async def with_stream(caller: Caller) -> AsyncIterator["Item"]:
    yield {}


class WithReturn:
    """Of an instance FastAPI reads nothing if one name is missing."""

    def __call__(self, caller: "Known" = NOBODY) -> "Item":
        return {}


@pytest.mark.parametrize("kind", [GuardedRouter, PublicRouter])
@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lost, ["caller"]),
        (of_text, ["caller"]),
        (of_text_inside, ["caller"]),
        (of_optional, ["caller"]),
        (of_alias, ["caller"]),
        (of_list, ["callers"]),
        (of_query, ["items"]),
        (of_body, ["items"]),
        (with_return, ["return"]),
        (with_returned_list, ["return"]),
        (with_stream, ["return"]),
        (WithReturn(), ["caller", "return"]),
        (functools.partial(lost), ["caller"]),
    ],
)
async def test_an_endpoint_that_fastapi_cannot_read_stops_the_start_up(
    api: GuardedAPI, keys: Keys, kind: Any, function: Callable[..., Any], names: list[str]
) -> None:
    router = kind()
    router.add_api_route("/x", function, name="x", methods=["POST"])
    api.include_router(router)
    listed = ", ".join(f"{name} in /x (x)" for name in names)
    assert await failure(api) == (
        f"Annotations that FastAPI cannot read: {listed}. Import the names in them outside"
        " `if TYPE_CHECKING`, and put no quotes inside; a dependency is the whole annotation, not a"
        " part as in `Caller | None`."
    )
    for secrets in [keys.issue("*")], [] if kind is PublicRouter else [keys.issue("*")]:
        with pytest.raises(UnguardedRouteError):
            await ask(api, *secrets, path="/x", method="POST", body=b"")


class OfClass:
    def __init__(self, caller: "Reader" = NOBODY) -> None: ...


class OfInstance:
    def __call__(self, caller: "Reader" = NOBODY) -> None: ...


def of_function(caller: "Reader" = NOBODY) -> None: ...


def of_another(_: Annotated[None, Depends(of_function)]) -> None: ...


async def of_generator(caller: "Reader" = NOBODY) -> AsyncGenerator[None]:
    yield


@functools.wraps(of_function)
def around_function(*args: Any, **options: Any) -> None: ...


@pytest.mark.parametrize(
    ("dependency", "named"),
    [
        (of_function, "caller of of_function"),
        (of_another, "caller of of_function"),
        (of_generator, "caller of of_generator"),
        (around_function, "caller of of_function"),
        (OfClass, "caller of OfClass"),
        (OfInstance(), "caller of OfInstance"),
        (OfInstance().__call__, "caller of __call__"),
        (WithReturn(), "caller of WithReturn"),
        (functools.partial(of_function), "caller of of_function"),
    ],
    ids=range(9),
)
async def test_a_dependency_that_fastapi_cannot_read_stops_the_start_up(
    keys: Keys, dependency: Callable[..., Any], named: str
) -> None:
    needed, nothing = {"dependencies": [Depends(dependency)]}, dict[str, Any]()
    for of_endpoint, of_router, of_inclusion, where in (
        (needed, nothing, nothing, "/x (x)"),
        (nothing, needed, nothing, "/x (x)"),
        (nothing, nothing, needed, "/ (GuardedRouter)"),
    ):
        router = GuardedRouter(**of_router)
        router.add_api_route("/x", endpoint, name="x", **of_endpoint)
        router.add_api_websocket_route("/x", endpoint, name="x", **of_endpoint)
        api = on(GuardedAPI(keys), router, **of_inclusion)
        assert f" cannot read: {named} in {where}. " in await failure(api)
        await assert_refuses(api, keys.issue())


async def test_a_router_that_fastapi_cannot_read_stops_the_start_up(
    api: GuardedAPI, keys: Keys
) -> None:
    """Also if nothing is on it that FastAPI has dependencies for."""
    router = GuardedRouter(dependencies=[Depends(of_function)])
    router.mount("/mounted", Starlette())
    api.include_router(router, prefix="/v1")
    assert "caller of of_function in /v1 (GuardedRouter)" in await failure(api)
    with pytest.raises(UnguardedRouteError):
        await ask(api, keys.issue(), path="/v1/mounted/x")


def in_router(fill: Any) -> Any:
    return fill(GuardedRouter(prefix="/v1"))


def in_public_router(fill: Any) -> Any:
    return on(PublicRouter(), fill(PublicRouter()), prefix="/v1")


def in_guarded_router_in_public_one(fill: Any) -> Any:
    return on(PublicRouter(), fill(GuardedRouter()), prefix="/v1")


def in_plain_routers(fill: Any) -> Any:
    return on(GuardedRouter(), on(APIRouter(prefix="/v1"), fill(APIRouter())))


def in_mounted_application(fill: Any) -> Any:
    return on(GuardedRouter(prefix="/v1"), mounted_on(GuardedRouter(), fill(FastAPI())))


def in_mounted_router(fill: Any) -> Any:
    return mounted_on(PublicRouter(), on(FastAPI(), fill(GuardedRouter(prefix="/v1"))))


def in_mounted_middleware(fill: Any) -> Any:
    return mounted_on(GuardedRouter(), GZipMiddleware(GZipMiddleware(fill(FastAPI()))))


def in_mounted_mount(fill: Any) -> Any:
    return mounted_on(GuardedRouter(), Starlette(routes=[Mount("/v1", fill(APIRouter()))]))


def in_host(fill: Any) -> Any:
    router = GuardedRouter()
    router.host("service", fill(FastAPI()))
    return router


PLACES = pytest.mark.parametrize(
    ("make", "path"),
    [
        (in_router, "/v1/x"),
        (in_public_router, "/v1/x"),
        (in_guarded_router_in_public_one, "/v1/x"),
        (in_plain_routers, "/v1/x"),
        (in_mounted_application, "/v1/mounted/x"),
        (in_mounted_router, "/mounted/v1/x"),
        (in_mounted_middleware, "/mounted/x"),
        (in_mounted_mount, "/mounted/v1/x"),
        (in_host, "/x"),
    ],
)


@PLACES
async def test_wherever_an_endpoint_lies_it_is_read(
    api: GuardedAPI, keys: Keys, make: Callable[[Any], Any], path: str
) -> None:
    api.include_router(make(filled))
    assert f"caller in {path} (x)" in await failure(api)
    await assert_refuses(api, keys.issue(), path)


@PLACES
async def test_an_endpoint_that_comes_after_the_start_does_not_answer(
    api: GuardedAPI, keys: Keys, make: Callable[[Any], Any], path: str
) -> None:
    """The rest does, also if the start has never been run."""
    late: list[Any] = []

    def nothing_yet(router: Any) -> Any:
        late.append(router)
        return router

    secret, public, guarded = keys.issue(), PublicRouter(), GuardedRouter()
    public.add_api_route("/public", endpoint)
    guarded.add_api_route("/guarded", endpoint)
    on(api, public, guarded, make(nothing_yet))
    assert await status_of(api, secret, path=path) == 404

    filled(late[0])
    await assert_refuses(api, secret, path)
    assert await status_of(api, path="/public") == 200
    assert await status_of(api, secret, path="/guarded") == 200
    assert await status_of(api, path="/guarded") == MISSING_KEY_STATUS


async def test_a_bare_endpoint_that_comes_after_the_start_does_not_answer(
    api: GuardedAPI, keys: Keys
) -> None:
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    filled(api)
    await assert_refuses(api, keys.issue())


class Node(BaseModel):
    children: list["Node"] = []


class OfSignature:
    __signature__ = Signature([Parameter("key", Parameter.KEYWORD_ONLY, annotation=Known)])

    def __init__(self, **_: Any) -> None: ...


NEEDED: Any = Depends(endpoint)


def annotated_for_readers(_: "Item" = NEEDED) -> "Item":
    """FastAPI asks neither of the two what it is."""
    return {}


@functools.wraps(endpoint)
async def around_endpoint(*args: Any, **options: Any) -> str:
    return await endpoint(*args, **options)


async def readable(
    request: "HTTPConnection",
    node: "Annotated[Node, Body(embed=True)]",
    caller: "Annotated[Key, require('reports:read')]",
    other: "Known",
    _: Annotated["Item", Depends(annotated_for_readers)],
    of_signature: Annotated[OfSignature, Depends()],
    process: Annotated[int, Depends(os.getpid)],
    word: Annotated[Literal["a", "b"], "text, which is no annotation"] = "a",
    words: "Annotated[list[str] | None, Query()]" = None,
) -> "list[Node]":
    return [node]


async def test_what_fastapi_can_read_starts_and_answers(api: GuardedAPI, keys: Keys) -> None:
    class Local(BaseModel):
        name: str = ""

    async def of_local(local: Local) -> Local:
        return local

    router = GuardedRouter(dependencies=[Depends(annotated_for_readers)])
    for path, function in (("/1", readable), ("/2", of_local), ("/3", around_endpoint)):
        router.add_api_route(path, function, methods=["POST"])
    router.add_api_route("/4", with_return, methods=["POST"], response_model=None)
    router.add_api_websocket_route("/x", with_return)
    api.include_router(on(GuardedRouter(), router))
    assert (await start_up(api))["type"] == "lifespan.startup.complete"

    options: dict[str, Any] = {"method": "POST", "body": b'{"node": {"children": [{}]}}'}
    json = [(b"content-type", b"application/json")]
    for path in ("/1", "/2", "/3", "/4"):
        secret = keys.issue("reports:read")
        assert await status_of(api, secret, path=path, headers=json, **options) == 200
    assert await status_of(api, keys.issue(), path="/1", **options) == 403


# Where every key has all scopes, nothing asks for one.


def needs(*scopes: str) -> Callable[..., object]:
    def dependency(caller: Annotated[Key, Security(get_caller, scopes=scopes)]) -> None: ...

    return dependency


def asking(router: Any) -> Any:
    router.add_api_route("/x", endpoint, name="x", dependencies=[require("a")])
    router.add_api_websocket_route("/x", endpoint, name="x", dependencies=[Depends(needs("a"))])
    return router


@pytest.fixture
def equal_keys() -> Keys:
    keys = Keys()
    keys.has_scopes = False
    return keys


@PLACES
async def test_a_scope_that_restricts_nobody_stops_the_start_up(
    keys: Keys, equal_keys: Keys, make: Callable[[Any], Any], path: str
) -> None:
    api = on(GuardedAPI(equal_keys), make(asking))
    assert await failure(api) == (
        f"Scopes that restrict nobody: a for {path} (x). Every key has all of them: ask for none,"
        " and tell keys apart by `caller.id`."
    )
    await assert_refuses(api, equal_keys.issue("*"), path)
    api = on(GuardedAPI(keys), make(asking))
    assert (await start_up(api))["type"] == "lifespan.startup.complete"


@pytest.mark.parametrize(
    ("options", "of_router", "of_inclusion"),
    [
        ({"dependencies": [require("a")]}, {}, {}),
        ({}, {"dependencies": [require("a")]}, {}),
        ({}, {"dependencies": [Security(needs(), scopes=["a"])]}, {}),
        ({}, {}, {"dependencies": [Depends(needs("a"))]}),
    ],
)
async def test_a_scope_that_a_router_asks_of_everybody_stops_the_start_up(
    equal_keys: Keys, options: Any, of_router: Any, of_inclusion: Any
) -> None:
    router = GuardedRouter(**of_router)
    router.add_api_route("/x", endpoint, name="x")
    api = GuardedAPI(equal_keys, openapi_url=None, **options)
    api.include_router(router, **of_inclusion)
    assert "Scopes that restrict nobody: a for /" in await failure(api)
    with pytest.raises(UnguardedRouteError):
        await ask(api, equal_keys.issue("*"), path="/x")


async def test_scopes_of_another_scheme_are_its_own(equal_keys: Keys) -> None:
    """A key is not what they are asked of."""
    router = GuardedRouter()

    @router.get("/x", dependencies=[Security(endpoint, scopes=["a"]), Depends(get_caller)])
    async def with_other_scheme(caller: Caller) -> str:
        return caller.id

    api = on(GuardedAPI(equal_keys), router)
    assert (await start_up(api))["type"] == "lifespan.startup.complete"
    assert await status_of(api, equal_keys.issue("*"), path="/x") == 200


def test_a_dependency_is_seen_behind_the_names_of_types() -> None:
    inner = TypeAliasType("inner", Caller)
    assert _has_dependency(TypeAliasType("outer", inner))
    assert not _has_dependency(TypeAliasType("other", int))
