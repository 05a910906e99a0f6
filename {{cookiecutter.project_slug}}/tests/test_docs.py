"""The page `/docs` comes from this service alone, or not at all."""

import re
from importlib.metadata import version

import httpx
import pytest

from app.auth import GuardedAPI
from app.constants import COMMAND, TITLE
from app.settings import load_settings
from tests.callers import answer_of, make_service


async def test_the_docs_are_public_and_name_the_service(client: httpx.AsyncClient) -> None:
    assert (await client.head("/docs")).status_code == 200
    info = (await client.get("/openapi.json")).json()["info"]
    assert info["title"] == TITLE
    assert info["version"] == version(COMMAND)


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
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    for rule in policy:
        assert set(rule.split()[1:]) <= {"'none'", "'self'", "data:"}


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui.css", "/openapi.json"])
async def test_hidden_docs_are_like_any_path_that_is_not_there(
    path: str, secrets: list[str], service: GuardedAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOW_DOCS", "false")
    hiding = make_service(load_settings())
    for key in ([], [secrets[0].encode()]):
        shown, hidden, unknown = [
            await answer_of(app, *key, path=name, body=b"")
            for app, name in ((service, path), (hiding, path), (hiding, "/not-there"))
        ]
        assert shown.status == 200
        assert (hidden.status, hidden.body) == (unknown.status, unknown.body)
