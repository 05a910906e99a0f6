"""A generated project, installed, checked, started and called as its owner would."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.project import (
    EVERYTHING,
    ROOT,
    UUID4,
    Project,
    environment,
    get,
    render,
    with_tools,
)

pytestmark = pytest.mark.slow

ODD = {
    "missing_key_status": "401",
    "project_name": "O'Brien's \"🔑\" \\ Gateway",
    "description": "Quotes \" and ' and \\ and 🔑",
    "author_name": 'Ann "A." O\'Brien',
    "api_key_header": "X-API-Key",
}

UVICORN = ("uv", "run", "uvicorn", "app.main:app", "--port", "{port}")

# No part, or every one.
COMBINATIONS: dict[str, dict[str, str]] = {
    "defaults": {},
    "env": {"key_store": "env"},
    "401": {**EVERYTHING["database"], **ODD},
    "env-401": {**EVERYTHING["env"], **ODD},
}

# The thorough tests that depend on the header or on the status.
OF_THE_ANSWERS = ("access", "any_bytes", "guard", "guesses", "openapi", "scopes", "traces")


# Each combination is installed once, in the one worker that runs its tests.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in COMBINATIONS],
)
def answers(request: pytest.FixtureRequest) -> dict[str, str]:
    return COMBINATIONS[request.param]


@pytest.fixture(scope="module")
def project(answers: dict[str, str], template: Path) -> Iterator[Project]:
    # Not in pytest's folder: each pytest that starts closes that to the user PostgreSQL runs as.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder), answers)
        project.run("git", "init", "--quiet")
        project.run("git", "add", "--all")
        project.run("uv", "sync", "--quiet")
        yield project


@pytest.fixture(scope="module")
def key_store(answers: dict[str, str]) -> str:
    return answers.get("key_store", "database")


@pytest.fixture(scope="module")
def header(answers: dict[str, str]) -> str:
    return answers.get("api_key_header", "api-key")


@pytest.fixture(scope="module")
def status(answers: dict[str, str]) -> int:
    return int(answers.get("missing_key_status", 403))


def get_raw(url: str, *headers: bytes) -> int:
    """The status for header lines that a well-behaved client would not send."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        lines = [f"GET {address.path} HTTP/1.1".encode(), b"Host: service", *headers, b"", b""]
        connection.sendall(b"\r\n".join(lines))
        return int(connection.makefile("rb").readline().split()[1])


# What an owner makes of the examples.
ROUTES = """from app.auth import Caller, GuardedRouter, PublicRouter

public = PublicRouter()
guarded = GuardedRouter()


@guarded.get("/reports")
async def reports(caller: Caller) -> str:
    return caller.id
"""
TEST_ROUTES = """import httpx

from app.constants import API_KEY_HEADER


async def test_reports(client: httpx.AsyncClient, secrets: list[str], ids: list[str]) -> None:
    answer = await client.get("/reports", headers={API_KEY_HEADER: secrets[0]})
    assert answer.json() == ids[0]
"""


def test_its_own_tests_pass(project: Project, answers: dict[str, str]) -> None:
    """Half of the combinations have other endpoints and no page `/docs`. There the thorough tests
    of what the answers decide pass as well."""
    if not answers.get("missing_key_status"):
        check_suite(project, "uv", "run", "pytest")
        return
    with replaced(project, {"app/routes.py": ROUTES, "tests/test_routes.py": TEST_ROUTES}):
        with without_docs(project):
            check_suite(project, "uv", "run", "pytest")
            project.run("uv", "run", "ruff", "check")
            project.run("uv", "run", "mypy")
        flavour = answers["key_store"]
        with thorough(project, flavour):
            tests = [f"tests/thorough/test_{name}.py" for name in OF_THE_ANSWERS]
            check_suite(project, *with_tools(flavour, "pytest", *tests, "-k", "not postgresql"))


