"""The page `/console` comes from this service alone, or not at all."""

import re
from html import unescape
from pathlib import Path

import httpx

from app import console
from app.constants import API_KEY_HEADER, TITLE

STATIC = Path(console.__file__).parent / "static"


async def test_the_console_is_public_and_names_the_service(client: httpx.AsyncClient) -> None:
    assert (await client.head("/console")).status_code == 200
    page = unescape((await client.get("/console")).text)
    assert f"<title>Keys of {TITLE}</title>" in page
    assert f'<meta name="key-header" content="{API_KEY_HEADER}">' in page


async def test_the_console_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/console")
    assert page.headers["cache-control"] == "no-store"
    loaded = re.findall(r'(?:src|href)="(?!data:|#)(.+?)"', page.text)
    folder = loaded[0].rpartition("/")[0]
    assert loaded == [f"{folder}/console.css", f"{folder}/console.js"]
    assert folder.startswith("console/")  # relative, so that it holds behind a proxy's prefix
    for path in STATIC.iterdir():
        file = await client.get(f"/{folder}/{path.name}")
        assert file.status_code == 200
        assert file.headers["content-type"].startswith(("text/javascript", "text/css"))
        text = file.text
        for name in re.findall(r' from "(.+?)"', text):
            assert (STATIC / name).is_file()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"https?://|cookie|localStorage|sessionStorage|indexedDB", text)

    policy = page.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert "require-trusted-types-for 'script'" in policy
    for rule in policy:
        assert set(rule.split()[1:]) <= {"'none'", "'self'", "data:", "'script'"}
