"""What people add to a service works, and the guard holds: `make add-ons`.

A real server runs a generated service with one of the functions of `tests/add_ons.py` in it.
"""

import gzip
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.project import FLAVOURS, ROOT, Project, get, render_afresh, run
from tests.reader import Reader, blocks, chapter, page

pytestmark = [pytest.mark.slow, pytest.mark.add_ons]

PARTS = {
    "database": dict.fromkeys(
        ("limits", "management", "metrics", "gateway", "transfer", "vaults", "deploy"), "yes"
    ),
    "env": dict.fromkeys(("vaults", "deploy"), "yes"),
}
PACKAGES = [
    *("classy-fastapi", "fastapi-cache2", "fastapi-limiter", "fastapi-mcp"),
    *("fastapi-pagination", "fastapi-restful", "fastapi-utils", "fastmcp", "hypercorn", "limits"),
    *(
        "loguru",
        "opentelemetry-instrumentation-fastapi",
        "opentelemetry-sdk",
        "fastapi[opentelemetry]",
        "pyrefly",
    ),
    *("prometheus-fastapi-instrumentator", "pyright[nodejs]", "python-socketio[client]"),
    *("sentry-sdk", "slowapi", "sqladmin", "sqlalchemy[asyncio]", "sse-starlette"),
    *("starlette-admin", "starlette-exporter", "strawberry-graphql", "structlog", "ty"),
    *("ddtrace", "honeybadger", "logfire", "opentelemetry-distro", "rollbar", "typing-inspect"),
    *("openai-agents", "pydantic-ai-slim[mcp]"),
    *("httpx2[http2]", "zttp"),
]


@dataclass(frozen=True)
class Service(Project):
    """A generated service, and the environment that it runs in."""

    bin: Path

    def add(self, function: str) -> None:
        """Let `create_app` call it."""
        shutil.copy(ROOT / "tests" / "add_ons.py", self.path / "app" / "add_ons.py")
        main = self.path / "app" / "main.py"
        call = f"    from app import add_ons\n\n    add_ons.{function}(app)\n    return app\n"
        main.write_text(main.read_text("utf-8").replace("    return app\n", call), "utf-8")

    def declare(self, argument: str) -> None:
        """Give it to the application."""
        main = self.path / "app" / "main.py"
        before = main.read_text("utf-8")
        assert before.count("**ABOUT,") == 1
        main.write_text(before.replace("**ABOUT,", f"{argument}, **ABOUT,"), "utf-8")

    def start_refused(self) -> str:
        """What the start says instead of serving."""
        command = (self.bin / "python", "-m", "uvicorn", "app.main:app", "--port", "0")
        result = run(*command, cwd=self.path, check=False)
        assert result.returncode == 3, result.stderr
        return result.stderr

    @contextmanager
    def running(
        self, command: str = "uvicorn app.main:app --port {port}", **variables: str
    ) -> Iterator[str]:
        """Its URL; what it says is in the file `said`. The command is a module, or has a path."""
        program = command if command.startswith("/") else f'"{self.bin}/python" -m {command}'
        shell = f"exec {program} > said 2>&1"
        with self.serving("sh", "-c", shell, **variables) as url:
            yield url

    def guards(self, url: str, status: int = 200) -> str:
        """What a caller is answered who has a key. A stranger is refused."""
        assert get(url)[0] == 403
        code, _, body = get(url, {"api-key": self.keys[0]})
        assert code == status, body
        return body

    def do(self, script: str, *arguments: str, check: bool = True) -> tuple[str, str]:
        """What a script says in the service's environment, as its output and as its errors."""
        ended = self.run(f"{self.bin}/python", "-c", script, *arguments, check=check)
        return ended.stdout, ended.stderr


@pytest.fixture(scope="session")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    folder = tmp_path_factory.mktemp("projects")
    return {
        each: render_afresh(folder / each, {"key_store": each, **PARTS[each]}) for each in FLAVOURS
    }


@pytest.fixture(scope="session")
def bin(projects: dict[str, Project]) -> Path:
    """One environment, with all of them beside each other."""
    project = projects["database"]
    project.run("uv", "sync", "--quiet", "--no-install-project")
    bin = project.path / ".venv" / "bin"
    project.run("uv", "pip", "install", "--quiet", "--python", f"{bin}/python", *PACKAGES)
    return bin