@contextmanager
def replaced(project: Project, texts: dict[str, str]) -> Iterator[None]:
    before = {name: project.read(name) for name in texts}
    try:
        for name, text in texts.items():
            (project.path / name).write_text(text, "utf-8")
        yield
    finally:
        for name, text in before.items():
            (project.path / name).write_text(text, "utf-8")


@contextmanager
def without_docs(project: Project) -> Iterator[None]:
    """As the module of the page says, to the letter."""
    _, told, *_ = project.read("app/docs/__init__.py").split('"""')
    named = re.findall("`([^`/]+\\.py)`", told)
    gone = ["app/docs", *re.findall("`(tests/.+?)`", told)]
    assert len(named) == 1 < len(gone), told
    # Whether the OpenAPI document is hidden is another matter.
    line = r"(?m)^(?!.*openapi_url).*\b(show_)?docs\b.*\n"
    texts = {
        name: re.sub(line, "", project.read(name)) for name in (f"app/{each}" for each in named)
    }
    with TemporaryDirectory(dir=project.path.parent) as folder, replaced(project, texts):
        kept = {name: Path(folder, f"{number}") for number, name in enumerate(gone)}
        for name, place in kept.items():
            (project.path / name).rename(place)
        try:
            yield
        finally:
            for name, place in kept.items():
                place.rename(project.path / name)


@contextmanager
def thorough(project: Project, flavour: str) -> Iterator[None]:
    folder = project.lay_thorough(flavour)
    try:
        yield
    finally:
        shutil.rmtree(folder)


def check_suite(project: Project, *command: str) -> None:
    result = project.run(*command)
    assert re.search(r"\d+ passed", result.stdout), result.stdout
    assert not re.search(r"skipped|xfailed|warning", result.stdout.splitlines()[-1])


def test_it_is_clean_and_typed(project: Project) -> None:
    project.run("uv", "run", "ruff", "check")
    project.run("uv", "run", "ruff", "format", "--check")
    project.run("uv", "run", "mypy")


def test_its_hooks_pass_and_refuse_a_key(project: Project, key_store: str, header: str) -> None:
    project.run("uv", "run", "pre-commit", "run", "--all-files")
    # Neither did they have anything to repair.
    assert project.run("git", "diff", "--stat").stdout == ""

    first, second = project.keys
    stranger, order = (str(uuid4()) for _ in range(2))
    if key_store == "database":
        project.run("uv", "run", project.command, "db", "upgrade")
    create = ["create", "client"] if key_store == "database" else ["create"]
    made = project.manage_keys(*create)
    prefixed = project.manage_keys(*create, KEY_PREFIX="acme")
    assert prefixed["key"].startswith("acme_")
    refused = [
        *(f"the key is {key}." for key in (first, second.upper(), made["key"], prefixed["key"])),
        f"{header}: {stranger}",
    ]
    allowed = [f"order {order}", f"{header}: {order} not-a-key", "API_KEYS="]
    files = {"notes.txt": "utf-8", "powershell.txt": "utf-16"}
    for name, encoding in files.items():
        (project.path / name).write_text("\n".join([*refused, *allowed, ""]), encoding)
    project.run("git", "add", "--force", ".env", *files)
    result = project.run("uv", "run", "pre-commit", "run", "--all-files", check=False)
    project.run("git", "rm", "--quiet", "--cached", ".env", *files)
    for name in files:
        (project.path / name).unlink()
    assert result.returncode == 1
    for hook in ("no .env file", "no API key"):
        assert re.search(rf"^{re.escape(hook)}\.+Failed$", result.stdout, re.MULTILINE)
    for name in files:
        told = re.findall(rf"^{name}:(\d+): key \S+ \(", result.stdout, re.MULTILINE)
        assert told == [f"{line}" for line, _ in enumerate(refused, start=1)]
    for key in (first, second.upper(), made["key"], prefixed["key"], stranger):
        assert key not in result.stdout
    for id in (made["id"], prefixed["id"]):
        project.manage_keys("revoke", id)


