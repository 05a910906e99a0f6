"""The page `/console` comes from this service alone, or not at all."""

import re
from html import unescape

import httpx

from app.constants import API_KEY_HEADER, TITLE


async def scripts_of(client: httpx.AsyncClient, name: str) -> dict[str, str]:
    """A module and all that it imports, by their paths."""
    found, wanted = {}, [name]
    while wanted:
        path = wanted.pop()
        if path not in found:
            file = await client.get(f"/{path}")
            assert file.status_code == 200, path
            assert file.headers["content-type"].startswith("text/javascript")
            found[path] = file.text
            folder = path.rpartition("/")[0]
            wanted += [f"{folder}/{name}" for name in re.findall(r'from "\./(.+?)"', file.text)]
    return found


async def script_of(client: httpx.AsyncClient) -> str:
    """The path of the one that the page begins with."""
    (path,) = re.findall(r'<script type="module" src="(.+?)">', (await client.get("/console")).text)
    return f"{path}"


async def test_the_console_is_public_and_names_the_service(client: httpx.AsyncClient) -> None:
    assert (await client.head("/console")).status_code == 200
    page = unescape((await client.get("/console")).text)
    assert f"<title>Keys of {TITLE}</title>" in page
    assert f'<meta name="key-header" content="{API_KEY_HEADER}">' in page


async def test_the_console_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/console")
    assert page.headers["cache-control"] == "no-store"
    script, style = await script_of(client), "console.css"
    loaded = re.findall(r'(?:src|href)="(?!data:|#)(.+?)"', page.text)
    assert sorted(loaded) == sorted([script, f"{script.rpartition('/')[0]}/{style}"])
    for name in loaded:
        assert not name.startswith(("/", "http"))  # so that it holds behind a proxy's prefix
        assert (await client.get(f"/{name}")).status_code == 200
    scripts = await scripts_of(client, script)
    assert len(scripts) > 1
    for text in scripts.values():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"https?://|cookie|localStorage|sessionStorage|indexedDB", text)

    policy = page.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert "require-trusted-types-for 'script'" in policy
    for rule in policy:
        assert set(rule.split()[1:]) <= {"'none'", "'self'", "data:", "'script'"}
