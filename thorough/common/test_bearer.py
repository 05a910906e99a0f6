"""With ACCEPT_BEARER, `Authorization: Bearer KEY` counts as the header of the key, and as no more."""

from typing import Annotated, Any

import pytest
from fastapi import Header, Request

from app.auth import GuardedAPI, GuardedRouter, PublicRouter, require
from app.constants import MISSING_KEY_STATUS
from app.main import create_app
from app.settings import load_settings
from tests.callers import HEADER, Keys, answer_of, status_of

REFUSED = MISSING_KEY_STATUS
BASIC = b"Basic YTpi"


async def endpoint(
    request: Request, authorization: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    return {"authorization": authorization, "headers": f"{request.headers!r}"}


def with_endpoints(api: GuardedAPI) -> GuardedAPI:
    router, public = GuardedRouter(), PublicRouter()
    router.add_api_route("/x", endpoint)
    public.add_api_route("/public", endpoint)
    scoped = GuardedRouter()
    scoped.add_api_route("/scoped", endpoint, dependencies=[require("a:b")])
    for each in (router, public, scoped):
        api.include_router(each)
    return api


@pytest.fixture
def store() -> Keys:
    return Keys()


@pytest.fixture
def accepting(store: Keys) -> GuardedAPI:
    return with_endpoints(GuardedAPI(store, accept_bearer=True))


async def sent(api: GuardedAPI, *headers: tuple[bytes, bytes], path: str = "/x") -> int:
    return await status_of(api, path=path, headers=headers)


async def test_a_bearer_is_a_key_where_the_setting_says_so(
    store: Keys, accepting: GuardedAPI
) -> None:
    key = store.issue()
    for scheme in (b"Bearer ", b"bearer ", b"BEARER   "):
        header = (b"authorization", scheme + key)
        assert await sent(accepting, header) == 200
        assert await sent(with_endpoints(GuardedAPI(store)), header) == REFUSED
    for value in (b"Bearer" + key, b"Bearer", b"Bearer ", b"Basic " + key, b"Token " + key, key):
        assert await sent(accepting, (b"authorization", value)) == REFUSED
    for other in (b"proxy-authorization", b"cookie", b"x-authorization"):
        assert await sent(accepting, (other, b"Bearer " + key)) == REFUSED


async def test_there_is_exactly_one_key(store: Keys, accepting: GuardedAPI) -> None:
    key, other = store.issue(), store.issue()
    bearer, header = (b"authorization", b"Bearer " + key), (HEADER, key)
    for two in ((bearer, header), (header, bearer), (bearer, bearer), (bearer, (HEADER, other))):
        assert await sent(accepting, *two) == REFUSED
    assert await sent(accepting, (b"authorization", BASIC), header) == 200
    assert await sent(accepting, (b"authorization", BASIC), bearer) == 200


@pytest.mark.parametrize("path", ["/x", "/public"])
async def test_what_was_used_as_the_key_is_gone_and_other_credentials_stay(
    store: Keys, accepting: GuardedAPI, path: str
) -> None:
    key = store.issue()
    headers = [(b"authorization", b"Bearer " + key), (b"authorization", BASIC)]
    answer = await answer_of(accepting, path=path, headers=headers)
    assert key not in answer.body
    assert b'"authorization":"Basic YTpi"' in answer.body


async def test_the_document_offers_both(store: Keys, accepting: GuardedAPI) -> None:
    document = accepting.openapi()
    assert document["components"]["securitySchemes"].keys() == {"APIKeyHeader", "Bearer"}
    security = {path: item["get"]["security"] for path, item in document["paths"].items()}
    assert security == {
        "/x": [{"APIKeyHeader": []}, {"Bearer": []}],
        "/scoped": [{"APIKeyHeader": ["a:b"]}, {"Bearer": ["a:b"]}],
        "/public": [],
    }


async def test_the_setting_reaches_the_service(
    monkeypatch: pytest.MonkeyPatch, secrets: list[str]
) -> None:
    monkeypatch.setenv("ACCEPT_BEARER", "true")
    api = with_endpoints(create_app(load_settings()))
    assert await sent(api, (b"authorization", f"Bearer {secrets[0]}".encode())) == 200