@pytest.fixture
def service(projects: dict[str, Project], bin: Path, tmp_path: Path) -> Service:
    shutil.copytree(projects["env"].path, tmp_path / "service")
    return Service(tmp_path / "service", bin)


@pytest.fixture
def with_metrics(projects: dict[str, Project], bin: Path, tmp_path: Path) -> Service:
    """One that has a page /metrics of its own."""
    source, target = projects["database"].path, tmp_path / "service"
    shutil.copytree(source, target, ignore=lambda *_: [".venv"])
    return Service(target, bin)


# Routers, and what works as it is.


@pytest.mark.parametrize(
    ("function", "path"),
    [
        ("strawberry", "/graphql?query={hello}"),
        ("fastapi_utils", "/items"),
        ("fastapi_restful", "/items"),
        ("classy_fastapi", "/items"),
        ("fastapi_pagination", "/pages?page=2&size=1"),
        ("sse_starlette", "/events"),
    ],
)
def test_it_works_behind_the_guard(service: Service, function: str, path: str) -> None:
    service.add(function)
    with service.running() as url:
        assert "Hello, owner" in service.guards(url + path)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        ("strawberry_on_the_application", "/graphql (handle_http_get), /graphql (handle_http"),
        ("fastmcp_on_the_application", "/mcp (Mount)"),
    ],
)
def test_on_the_application_it_is_refused_with_a_way_out(
    service: Service, function: str, named: str
) -> None:
    service.add(function)
    said = service.start_refused()
    assert f"Neither guarded nor public: {named}" in said
    assert "a router of a package goes on one of them with include_router" in said


# Pages.

METRICS, ADMIN = 'public_paths=["/metrics"]', 'public_paths=["/admin"]'
PAGES = {  # how they are declared, and where something is to be seen: then, and behind a key
    "prometheus_fastapi_instrumentator": (METRICS, "/metrics", "/internal/metrics"),
    "starlette_exporter": (METRICS, "/metrics", "/metrics"),
    "sqladmin": (ADMIN, "/admin/user/list", "/admin/user/list"),
    "starlette_admin": (ADMIN, "/admin/user/list", "/admin/user/list"),
}


@pytest.mark.parametrize("function", PAGES)
def test_a_page_is_refused_until_it_is_declared_public(service: Service, function: str) -> None:
    declaration, page, _ = PAGES[function]
    service.add(function)
    said = service.start_refused()
    path = declaration.split('"')[1]
    assert f"Neither guarded nor public: {path} (" in said
    assert "a page that a package adds to the application into public_paths" in said
    service.declare(declaration)
    with service.running() as url:
        assert get(url + page)[0] == 200
        service.guards(f"{url}/secure-endpoint")


@pytest.mark.parametrize("function", PAGES)
def test_the_same_page_asks_for_a_key_on_a_guarded_router(service: Service, function: str) -> None:
    service.add(f"{function}_behind_a_key")
    with service.running() as url:
        service.guards(f"{url}/secure-endpoint")
        assert re.search("User|secure-endpoint", service.guards(url + PAGES[function][2]))


@pytest.mark.parametrize(
    "function", ["prometheus_fastapi_instrumentator_beside_ours", "starlette_exporter_beside_ours"]
)
def test_beside_our_metrics_theirs_have_another_path(with_metrics: Service, function: str) -> None:
    with_metrics.add(function)
    with_metrics.declare('public_paths=["/theirs"]')
    with with_metrics.running() as url:
        with_metrics.guards(f"{url}/secure-endpoint")
        assert "secure-endpoint" in get(f"{url}/theirs")[2]
        assert "api_requests_total" in with_metrics.guards(f"{url}/metrics")


def test_beside_our_metrics_theirs_ask_for_a_key_too(with_metrics: Service) -> None:
    with_metrics.add("starlette_exporter_beside_ours_behind_a_key")
    with with_metrics.running() as url:
        with_metrics.guards(f"{url}/secure-endpoint")
        assert "starlette_requests_total" in with_metrics.guards(f"{url}/theirs")


# MCP.

