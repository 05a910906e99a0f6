"""The service as processes of their own, which are called over real sockets."""

import http.client
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import uvicorn

from app.auth.key import new_secret
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.callers import PROBE

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds: no test is decided by how busy the machine is


def start(*command: str, **settings: str) -> "subprocess.Popen[bytes]":
    """A command of Python's, with the settings of the test."""
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}", **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def run(*command: str, **settings: str) -> None:
    assert start(*command, **settings).wait(PATIENCE) == 0


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


class Line:
    """A connection to a server of this machine, which is made anew where it broke."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def request(self, key: str, method: str = "GET", path: str = PROBE, patch: Any = None) -> int:
        """The status; 0 where nobody answers."""
        headers = {API_KEY_HEADER: key}
        headers |= {"Content-Type": "application/merge-patch+json"} if patch else {}
        try:
            self._http.request(method, path, patch and json.dumps(patch), headers)
            answer = self._http.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self._http.close()
            return 0
        return answer.status

    def until(self, status: int, key: str) -> None:
        wait_for(lambda: self.request(key) == status)

    def close(self) -> None:
        self._http.close()


# Servers are forked from a process that has imported all of it: they start in no time.
PROCESSES: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
PROCESSES.set_forkserver_preload(["tests.thorough.replicas", "tests.thorough.services"])


class _Process(PROCESSES.Process):  # type: ignore[misc]
    """One of these, with the methods that those of `subprocess` have."""

    def poll(self) -> int | None:
        code: int | None = self.exitcode
        return code

    def wait(self, timeout: float) -> None:
        self.join(timeout)
        assert not self.is_alive(), "the server does not end"


def _fork(command: tuple[str, ...], settings: dict[str, str]) -> _Process:
    environment = {**os.environ, **settings}
    process = _Process(target=_serve, args=(command, environment, f"{Path.cwd()}"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{ROOT}")  # of the process that imports
        process.start()
    return process


def _serve(command: tuple[str, ...], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    uvicorn.main(command)


class Replica(Line):
    """The service on a free port."""

    def __init__(self, *options: str, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            super().__init__(listener.getsockname()[1])
        server = ("--factory", "tests.thorough.services:start", "--port", f"{self.port}")
        # Workers are processes that import for themselves.
        self.process: _Process | subprocess.Popen[bytes] = (
            start("-m", "uvicorn", *server, *options, **settings)
            if "--workers" in options
            else _fork((*server, *options), settings)
        )

    def request(self, key: str, method: str = "GET", path: str = PROBE, patch: Any = None) -> int:
        assert self.process.poll() is None, "the server has ended"
        return super().request(key, method, path, patch)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.close()


@contextmanager
def started(*replicas: Replica) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.stop)
        for replica in replicas:
            replica.until(MISSING_KEY_STATUS, new_secret())
        yield [*replicas]


class Poller(Line):
    """Calls a server again and again, and notes what came back."""

    def __init__(self, replica: Replica, path: str = PROBE) -> None:
        super().__init__(replica.port)
        self.key, self.path, self._is_over = new_secret(), path, False
        self.answers: list[tuple[float, str, int]] = []  # when a key was sent, and the status
        self._thread = threading.Thread(target=self._poll)

    def _poll(self) -> None:
        while not self._is_over:
            key, sent_at = self.key, time.monotonic()
            if status := self.request(key, path=self.path):
                self.answers.append((sent_at, key, status))
            time.sleep(0.01)  # for others

    def statuses(self, key: str, since: float = 0.0) -> list[int]:
        """Those of requests that were sent then or later."""
        return [status for sent_at, sent, status in self.answers if sent_at > since and sent == key]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()
        self.close()
