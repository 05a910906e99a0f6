"""uvicorn in a thread of this process, for callers that need a real socket."""

import socket
import threading
import time
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp


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