MCP_CLIENT = """
import asyncio, sys
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

async def main(url, **headers):
    async with Client(StreamableHttpTransport(f"{url}/mcp/", headers=headers)) as client:
        print((await client.call_tool("add", {"a": 1, "b": 2})).data)

asyncio.run(main(sys.argv[1], **{"api-key": key for key in sys.argv[2:]}))
"""
MCP_OF_THE_SERVICE = """
import asyncio, sys
from fastmcp import Client, FastMCP
from app.constants import API_KEY_HEADER
from app.main import app

async def main(key):
    own = FastMCP.from_fastapi(app, httpx_client_kwargs={"headers": {API_KEY_HEADER: key}})
    for mcp in (FastMCP.from_fastapi(app), own):
        async with Client(mcp) as client:
            (name,) = [tool.name for tool in await client.list_tools() if "secure" in tool.name]
            answer = await client.call_tool(name, raise_on_error=False)
            print(answer.is_error, answer.content[0].text)

asyncio.run(main(*sys.argv[1:]))
"""
FASTAPI_MCP = """
from fastapi import FastAPI
from fastapi_mcp import FastApiMCP
FastApiMCP(FastAPI())
"""


def test_fastmcp_works_behind_the_guard(service: Service) -> None:
    service.add("fastmcp")
    with service.running() as url:
        assert service.do(MCP_CLIENT, url, service.keys[0])[0] == "3\n"
        assert service.do(MCP_CLIENT, url, check=False)[0] == ""
    assert "Refused http '/mcp/': no key." in service.read("said")


def test_tools_that_are_made_of_endpoints_need_a_key_of_their_own(service: Service) -> None:
    """The caller's was taken out of the request, so that nothing can pass it on."""
    without, with_own = service.do(MCP_OF_THE_SERVICE, service.keys[0])[0].splitlines()
    assert re.match("True .*403", without)
    assert with_own == 'False {"message":"You have access!"}'


def test_fastapi_mcp_does_not_work_with_the_mcp_of_today(service: Service) -> None:
    said = service.do(FASTAPI_MCP, check=False)[1]
    assert "TypeError: Server.__init__() takes 2 positional arguments but 3 were given" in said


AGENTS = """
import asyncio, sys
import httpx2
from fastmcp.client.transports import StreamableHttpTransport

client, url, key = sys.argv[1:]
url, headers = f"{url}/mcp/", {"api-key": key}

async def fastmcp():
    from fastmcp import Client
    async with Client(StreamableHttpTransport(url, headers=headers)) as client:
        return (await client.call_tool("greet")).data

async def mcp():
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        streamable_http_client(url, http_client=http) as streams,
        ClientSession(*streams[:2]) as session,
    ):
        await session.initialize()
        return (await session.call_tool("greet")).content[0].text

async def pydantic_ai():
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset
    from pydantic_ai.models.test import TestModel
    tools = MCPToolset(StreamableHttpTransport(url, headers=headers))
    async with Agent(TestModel(), toolsets=[tools]) as agent:
        return (await agent.run("greet")).output

async def openai_agents():
    from agents.mcp import MCPServerStreamableHttp
    async with MCPServerStreamableHttp({"url": url, "headers": headers}) as server:
        return (await server.call_tool("greet", {})).content[0].text

for _ in range(4):
    print(asyncio.run(globals()[client]()), flush=True)
"""
SESSION = """
import sys
import httpx2

url, *keys = sys.argv[1:]
opening = {
    "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}
}

def post(key, method, params=None, **headers):
    accepted = {"Accept": "application/json, text/event-stream", "api-key": key, **headers}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
    return httpx2.post(f"{url}/mcp/", headers=accepted, json=body)

session = {"mcp-session-id": post(keys[0], "initialize", opening).headers["mcp-session-id"]}
print(*(post(key, "tools/list", **session).status_code for key in keys))
"""
TOOLS_OF_THE_DOCUMENT = """
import asyncio
import httpx2
from fastmcp import Client, FastMCP
from fastmcp.server.providers.openapi import MCPType, RouteMap
from app.main import app

async def main():
    client, document = httpx2.AsyncClient(base_url="http://service"), app.openapi()
    no_keys = dict(route_maps=[RouteMap(pattern=r"^/api-keys", mcp_type=MCPType.EXCLUDE)])
    for more in ({}, no_keys):
        async with Client(FastMCP.from_openapi(document, client=client, **more)) as agent:
            print(*(tool.name for tool in await agent.list_tools()))

asyncio.run(main())
"""


