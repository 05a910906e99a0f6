"""`/docs` of a generated service, in a real browser: `make browser`."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page

from tests.browser import HOST, new_page, watched
from tests.project import FLAVOURS, ROOT, TOP, Project, render, run

pytestmark = [pytest.mark.slow, pytest.mark.browser]

STATIC = "app/docs/static"


@pytest.fixture(scope="module", params=FLAVOURS)
def project(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    project = render(template, tmp_path_factory.mktemp("docs"), {"key_store": request.param})
    project.run("uv", "sync", "--quiet", "--no-dev")
    return project


@pytest.fixture
def page() -> Iterator[Page]:
    with new_page(viewport={"width": 960, "height": 800}) as page:
        yield page


def authorize(page: Page, key: str) -> None:
    page.get_by_role("button", name="Authorize").click()
    page.locator(".auth-container input").fill(key)
    page.locator(".auth-container").get_by_role("button", name="Apply credentials").click()
    page.locator(".auth-container").get_by_role("button", name="Close").click()


def call_secure_endpoint(page: Page) -> str:
    return execute(page, "secure_endpoint")


def execute(page: Page, name: str, id: str = "") -> str:
    """The status that Swagger UI shows for a request whose body nobody has edited."""
    operation = page.locator(f'.opblock[id$="-{name}"]')
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    if id:
        operation.get_by_placeholder("id").fill(id)
    operation.get_by_role("button", name="Execute").click()
    return operation.locator(".live-responses-table .response td").first.inner_text()


@pytest.mark.parametrize("prefix", ["", "/shop"])
def test_a_caller_authorizes_and_calls_in_a_browser_without_a_network(
    project: Project, page: Page, prefix: str
) -> None:
    server = ("uv", "run", "--no-sync", "uvicorn", "app.main:app", "--port", "{port}")
    with project.serving(*server, "--root-path", prefix) as url:
        docs = f"http://{HOST}:{urlsplit(url).port}{prefix}/docs"
        complaints = watched(page, prefix)
        page.goto(docs)
        authorize(page, project.keys[0])
        assert call_secure_endpoint(page) == "200"
        assert page.title() == "My API Service"
        assert complaints == []
        if not prefix:
            show(page)

        # The key is nowhere but in this page.
        kept = "[localStorage.length, sessionStorage.length, document.cookie]"
        assert page.evaluate(kept) == [0, 0, ""]
        page.goto("about:blank")
        page.goto(docs)
        assert call_secure_endpoint(page) == "403"


def test_a_sample_that_nobody_edits_does_what_the_defaults_do(
    template: Path, tmp_path: Path, page: Page
) -> None:
    project = render(template, tmp_path, {"management": "yes", "limits": "yes"})
    project.run("uv", "sync", "--quiet", "--no-dev")
    server = ("uv", "run", "--no-sync", "uvicorn", "app.main:app", "--port", "{port}")
    with project.serving(*server, KEY_MAX_STALENESS="0.1") as url:
        page.goto(f"{url}/docs")
        authorize(page, project.keys[0])
        assert execute(page, "create_key") == "201"
        (made,) = [key for key in project.manage_keys("list") if key["name"] == "billing"]
        assert (made["status"], made["scopes"], made["limits"]) == ("active", [], [])
        assert execute(page, "rotate_key", made["id"]) == "200"
        assert project.manage_keys("show", made["id"])["old_key_expires_at"]
        # A second time it would end a secret that is in use.
        rotate = page.locator('.opblock[id$="-rotate_key"]')
        rotate.get_by_role("button", name="Execute").click()
        rotate.locator(".live-responses-table", has_text="409").wait_for()
        assert project.manage_keys("show", made["id"])["old_key_expires_at"]
        assert execute(page, "revoke_key", made["id"]) == "200"


def show(page: Page) -> None:
    """Keep a picture, as `docs/swagger-ui.png` is one, without the key."""
    page.locator(".curl-command").evaluate("element => element.remove()")
    answer = page.locator(".live-responses-table").bounding_box()
    assert answer
    page.set_viewport_size({"width": 960, "height": int(answer["y"] + answer["height"])})
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / "swagger-ui.png")


def test_the_wheel_has_the_files(project: Project, tmp_path: Path) -> None:
    project.run("uv", "build", "--quiet", "--wheel", "--out-dir", f"{tmp_path}")
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {f"{STATIC}/{path.name}" for path in (project.path / STATIC).iterdir()}


def test_the_files_are_those_of_the_package(tmp_path: Path) -> None:
    ours = ROOT / TOP / STATIC
    bundle = (ours / "swagger-ui-bundle.js").read_text("utf-8")
    (version,) = re.findall(r'PACKAGE_VERSION:"([\d.]+)"', bundle)
    run("npm", "install", "--ignore-scripts", f"swagger-ui-dist@{version}", cwd=tmp_path)
    package = tmp_path / "node_modules" / "swagger-ui-dist"
    css, js, *licences = (
        (package / name).read_text("utf-8")
        for name in (
            *("swagger-ui.css", "swagger-ui-bundle.js"),
            *("LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"),
        )
    )
    assert (ours / "swagger-ui.css").read_text("utf-8") == css
    assert bundle.endswith(js)
    comments = bundle.removesuffix(js)  # they hold the licences
    assert f"swagger-ui-dist {version}." in comments
    assert all(licence in comments for licence in licences)
    assert re.sub(r"/\*.*?\*/|\s", "", comments, flags=re.DOTALL) == ""
