"""A generated service behind nginx, which is set up as `docs/recipes.md` says."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.project import Project, get, render
from tests.reader import blocks, page

pytestmark = [pytest.mark.slow, pytest.mark.image]

CONFIGURATION = """
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
        {location}
    }}
}}
"""


@pytest.fixture(scope="module")
def project(template: Path) -> Iterator[Project]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder), {"key_store": "env"})
        project.run("uv", "sync", "--quiet")
        yield project


@contextmanager
def behind_nginx(project: Project) -> Iterator[str]:
    """The service's URL there, as the lines of the page make it; its log is the file `said`."""
    ((_, location),) = blocks(page("recipes.md"), "nginx")
    shell = "exec uv run uvicorn app.main:app --root-path /shop --port {port} 2> said"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        project.serving("sh", "-c", shell, LOG_FORMAT="json") as service,
        TemporaryDirectory() as folder,
    ):
        location = location.replace("http://127.0.0.1:8000", service)
        file = Path(folder) / "nginx.conf"
        values = {"folder": folder, "port": port, "location": location}
        file.write_text(CONFIGURATION.format(**values), "utf-8")
        command = ["nginx", "-c", f"{file}", "-e", "stderr"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
            try:
                give_up_at = time.monotonic() + 30
                while not listens(port):
                    assert nginx.poll() is None, "nginx has ended"
                    assert time.monotonic() < give_up_at
                    time.sleep(0.02)
                yield f"http://127.0.0.1:{port}/shop"
            finally:
                nginx.terminate()


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def lines(project: Project) -> list[dict[str, object]]:
    said = [json.loads(line) for line in project.read("said").splitlines()]
    return [line for line in said if line["logger"] == "app.requests"]


def test_a_key_gets_through_and_what_callers_say_of_themselves_does_not(project: Project) -> None:
    with behind_nginx(project) as url:
        assert get(f"{url}/secure-endpoint")[0] == 403
        forged = {"X-Forwarded-For": "203.0.113.9", "X-Request-ID": "forged"}
        headers = {"api-key": project.keys[0], **forged}
        code, answered, _ = get(f"{url}/secure-endpoint", headers)
        assert code == 200
        document = json.loads(get(f"{url}/openapi.json")[2])
        assert document["servers"][0]["url"] == "/shop"
        assert "swagger" in get(f"{url}/docs")[2]
    line = lines(project)[-3]
    assert (line["route"], line["client"]) == ("/secure-endpoint", "127.0.0.1")
    assert re.fullmatch("[0-9a-f]{32}", str(line["request_id"]))  # nginx's own
    assert answered["x-request-id"] == line["request_id"]


def test_a_header_with_an_underscore_does_not_get_through(project: Project) -> None:
    constants = project.path / "app" / "constants.py"
    before = constants.read_text("utf-8")
    constants.write_text(before.replace('"api-key"', '"api_key"'), "utf-8")
    try:
        with behind_nginx(project) as url:
            assert get(f"{url}/secure-endpoint", {"api_key": project.keys[0]})[0] == 403
    finally:
        constants.write_text(before, "utf-8")