@pytest.fixture
def with_tools(service: Service) -> Service:
    """As the page has them."""
    reader = Reader(service, page("recipes.md"), "Agents")
    for language, text in reader.blocks:
        if language != "console":  # fastmcp is installed
            reader.follow(language, text)
    run(service.bin / "ruff", "check", "--fix", "--quiet", cwd=service.path)
    run(service.bin / "ruff", "format", "--quiet", cwd=service.path)
    run(service.bin / "mypy", "app", cwd=service.path)
    return service


@pytest.mark.parametrize("client", ["fastmcp", "mcp", "pydantic_ai", "openai_agents"])
def test_agents_call_tools_whichever_worker_answers(with_tools: Service, client: str) -> None:
    key = with_tools.keys[0]
    with with_tools.running("uvicorn app.main:app --workers 2 --port {port}") as url:
        said = with_tools.do(AGENTS, client, url, key)[0]
        told = "".join(with_tools.do(AGENTS, client, url, "not-a-key", check=False))
    (id,) = set(re.findall(r"key ([0-9a-f]{12})", with_tools.read("said")))
    assert said.count(f"Hello, {id}") == 4
    assert "Hello" not in told
    assert "403" not in told  # none of them tells the status of a refusal
    assert 4 * 3 <= with_tools.read("said").count(f"key {id}") <= 4 * 10


def test_with_sessions_one_process_answers(with_tools: Service) -> None:
    tools = with_tools.path / "app" / "tools.py"
    tools.write_text(tools.read_text("utf-8").replace(", stateless_http=True", ""), "utf-8")
    with with_tools.running("uvicorn app.main:app --workers 2 --port {port}") as url:
        key, refused = with_tools.keys[0], ""
        for _ in range(10):  # all requests of a session may reach one worker
            refused += with_tools.do(AGENTS, "mcp", url, key, check=False)[1]
            if "Session not found" in refused:
                break
        assert "Session not found" in refused


def test_a_session_belongs_to_the_key_that_opened_it(with_tools: Service) -> None:
    tools = with_tools.path / "app" / "tools.py"
    with_sessions = tools.read_text("utf-8").replace(", stateless_http=True", "")
    unbound = with_sessions.replace('mount("/mcp", for_caller)', 'mount("/mcp", mcp_app)')
    for text, expected in ((with_sessions, "200 404"), (unbound, "200 200")):
        tools.write_text(text, "utf-8")
        with with_tools.running() as url:
            assert with_tools.do(SESSION, url, *with_tools.keys)[0].strip() == expected


def test_tools_made_of_the_document_can_leave_the_keys_alone(with_metrics: Service) -> None:
    all_of_them, without_keys = with_metrics.do(TOOLS_OF_THE_DOCUMENT)[0].splitlines()
    assert {"create_key", "rotate_key", "secure_endpoint"} <= {*all_of_them.split()}
    assert "secure_endpoint" in without_keys
    assert "key" not in without_keys


# What watches a service.


def test_sentry_is_sent_no_key(service: Service) -> None:
    ((_, text),) = blocks(chapter(page("recipes.md"), "Sentry"), "python")
    name, _, content = text.partition("\n")
    assert name == "# app/error_reports.py"
    (service.path / "app" / "error_reports.py").write_text(content, "utf-8")
    service.add("sentry")
    key = {"api-key": service.keys[0], "X-Request-ID": "of-the-caller"}
    with service.running() as url:
        service.guards(f"{url}/secure-endpoint")
        assert get(f"{url}/fails?q={service.keys[0]}&other=not-told", key)[0] == 500
        assert get(f"{url}/no-such-page", key)[0] == 404
    sent = service.read("sent")
    assert service.keys[0] not in sent
    assert '"value":"as meant"' in sent
    assert '"request_id":"of-the-caller"' in sent
    event = next(line for line in sent.splitlines() if '"value":"as meant"' in line)
    assert "not-told" not in event
    assert sent.count('{"type":"transaction","transaction"') == 4  # the start is none


@pytest.mark.parametrize("function", ["opentelemetry", "opentelemetry_instrumentation"])
def test_spans_have_no_key_and_the_start_leaves_none(service: Service, function: str) -> None:
    service.add(function)
    with service.running(OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST=".*") as url:
        service.guards(f"{url}/secure-endpoint")
    sent = service.read("sent")
    assert service.keys[0] not in sent
    assert sent.count("SpanKind.SERVER") == 2
    assert "GET /secure-endpoint" in sent


