"""The OpenAPI document tells a caller what the service does."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final
from unittest.mock import patch

from fastapi import APIRouter, HTTPException
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from app.auth import Caller, GuardedAPI, GuardedRouter, PublicRouter, require
from app.auth.errors import StoreUnavailableError
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.callers import Answer, Keys, answer_of

REFUSALS = {str(MISSING_KEY_STATUS), "403", "503"}


def operations(api: GuardedAPI) -> Iterator[tuple[str, Any]]:
    for path, by_method in api.openapi()["paths"].items():
        for method, operation in by_method.items():
            yield f"{method} {path}", operation


async def endpoint() -> None: ...


async def with_a_name(name: str) -> None: ...


async def alone() -> None: ...


def filled(router: Any) -> Any:
    router.add_api_route("/items", endpoint)
    router.add_api_route("/items", endpoint, methods=["POST"])
    no_such_name: dict[int, Any] = {404: {"description": "No such name"}}
    router.add_api_route("/named/{name:path}", with_a_name, responses=no_such_name)
    router.add_api_route("/hidden", endpoint, include_in_schema=False)
    return router


def on(router: Any, inner: Any, prefix: str = "") -> Any:
    router.include_router(inner, prefix=prefix)
    return router


def test_guarded_operations_show_the_key_and_the_refusals(api: GuardedAPI) -> None:
    on(api, filled(GuardedRouter(prefix="/guarded")))
    on(api, on(GuardedRouter(), filled(APIRouter()), "/plain"))
    on(api, on(GuardedRouter(), on(APIRouter(), filled(APIRouter()), "/plain"), "/deep"))
    on(api, on(GuardedRouter(), filled(PublicRouter()), "/declared"))
    on(api, on(PublicRouter(), filled(GuardedRouter()), "/in-public"))
    on(api, on(PublicRouter(), on(GuardedRouter(), filled(APIRouter()), "/plain"), "/in-public"))
    filled(api)  # what has forgotten to say is guarded as well

    guarded = dict(operations(api))
    assert len(guarded) == 7 * 3
    assert not any("hidden" in name for name in guarded)
    for operation in guarded.values():
        assert operation["security"] == [{"APIKeyHeader": []}]
        assert operation["responses"].keys() >= REFUSALS | {"200"}
        for status in REFUSALS:
            assert "application/problem+json" in operation["responses"][status]["content"]
    assert "404" in guarded["get /deep/plain/named/{name}"]["responses"]
    assert api.openapi()["components"]["securitySchemes"] == {
        "APIKeyHeader": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER}
    }


def test_public_operations_show_neither(api: GuardedAPI) -> None:
    on(api, filled(PublicRouter()), "/public")
    on(api, on(PublicRouter(), filled(APIRouter()), "/plain"), "/public")
    on(api, filled(GuardedRouter()), "/guarded")

    public = {name: each for name, each in operations(api) if "public" in name}

    assert len(public) == 2 * 3
    for operation in public.values():
        assert operation["security"] == []
        assert not operation["responses"].keys() & REFUSALS
        assert "400" in operation["responses"]


def test_an_operation_is_told_from_one_that_looks_like_it(api: GuardedAPI) -> None:
    on(api, on(filled(PublicRouter()), filled(GuardedRouter()), "/guarded"))
    document = dict(operations(api))
    assert document["get /items"]["security"] == []
    assert document["get /guarded/items"]["security"] != []


def test_a_declared_page_is_public_in_the_document_too(keys: Keys) -> None:
    api = filled(GuardedAPI(keys, public_paths=["/items"]))
    document = dict(operations(api))
    assert document["get /items"]["security"] == []
    assert document["get /named/{name}"]["security"] != []


def test_what_an_operation_says_of_itself_stays(api: GuardedAPI) -> None:
    router = GuardedRouter()

    @router.get("/x", dependencies=[require("a:b")], responses={403: {"description": "Its own"}})
    async def endpoint(caller: Caller) -> None: ...

    api.include_router(router)
    operation = dict(operations(api))["get /x"]
    assert operation["security"] == [{"APIKeyHeader": ["a:b"]}]
    assert operation["responses"]["403"] == {"description": "Its own"}


async def test_a_refusal_is_what_the_document_says(api: GuardedAPI, keys: Keys) -> None:
    on(api, filled(GuardedRouter(dependencies=[require("scope")])))
    documented = dict(operations(api))["get /items"]["responses"]

    async def assert_documented(status: int, *secrets: bytes) -> Answer:
        answer = await answer_of(api, *secrets, path="/items")
        assert answer.status == status
        assert answer.header("content-type") in documented[str(status)]["content"]
        assert answer.header("cache-control") == "no-store"
        return answer

    await assert_documented(MISSING_KEY_STATUS)
    await assert_documented(403, keys.issue("other"))
    with patch.object(keys, "lookup", side_effect=StoreUnavailableError("The keys are away")):
        answer = await assert_documented(503, keys.issue("scope"))
    assert answer.header("retry-after") == "1"
    assert b"away" not in answer.body


async def test_what_the_router_refuses_has_the_media_type_of_the_refusals(
    api: GuardedAPI, keys: Keys
) -> None:
    router: GuardedRouter = filled(GuardedRouter())

    @router.get("/own")
    async def own() -> None:
        raise HTTPException(404, "No such thing")

    on(api, router)
    for path, method, status in (("/nothing", "GET", 404), ("/items", "DELETE", 405)):
        answer = await answer_of(api, keys.issue(), path=path, method=method)
        kind = answer.header("content-type")
        assert (answer.status, kind) == (status, "application/problem+json")
        assert answer.header("allow") == ("GET" if status == 405 else None)
    answer = await answer_of(api, keys.issue(), path="/own")
    assert (answer.status, answer.header("content-type")) == (404, "application/json")


async def test_an_application_may_answer_to_errors_by_itself(keys: Keys) -> None:
    async def answer_to(*_: object) -> PlainTextResponse:
        return PlainTextResponse("Not here", 404)

    api = GuardedAPI(keys, exception_handlers={StarletteHTTPException: answer_to})
    answer = await answer_of(api, keys.issue(), path="/nothing")
    assert (answer.status, answer.body) == (404, b"Not here")


def test_the_headers_of_refusals_and_of_policies_are_in_it(keys: Keys) -> None:
    class Policy:
        headers: Final = {"Left": {"schema": {"type": "integer"}}}

    policies: Any = [Policy(), object()]
    api = GuardedAPI(keys, policies=policies)
    on(api, filled(GuardedRouter(prefix="/guarded")))
    on(api, filled(PublicRouter(prefix="/public")))

    def headers_in(path: str) -> dict[str, set[str]]:
        responses = dict(operations(api))[f"get {path}"]["responses"]
        return {
            status: {*each["headers"]} for status, each in responses.items() if "headers" in each
        }

    told = {"200": {"Left"}, "429": {"Left", "Retry-After"}, "503": {"Retry-After"}}
    assert headers_in("/guarded/items") == headers_in("/guarded/named/{name}") == told
    assert headers_in("/public/items") == {}
    # No other application has the headers of this one's policies.
    assert "Left" not in GuardedAPI(keys, routes=api.routes).openapi().__repr__()


def test_an_operation_is_called_as_its_function_if_no_other_is(api: GuardedAPI) -> None:
    router = filled(GuardedRouter())
    router.add_api_route("/alone", alone, operation_id="explicit")
    on(api, on(PublicRouter(), router), "/v1")

    ids = {name: each["operationId"] for name, each in operations(api)}

    assert len({*ids.values()}) == len(ids) == 4
    assert ids["get /v1/named/{name}"] == "with_a_name"
    assert ids["get /v1/alone"] == "explicit"
    # As FastAPI has them.
    assert ids["get /v1/items"] == "endpoint_v1_items_get"
    assert ids["post /v1/items"] == "endpoint_v1_items_post"


def test_every_operation_has_a_tag_and_every_tag_a_description(keys: Keys) -> None:
    tags = [{"name": "Mine", "description": "To test"}, {"name": "Public", "description": "Open"}]
    api = GuardedAPI(keys, openapi_tags=tags)
    on(api, on(filled(GuardedRouter()), filled(PublicRouter(tags=["Mine"])), "/tagged"))
    on(api, filled(PublicRouter()), "/public")

    for name, operation in operations(api):
        kind = "Public" if "/public" in name else "Mine" if "/tagged" in name else "Guarded"
        assert operation["tags"] == [kind]
    described = api.openapi()["tags"]
    assert [tag["name"] for tag in described] == ["Guarded", "Mine", "Public"]
    assert described[1:] == tags
    assert described[0]["description"]


def test_a_refusal_has_a_schema_with_a_name(api: GuardedAPI) -> None:
    on(api, filled(GuardedRouter()))
    document = api.openapi()
    refusal = dict(operations(api))["get /items"]["responses"]["503"]
    name = refusal["content"]["application/problem+json"]["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][name]["required"] == ["detail"]


def test_the_document_is_made_once_and_anew_for_new_routes(api: GuardedAPI) -> None:
    api.add_api_route("/first", alone)
    assert api.openapi() is api.openapi()
    on(api, filled(GuardedRouter()))
    for operation in dict(operations(api)).values():
        assert operation["security"]
        assert operation["responses"].keys() >= REFUSALS


def test_a_stream_makes_it_the_version_that_has_streams(api: GuardedAPI) -> None:
    async def lines() -> AsyncIterator[int]:
        yield 1

    on(api, filled(GuardedRouter(prefix="/plain")))
    assert api.openapi()["openapi"] == "3.1.0"
    router = GuardedRouter(prefix="/streams")
    router.add_api_route("/lines", lines)
    on(api, router)
    assert '"itemSchema": {"type": "integer"' in json.dumps(api.openapi())
    assert api.openapi()["openapi"] == "3.2.0"


def test_where_bodies_are_bounded_every_operation_tells_of_413(keys: Keys) -> None:
    for bound, told in ((None, False), (0, True), (10, True)):
        api = GuardedAPI(keys, max_body_size=bound)
        on(api, filled(GuardedRouter(prefix="/guarded")))
        on(api, filled(PublicRouter(prefix="/public")))
        for _, operation in operations(api):
            assert ("413" in operation["responses"]) == told
            if told:
                assert operation["responses"]["413"]["content"].keys() == {"text/plain"}