@pytest.mark.parametrize(
    "server",
    [
        "uv run uvicorn app.main:app --port {port}",
        "uv run fastapi run --port {port}",
        "uv run fastapi dev --port {port}",
    ],
)
def test_it_serves_and_guards(project: Project, header: str, status: int, server: str) -> None:
    refusal = {"detail": "Invalid or missing API Key"}
    first, second = project.keys
    stranger = "0b0d9a52-6c1c-4f4e-9a53-7f6f1b8f7a11"  # not-a-key

    with project.serving(*server.split()) as url:
        assert get(url)[0::2] == (200, '{"Hello":"World"}')
        for path in ("/health/live", "/health/ready", "/docs", "/openapi.json"):
            assert get(url + path)[0] == 200
        guarded = f"{url}/secure-endpoint"
        for key in (first, second):
            assert get(guarded, {header: key})[0::2] == (200, '{"message":"You have access!"}')
        for headers in ({}, {header: stranger}, {header: first.upper()}, {header: ""}):
            code, received, body = get(guarded, headers)
            assert (code, json.loads(body)) == (status, refusal)
            assert received["content-type"] == "application/problem+json"
            assert received.get("www-authenticate") == ("APIKey" if status == 401 else None)
        line = f"{header}: {first}".encode()
        assert get_raw(guarded, line) == 200
        assert get_raw(guarded, line, line) == status
        assert get_raw(guarded, f"{header}: ".encode() + b"\xe9\xff") == status
        assert get_raw(guarded, line + b"\xe9") == status


def test_a_running_service_follows_the_keys_command(
    project: Project, key_store: str, header: str, status: int
) -> None:
    kept = project.read(".env")
    create = (
        ["create", "client", "--scope", "reports:read"] if key_store == "database" else ["create"]
    )
    rotate = ["--overlap", "0s"] if key_store == "database" else []
    with project.serving(*UVICORN) as url:
        guarded = f"{url}/secure-endpoint"
        made = project.manage_keys(*create)
        wait_until_let_in(guarded, {header: made["key"]})
        assert made["id"] in {key["id"] for key in project.manage_keys("list")}
        rotated = project.manage_keys("rotate", made["id"], *rotate)
        assert get(guarded, {header: made["key"]})[0] == status
        wait_until_let_in(guarded, {header: rotated["key"]})
        project.manage_keys("revoke", rotated["id"])
        assert get(guarded, {header: rotated["key"]})[0] == status
    assert project.read(".env") == kept


def test_keys_are_managed_over_http_too(
    project: Project, answers: dict[str, str], header: str, status: int
) -> None:
    with project.serving(*UVICORN) as url:
        if not answers.get("management"):
            assert get(f"{url}/api-keys")[0] == 404
            return
        assert get(f"{url}/api-keys")[0] == status
        code, _, body = get(f"{url}/api-keys", {header: project.keys[0]})
        assert code == 200
        assert {key["id"][:4] for key in json.loads(body)["items"]} >= {"env-"}