@pytest.mark.parametrize(
    "function", ["honeybadger", "sentry_middleware", "otel_middleware", "rollbar"]
)
def test_middleware_that_tells_asgi_2_from_3_works(service: Service, function: str) -> None:
    service.add(function)
    with service.running() as url:
        service.guards(f"{url}/secure-endpoint")
    assert service.keys[0] not in service.read("said")


@pytest.mark.parametrize("way", ["opentelemetry_instrumentation", "logfire"])
def test_instrumentation_makes_the_spans(service: Service, way: str) -> None:
    service.add(way)
    key = service.keys[0]
    variables = {"OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "health", "LOG_LEVEL": "ERROR"}
    with service.running(**variables) as url:
        assert get(f"{url}/health/live")[0] == 200
        service.guards(f"{url}/secure-endpoint?key={key}")
        get(f"{url}/{key}")
    sent = service.read("sent")
    assert sent.count("SpanKind.SERVER") == 3
    assert "unexpected middleware stack" not in service.read("said")
    assert key not in sent
    assert "[key]" in sent
    assert re.search(r'"caller.id": "[0-9a-f]{12}"', sent)
    assert '"caller.refusal": "no key"' in sent


def test_a_start_leaves_no_span_of_ddtrace(service: Service) -> None:
    variables = {"DD_TRACE_DEBUG": "1", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
    command = f"{service.bin}/ddtrace-run {service.bin}/uvicorn app.main:app --port {{port}}"
    with service.running(command, DD_TRACE_AGENT_URL="http://127.0.0.1:9", **variables) as url:
        service.guards(f"{url}/secure-endpoint")
    started = r"Starting span: <Span\(id=(\d+)[^>]*name=fastapi.request"
    assert len(set(re.findall(started, service.read("said")))) == 2


def test_a_collector_that_is_away_holds_up_no_stop(service: Service) -> None:
    told = chapter(page("recipes.md"), "OpenTelemetry")
    assert "`OTEL_EXPORTER_OTLP_TIMEOUT=2` makes that 2 seconds" in told
    away = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    with service.running(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **away) as url:
        service.guards(f"{url}/secure-endpoint")
        began_at = time.monotonic()
    assert time.monotonic() - began_at < 9  # less than the ten seconds that `docker stop` waits


@contextmanager
def collector() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """A receiver of OTLP over HTTP; its address, and the bodies that arrived, by their path."""
    arrived: dict[str, list[bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            arrived.setdefault(self.path, []).append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", arrived
        finally:
            server.shutdown()
            thread.join()


# What arrived, as opentelemetry-proto reads it.
SPANS_OF_OTLP = """
import sys
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
for name in sys.argv[1:]:
    request = ExportTraceServiceRequest.FromString(open(name, "rb").read())
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = {each.key: each.value.string_value for each in span.attributes}
                if span.kind == 2:
                    print(span.name, told.get("http.route"), told.get("caller.id"),
                          told.get("caller.refusal"), told.get("url.query"))
"""


def test_opentelemetry_by_its_variables_tells_routes_and_no_key(service: Service) -> None:
    key = service.keys[0]
    told = chapter(page("recipes.md"), "OpenTelemetry")
    assert "export FASTAPI_OTEL_AUTO_CONFIGURE=true OTEL_EXPORTER_OTLP_ENDPOINT=" in told
    (argument,) = re.findall(r"`GuardedAPI\((telemetry=.*), \.\.\.\)`", told)
    service.declare(argument)
    with collector() as (address, arrived):
        variables = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": address}
        with service.running(**variables) as url:
            service.guards(f"{url}/secure-endpoint?key={key}")
            assert get(f"{url}/{key}")[0] == 404
            assert get(f"{url}/health/live")[0] == 200
    assert arrived["/v1/metrics"]  # they are sent at the end
    bodies = [body for each in arrived.values() for body in each]
    assert not any(key.encode() in body for body in bodies)
    names = []
    for number, body in enumerate(arrived["/v1/traces"]):
        (service.path / f"spans-{number}").write_bytes(body)
        names.append(f"spans-{number}")
    spans = service.do(SPANS_OF_OTLP, *names)[0].splitlines()
    route = "GET /secure-endpoint /secure-endpoint"
    assert f"{route}  no key key=[key]" in spans
    assert not any("/health" in span for span in spans)
    (id,) = re.findall(r"key ([0-9a-f]{12})", service.read("said"))
    assert f"{route} {id} None key=[key]" in spans


# Limits.


@pytest.mark.parametrize("function", ["slowapi", "limits"])
def test_each_key_has_a_limit_of_its_own(service: Service, function: str) -> None:
    service.add(function)
    first, second = ({"api-key": key} for key in service.keys)
    with service.running() as url:
        limited = f"{url}/limited"
        assert [get(limited)[0] for _ in range(3)] == [403] * 3  # which costs nobody anything
        answers = [get(limited, headers)[0] for headers in (first, first, second)]
        assert answers == [200, 429, 200]
        # SlowAPIMiddleware is to see to its default, and does not look into routers.
        assert [get(f"{url}/secure-endpoint", first)[0] for _ in range(3)] == [200] * 3


def test_fastapi_limiter_does_not_work_with_routers(service: Service) -> None:
    service.add("fastapi_limiter")
    with service.running() as url:
        service.guards(f"{url}/limited", status=500)
    said = service.read("said")
    assert "AttributeError: '_IncludedRouter' object has no attribute 'path'" in said


# Sockets, and what lies around the application.

POLL = "/socket.io/?EIO=4&transport=polling"
SOCKETIO_CLIENT = """
import socketio, sys
client = socketio.SimpleClient()
client.connect(sys.argv[1], headers={"api-key": sys.argv[2]}, transports=["websocket"])
print(client.transport)
client.disconnect()
"""


def test_socketio_works_behind_the_guard(service: Service) -> None:
    service.add("socketio")
    with service.running() as url:
        assert '"sid":' in service.guards(url + POLL)
        assert service.do(SOCKETIO_CLIENT, url, service.keys[0])[0] == "websocket\n"


def test_what_lies_around_the_application_goes_past_the_guard_and_sees_keys(
    service: Service,
) -> None:
    service.add("socketio")
    text = "from app import add_ons, main\n\napp = add_ons.socketio_around(main.app)\n"
    (service.path / "around.py").write_text(text, "utf-8")
    with service.running("uvicorn around:app --port {port}") as url:
        assert get(url + POLL)[0] == 200  # for a stranger
        service.guards(f"{url}/secure-endpoint")
    assert service.keys[0] in service.read("said")


# Logging.


def write_log_config(service: Service, **loggers: str) -> None:
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"mine": {"format": "MINE %(levelname)s %(name)s %(message)s"}},
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "mine"}},
        "loggers": {name: {"level": loggers[name], "handlers": ["out"]} for name in loggers},
    }
    (service.path / "log.json").write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize(("level", "refusals"), [("INFO", 1), ("WARNING", 0)])
