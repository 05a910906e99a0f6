"""What people feed the OpenAPI document to takes it: linters, makers of clients, schemathesis.

A linter complains of nothing, a client that was made compiles and calls, and the service does what
its document says: `make add-ons`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.project import Project, get, render, run
from tests.reader import blocks, chapter, page

pytestmark = [pytest.mark.slow, pytest.mark.add_ons]

COMBINATIONS = {
    "database": {"management": "yes", "limits": "yes", "gateway": "yes"},
    "database-401": {"missing_key_status": "401", "api_key_header": "X-API-Key"},
    "env": {"key_store": "env"},
    "env-401": {
        "key_store": "env",
        "missing_key_status": "401",
        "project_name": "O'Brien's \"🔑\" \\ Gateway",
        "author_name": 'Ann "A." O\'Brien',
    },
    "streams": {"key_store": "env"},
}
STREAMS = '''

class Reading(BaseModel):
    celsius: float


@guarded.get("/readings")
def read_readings() -> Iterator[Reading]:
    """Read them as JSON lines."""
    yield Reading(celsius=20.5)


@guarded.get("/events", response_class=EventSourceResponse)
def read_events() -> Iterator[Reading]:
    """Read them as server-sent events."""
    yield Reading(celsius=20.5)
'''
IMPORTS_OF_STREAMS = """from collections.abc import Iterator

from fastapi.sse import EventSourceResponse
from pydantic import BaseModel
"""
NODE_PACKAGES = [
    *("@redocly/cli@2", "@stoplight/spectral-cli@6", "openapi-typescript@7", "openapi-fetch@0.17"),
    *("typescript@5", "@types/node@20"),
]
# Its rule knows no scopes but OAuth's, though OpenAPI 3.1 has them for every scheme: issue 2643.
SPECTRAL = {"extends": ["spectral:oas"], "rules": {"oas3-operation-security-defined": "off"}}


@dataclass(frozen=True)
class Service(Project):
    """A generated service that runs."""

    url: str
    header: str
    status: int

    def is_let_in(self, key: str) -> bool:
        return get(f"{self.url}/secure-endpoint", {self.header: key})[0] == 200

    def schemathesis(self, *, key: str | None) -> None:
        command = ("uvx", "schemathesis>=4.32,<5", "run", f"{self.url}/openapi.json")
        headers = () if key is None else ("--header", f"{self.header}: {key}")
        run(*command, "--max-examples=50", "--no-color", *headers, cwd=self.path)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tools of npm."""
    folder = tmp_path_factory.mktemp("node")
    run("npm", "install", "--ignore-scripts", "--no-audit", *NODE_PACKAGES, cwd=folder)
    (folder / ".spectral.json").write_text(json.dumps(SPECTRAL), "utf-8")
    return folder