def wait_until_let_in(url: str, headers: Mapping[str, str]) -> None:
    """At once, but a busy machine takes its time."""
    deadline = time.monotonic() + 30
    while get(url, headers)[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_env_it_says_what_to_do_or_needs_none(
    project: Project, key_store: str, header: str, tmp_path: Path
) -> None:
    (project.path / ".env").rename(tmp_path / "kept")
    try:
        if key_store == "database":
            project.run("uv", "run", project.command, "db", "upgrade")
            made = project.manage_keys("create", "first")
            with project.serving("uv", "run", "fastapi", "run", "--port", "{port}") as url:
                assert get(f"{url}/secure-endpoint", {header: made["key"]})[0] == 200
            return
        for server in ("uvicorn app.main:app", "fastapi run"):
            result = project.run("uv", "run", *server.split(), check=False)
            assert result.returncode == 3  # so that no supervisor starts it again
            assert (
                f"API_KEYS is not set; make a key with: uv run {project.command} keys create"
                in (result.stderr)
            )
            assert "Traceback" not in result.stdout + result.stderr
        project.run("uv", "run", project.command, "keys", "create")
        assert UUID4.search(project.read(".env"))
    finally:
        (tmp_path / "kept").replace(project.path / ".env")


# Of many wrong keys from one address, most get 429, which is not what schemathesis expects. A busy
# machine may stop a server for longer than the staleness, for which revocations would wait.
PATIENT = """
import asyncio, sys, uvicorn
from importlib.util import find_spec
from app.auth.access import clients
clients.BURST = 10**9
if find_spec("app.management"):
    from app.management import router
    router.sleep = lambda _: asyncio.sleep(0.1)
uvicorn.run("app.main:app", port=int(sys.argv[1]))
"""


def test_strangers_and_callers_see_what_the_document_says(
    project: Project, header: str, key_store: str
) -> None:
    server = ("uv", "run", "python", "-c", PATIENT, "{port}")
    settings = {"KEY_MAX_STALENESS": "10"}
    if key_store == "database":
        settings["DATABASE_URL"] = "sqlite:///fuzz.db"  # what gets in there is anybody's guess
    with project.serving(*server, **settings) as url:
        common = ("uvx", "schemathesis>=4.32,<5", "run", f"{url}/openapi.json", "--no-color")
        checks = "not_a_server_error,status_code_conformance,content_type_conformance"
        more = ",response_schema_conformance,ignored_auth"
        for key in ([], ["--header", f"{header}: {project.keys[0]}"]):
            project.run(*common, "--checks", checks + more, "--max-examples", "20", *key)


def test_names_that_the_environment_needs_are_taken(project: Project) -> None:
    hook = (ROOT / "hooks" / "pre_gen_project.py").read_text(encoding="utf-8")
    taken = set(hook.partition("TAKEN = ")[2].partition(".split()")[0].split())
    lock = tomllib.loads(project.read("uv.lock"))
    installed = {package["name"] for package in lock["package"]}
    scripts = {
        path.name
        for path in (project.path / ".venv" / ("Scripts" if os.name == "nt" else "bin")).iterdir()
        if re.fullmatch(r"[a-z0-9-]+", path.name)  # what a slug can be
    }
    assert (installed | scripts) - {project.command} <= taken


def test_from_a_key_in_a_screenshot_to_its_replacement_by_the_readme(
    project: Project, header: str, status: int, key_store: str
) -> None:
    [(find, replace)] = re.findall(
        r"```console\n(.+ keys scan -)\n(.+ keys rotate ID.*)\n```", project.read("README.md")
    )
    of_database = key_store == "database"
    with ExitStack() as servers:
        urls = [servers.enter_context(project.serving(*UVICORN)) for _ in range(2)]
        made = project.manage_keys("create", *["billing"] * of_database)
        assert [get(f"{url}/secure-endpoint", {header: made["key"]})[0] for url in urls] == [
            200
        ] * 2

        seen = f"Look what I found: {made['key']}, is it yours?"
        found = subprocess.run(
            find.split(),
            input=seen,
            cwd=project.path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        (id,) = re.findall(r"key (\S+) \(known\)", found.stdout)
        assert id == made["id"]
        replaced = json.loads(project.run(*replace.replace("ID", id).split(), "--json").stdout)

        for url in urls:
            assert get(f"{url}/secure-endpoint", {header: made["key"]})[0] == status
            assert get(f"{url}/secure-endpoint", {header: replaced["key"]})[0] == 200
    if of_database:
        audit = project.manage_keys("audit", id)
        assert [event["action"] for event in audit] == ["created", "rotated"]
        assert replaced["id"] == id