def test_a_log_config_counts(service: Service, level: str, refusals: int) -> None:
    write_log_config(service, app=level, uvicorn="INFO")
    command = "uvicorn app.main:app --port {port} --log-config log.json"
    with service.running(command, LOG_LEVEL="INFO", LOG_FORMAT="own") as url:
        service.guards(f"{url}/secure-endpoint")
    lines = service.read("said").splitlines()
    assert sum("Refused http" in line for line in lines) == refusals
    assert sum("startup complete" in line for line in lines) == 1
    assert all(line.startswith("MINE ") for line in lines)


def test_logging_that_is_configured_later_counts_too(service: Service) -> None:
    write_log_config(service, **{"": "INFO"})
    service.add("dict_config")
    with service.running(LOG_FORMAT="own") as url:
        service.guards(f"{url}/secure-endpoint")
    lines = service.read("said").splitlines()
    refusal = "MINE INFO app.auth.access.rule Refused http '/secure-endpoint': no key."
    assert [line for line in lines if "Refused" in line] == [refusal]


@pytest.mark.parametrize("function", ["structlog", "loguru"])
def test_other_loggers_take_over(service: Service, function: str) -> None:
    service.add(function)
    with service.running(LOG_FORMAT="own") as url:
        service.guards(f"{url}/logs")
    said = service.read("said")
    assert service.keys[0] not in said
    assert [said.count(each) for each in ("Refused http", "called", "failed")] == [1, 1, 1]


@pytest.mark.parametrize("function", ["rollbar", "basic_config"])
def test_a_library_that_configures_logging_changes_no_format(
    service: Service, function: str
) -> None:
    service.add(function)
    with service.running(LOG_FORMAT="json") as url:
        service.guards(f"{url}/secure-endpoint")
    lines = [json.loads(line) for line in service.read("said").splitlines()]
    assert any(line["message"].startswith("Refused http") for line in lines)


