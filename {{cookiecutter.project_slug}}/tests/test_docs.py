"""The page `/docs` comes from this service alone, or not at all; the document says who needs a key."""

import re
from importlib.metadata import version
from typing import Any

import httpx
import pytest

from app.auth import GuardedAPI, GuardedRouter, PublicRouter
from app.constants import API_KEY_HEADER, COMMAND, MISSING_KEY_STATUS, TITLE
from app.settings import load_settings
from tests.callers import answer_of, make_service, on, with_endpoints


async def test_the_docs_are_public_and_name_the_service(client: httpx.AsyncClient) -> None:
    assert (await client.head("/docs")).status_code == 200
    info = (await client.get("/openapi.json")).json()["info"]
    assert (info["title"], info["version"]) == (TITLE, version(COMMAND))


async def test_the_docs_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    loaded = re.findall(r'(?:src|href)="(?!data:)(.+?)"', page.text)
    assert len(loaded) == 3
    for name in loaded:
        assert not name.startswith(("/", "http"))  # so that it holds behind a proxy's prefix
        file = await client.get(f"/{name}")
        assert file.status_code == 200
        again = await client.get(f"/{name}", headers={"If-None-Match": file.headers["etag"]})
        assert again.status_code == 304
    policy = page.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
    for rule in policy:
        assert set(rule.split()[1:]) <= {"'none'", "'self'", "data:"}


async def test_hidden_docs_are_not_there(
    service: GuardedAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOW_DOCS", "false")
    hiding = make_service(load_settings())
    unknown = await answer_of(hiding, path="/not-there")
    for path in ("/docs", "/docs/swagger-ui.css", "/openapi.json"):
        assert (await answer_of(service, path=path, body=b"")).status == 200
        hidden = await answer_of(hiding, path=path)
        assert (hidden.status, hidden.body) == (unknown.status, unknown.body)


def test_the_document_says_which_operations_need_a_key_and_how_they_refuse(api: GuardedAPI) -> None:
    def operation(path: str) -> Any:
        return api.openapi()["paths"][path]["get"]

    on(api, on(with_endpoints(PublicRouter()), with_endpoints(GuardedRouter()), prefix="/v1"))
    assert operation("/x")["security"] == []
    assert operation("/v1/x")["security"] == [{"APIKeyHeader": []}]
    refusals = {f"{MISSING_KEY_STATUS}", "403", "429", "503"}
    assert operation("/v1/x")["responses"].keys() >= refusals
    assert not operation("/x")["responses"].keys() & refusals
    on(api, with_endpoints(GuardedRouter(prefix="/later")))
    assert operation("/later/x")["security"] == [{"APIKeyHeader": []}]
    scheme = {"type": "apiKey", "in": "header", "name": API_KEY_HEADER}
    assert api.openapi()["components"]["securitySchemes"]["APIKeyHeader"] == scheme