@pytest.fixture(scope="module", params=COMBINATIONS)
def service(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    answers = COMBINATIONS[request.param]
    path = render(template, tmp_path_factory.mktemp("service"), answers).path
    project = Project(path)
    if request.param == "streams":
        routes = path / "app" / "routes.py"
        docstring, _, rest = routes.read_text("utf-8").partition("\n")
        routes.write_text(f"{docstring}\n{IMPORTS_OF_STREAMS}{rest}{STREAMS}", "utf-8")
    project.run("uv", "sync", "--quiet", "--no-dev")
    server = ("uv", "run", "--no-sync", "uvicorn", "app.main:app", "--port", "{port}")
    with project.serving(*server, KEY_MAX_STALENESS="0.1") as url:  # which revocations wait for
        header, status = answers.get("api_key_header", "api-key"), answers.get("missing_key_status")
        yield Service(path, url, header, int(status or 403))


@pytest.fixture
def document(service: Service, tmp_path: Path) -> Path:
    file = tmp_path / "openapi.json"
    file.write_text(get(f"{service.url}/openapi.json")[2], "utf-8")
    return file


def test_linters_complain_of_nothing(node: Path, document: Path) -> None:
    redocly = ("npx", "redocly", "lint", "--extends=recommended", "--format=json")
    said = run(*redocly, document, cwd=node, REDOCLY_TELEMETRY="off").stdout
    assert json.loads(said)["problems"] == []
    run("npx", "spectral", "lint", "--fail-severity=hint", document, cwd=node)
    run("uvx", "openapi-spec-validator>=0.9", document, cwd=node)


CALL_IN_PYTHON = """
import sys

from client import AuthenticatedClient, Client
from client.api.guarded import secure_endpoint
from client.api.public import hello
from client.models import KeyProblem

url, header, key = sys.argv[1:]


def caller(token: str) -> AuthenticatedClient:
    return AuthenticatedClient(url, token=token, prefix="", auth_header_name=header)


greeted = hello.sync_detailed(client=Client(url))
refused = secure_endpoint.sync(client=caller("not-a-key"))
let_in = secure_endpoint.sync(client=caller(key))
assert greeted.status_code == 200
assert isinstance(refused, KeyProblem)
assert refused.detail == "Invalid or missing API Key"
assert let_in is not None
assert not isinstance(let_in, KeyProblem)
print(let_in["message"])
"""
MANAGE_IN_PYTHON = """
from client.api.api_keys import create_key, list_keys, revoke_key, rotate_key, update_key
from client.models import IssuedKey, KeyPatch, KeyView, NewKey, Page, Rotation

made = create_key.sync(client=caller(key), body=NewKey(name="made", scopes=["reports:read"]))
assert isinstance(made, IssuedKey)
rotated = rotate_key.sync(made.id, client=caller(key), body=Rotation(overlap="PT1H"))
assert isinstance(rotated, IssuedKey)
page = list_keys.sync(client=caller(key), limit=1000)
assert isinstance(page, Page)
assert made.id in {each.id for each in page.items}
patch = KeyPatch(note="of the shop", scopes=None)
changed = update_key.sync(made.id, client=caller(key), body=patch)
assert isinstance(changed, KeyView)
assert (changed.name, changed.note, changed.scopes) == ("made", "of the shop", [])
revoke_key.sync(made.id, client=caller(key))
for secret in (made.key, rotated.key):
    assert isinstance(secure_endpoint.sync(client=caller(secret)), KeyProblem)
"""


def test_a_client_in_python_compiles_and_calls(service: Service, document: Path) -> None:
    folder = document.parent
    maker = ["uvx", "openapi-python-client>=0.29,<1", "generate", "--fail-on-warning"]
    written = document.read_text("utf-8")
    if '"openapi":"3.2.0"' in written:  # it knows neither this version nor streams
        refused = run(*maker, "--path", document, cwd=folder, check=False)
        assert "Only OpenAPI versions 3.1.* are supported" in refused.stdout + refused.stderr
        document.write_text(written.replace("3.2.0", "3.1.0", 1), "utf-8")
        maker.remove("--fail-on-warning")
    output = ("--meta", "none", "--output-path", "client")
    run(*maker, "--path", document, *output, cwd=folder)
    managed = (service.path / "app/management/router.py").exists()
    (folder / "call.py").write_text(CALL_IN_PYTHON + MANAGE_IN_PYTHON * managed, "utf-8")
    packages = ("attrs", "httpx", "mypy", "python-dateutil", "types-python-dateutil")
    python = ["uv", "run", "--no-project", *(f"--with={each}" for each in packages)]
    # Its client.py is the same for every document, and not ours to mend.
    made = ("call.py", "client/api", "client/models")
    run(*python, "mypy", "--strict", "--follow-imports=silent", *made, cwd=folder)
    call = ("python", "call.py", service.url, service.header, service.keys[0])
    assert run(*python, *call, cwd=folder).stdout == "You have access!\n"


CALL_IN_TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { paths } from "./openapi.js";

const [url, header, key] = process.argv.slice(2) as [string, string, string];
const stranger = createClient<paths>({ baseUrl: url });
const caller = createClient<paths>({ baseUrl: url, headers: { [header]: key } });

const { data, error } = await stranger.GET("/secure-endpoint");
const detail: string | undefined = error?.detail;
const greeting: string | undefined = (await caller.GET("/secure-endpoint")).data?.["message"];
console.log(JSON.stringify([data ?? null, detail, greeting]));
"""


def test_a_client_in_typescript_compiles_and_calls(
    service: Service, node: Path, document: Path
) -> None:
    run("npx", "openapi-typescript", document, "--output", "openapi.d.ts", cwd=node)
    (node / "call.mts").write_text(CALL_IN_TYPESCRIPT, "utf-8")
    options = ("--strict", "--target", "es2022", "--module", "nodenext")
    run("npx", "tsc", *options, "call.mts", cwd=node)
    said = run("node", "call.mjs", service.url, service.header, service.keys[0], cwd=node).stdout
    assert json.loads(said) == [None, "Invalid or missing API Key", "You have access!"]


def test_schemathesis_finds_nothing(service: Service) -> None:
    """With the file of the page, for a caller; then with all operations, and for a stranger."""
    key = service.keys[0]
    told = chapter(page("recipes.md"), "Check the service against its OpenAPI document")
    (_, common), (_, managed), (_, asked) = blocks(told, "toml")
    has_management = (service.path / "app/management").exists()
    common += asked * (service.path / "app/gateway").exists()
    config = service.path / "schemathesis.toml"
    config.write_text(common + managed * has_management, "utf-8")
    service.schemathesis(key=key)
    assert service.is_let_in(key)
    if has_management:
        everything, left_out, _ = managed.partition(
            '[[operations]]\ninclude-operation-id = ["update_key", "pause_key", "revoke_key"]'
        )
        assert left_out
        config.write_text(common + everything, "utf-8")
        service.schemathesis(key=key)
    service.schemathesis(key=None)