def test_hypercorn_says_nothing_twice(service: Service) -> None:
    with service.running("hypercorn app.main:app --bind 127.0.0.1:{port}") as url:
        service.guards(f"{url}/secure-endpoint")
    said = service.read("said")
    assert [said.count(each) for each in ("Running on", "Refused http")] == [1, 1]


OVER_HTTP2 = """
import sys
import httpx2
url, key = sys.argv[1:]
with httpx2.Client(http1=False, http2=True) as client:
    for headers in ([], [("api-key", key)], [("api-key", key)] * 2):
        answer = client.get(f"{url}/secure-endpoint", headers=headers)
        print(answer.http_version, answer.status_code)
"""


@pytest.mark.parametrize("option", ["", " --http2"])
def test_with_zttp_a_trailer_is_no_key_and_a_header_is_wherever_it_stands(
    service: Service, option: str
) -> None:
    with service.running("uvicorn app.main:app --port {port} --http zttp" + option) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))

        def status(*headers: str, trailer: str = "") -> int:
            head = ("POST /secure-endpoint HTTP/1.1", "Host: service", "Connection: close")
            body = ("", "4", "body", "0", *[trailer] * bool(trailer), "", "")
            with socket.create_connection(address, timeout=60) as connection:
                connection.sendall("\r\n".join((*head, *headers, *body)).encode())
                return int(connection.makefile("rb").readline().split()[1])

        key, chunked = f"api-key: {service.keys[0]}", "Transfer-Encoding: chunked"
        assert status(chunked, trailer=key) == status("Trailer: api-key", chunked, trailer=key)
        assert status(chunked, trailer=key) == 403
        assert status(key, chunked) == status(chunked, key) == 405  # it is let in
        if option:
            said = service.do(OVER_HTTP2, url, service.keys[0])[0].splitlines()
            assert said == ["HTTP/2 403", "HTTP/2 200", "HTTP/2 403"]


# Caches.


def test_fastapi_cache2_serves_callers_alone(service: Service) -> None:
    service.add("fastapi_cache2")
    with service.running() as url:
        assert [service.guards(f"{url}/cached") for _ in range(3)] == ["0", "0", "0"]
        _, headers, _ = get(f"{url}/cached", {"api-key": service.keys[0]})
        # It says max-age, which would let a cache between serve strangers.
        assert headers["cache-control"].startswith("private, max-age=")


# Checkers of types.


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "command",
    [
        "pyright --pythonpath {python} app",
        "ty check --python {python} app",
        "pyrefly check --python-interpreter-path {python} app",
    ],
)
def test_checkers_of_types_have_no_complaint(
    projects: dict[str, Project], bin: Path, flavour: str, command: str
) -> None:
    words = command.format(python=bin / "python").split()
    run(bin / words[0], *words[1:], cwd=projects[flavour].path)


# A service that exists.


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_machinery_is_laid_into_a_service_that_exists(
    bin: Path, flavour: str, tmp_path: Path
) -> None:
    """By the page, line by line; but the packages are installed already."""
    rendered = render_afresh(tmp_path, {"key_store": flavour})
    items = (
        'router = APIRouter()\n\n\n@router.get("/items")\ndef items() -> str:\n    return "pen"\n'
    )
    shop = Service(tmp_path / "shop", bin)
    (shop.path / "app").mkdir(parents=True)
    (shop.path / "pyproject.toml").touch()
    (shop.path / "app" / "__init__.py").touch()
    (shop.path / "app" / "items.py").write_text(f"from fastapi import APIRouter\n\n{items}")
    told = chapter(page("existing-service.md"), f"Flavour {flavour}")
    (_, commands), (_, main) = blocks(told)
    copy, install, *others = commands.splitlines()
    shop.run("bash", "-c", copy)
    for package in install.removeprefix("uv add ").replace('"', "").split():
        assert f'"{package}>=' in rendered.read("pyproject.toml")
    for command in others:
        said = shop.run(*command.replace("uv run python", f"{bin}/python").split()).stdout
    (key,) = re.findall("key: +(.+)", said)
    (shop.path / "app" / "main.py").write_text(main, "utf-8")
    with shop.running() as url:
        assert get(f"{url}/items")[0] == 403
        assert get(f"{url}/items", {"api-key": key})[0::2] == (200, '"pen"')
        assert get(f"{url}/health")[0] == 200
