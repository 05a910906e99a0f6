"""uvicorn in a thread of this process, and `serve`, for callers that need a real socket."""

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp

from app.auth.key import new_secret

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds: no test is decided by how busy the machine is
LOCAL = "127.0.0.1"


class LiveServer:
    """uvicorn on a free port of this machine, in a thread of this process."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="debug", **options))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def send_raw(self, request: bytes) -> bytes:
        """The first line that comes back for these bytes."""
        with socket.create_connection(self.address, timeout=60) as connection:
            connection.sendall(request)
            return connection.makefile("rb").readline()


# In the parent it can be imported; `BROKEN` workers end instead of starting.
APPLICATION = """
import asyncio, multiprocessing, os, sys

if multiprocessing.parent_process() and os.environ.get("BROKEN"):
    sys.exit(3)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    if scope["path"] == "/slow":
        print("has begun", file=sys.stderr, flush=True)
        await asyncio.sleep(1)
    length = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": b"ok"})
"""
SERVE_IT = """
import typer
from app.auth.cli import serve

serve.APPLICATION = "application:app"
serve.HEALTHCHECK = 1  # a worker that ends when it is asked is waited for as long
if __name__ == "__main__":
    typer.run(serve.serve)
"""


class Service:
    """`serve` in a folder of its own. What it says is in the file `said`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secrets = folder, folder / "secrets"
        self.secrets.mkdir()
        self.key = new_secret()
        self.write_keys(self.key)
        (folder / "application.py").write_text(APPLICATION)
        (folder / "serve_it.py").write_text(SERVE_IT)

    def write_keys(self, *keys: str) -> None:
        (self.secrets / "api_keys").write_text(",".join(keys))

    def start(
        self, *options: str, program: str = "", **variables: str
    ) -> "subprocess.Popen[bytes]":
        command = [program or "-m", *(() if program else ("app", "serve")), *options]
        inherited = {n: value for n, value in os.environ.items() if n != "API_KEYS"}
        settings = {
            "DATABASE_URL": f"sqlite:///{self.folder}/keys.db",
            "SECRETS_DIR": f"{self.secrets}",
            "PYTHONPATH": f"{ROOT}",
        }
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env={**inherited, **settings, **variables},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def ends(self, *options: str, program: str = "", **variables: str) -> int:
        return self.start(*options, program=program, **variables).wait(PATIENCE)

    @contextmanager
    def serving(
        self, *options: str, workers: int = 1, program: str = "", **variables: str
    ) -> "Iterator[subprocess.Popen[bytes]]":
        command = (*options, "--port", "0", "--workers", f"{workers}")
        with self.start(*command, program=program, **variables) as server:
            try:
                self.wait_for("Application startup complete", server, workers)
                yield server
            finally:
                server.terminate()

    def wait_for(self, text: str, server: "subprocess.Popen[bytes]", times: int = 1) -> None:
        give_up_at = time.monotonic() + PATIENCE
        while self.said.count(text) < times:
            assert server.poll() is None, self.said
            assert time.monotonic() < give_up_at, self.said
            time.sleep(0.02)

    def connect(self, host: str = LOCAL) -> http.client.HTTPConnection:
        port = re.findall(rf"Listening on {re.escape(host)}, port (\d+)", self.said)[0]
        return http.client.HTTPConnection(host, int(port), timeout=PATIENCE)

    def status(self, path: str, host: str = LOCAL, **headers: str) -> int:
        with closing(self.connect(host)) as connection:
            return get(connection, path, headers)


def get(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str] | None = None
) -> int:
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    answer.read()
    return answer.status
