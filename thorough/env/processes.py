"""The service and its command line as processes of their own, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from app.constants import API_KEY_HEADER
from tests.callers import PROBE

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds: no test is decided by how busy the machine is


@dataclass(frozen=True)
class Server:
    address: str
    log: Path

    def status_for(self, secret: str) -> int:
        """Over a connection of its own, and so from any of the workers."""
        connection = HTTPConnection(self.address, timeout=PATIENCE)
        with closing(connection):
            connection.request("GET", PROBE, headers={API_KEY_HEADER: secret})
            return connection.getresponse().status


class Project:
    """Your application in a folder of its own, where `.env` is not yours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env_file = folder / ".env"
        shutil.copytree(ROOT / "app", folder / "app")
        (folder / "pyproject.toml").touch()

    def environment(self, **variables: str) -> dict[str, str]:
        # Not yours for Python, such as PYTHONUNBUFFERED.
        inherited = {n: value for n, value in os.environ.items() if not n.startswith("PYTHON")}
        # uvicorn's --env-file leaves what is set, also to nothing.
        if not inherited.get("API_KEYS"):
            inherited.pop("API_KEYS", None)
        paths = f"{self.folder}{os.pathsep}{ROOT}"
        return {**inherited, "PYTHONPATH": paths, **variables}

    def run(
        self, *command: str, cwd: Path | None = None, encoding: str = "utf-8"
    ) -> subprocess.CompletedProcess[str]:
        """A command of Python's: `-m app keys list`."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd or self.folder,
            env=self.environment(PYTHONIOENCODING=encoding),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding=encoding,
            timeout=PATIENCE,
        )

    @contextmanager
    def serving(self, *options: str, workers: int = 1) -> Iterator[Server]:
        """uvicorn, once all of its workers answer."""
        log = self.folder / "server.log"
        app = ("-m", "uvicorn", "--factory", "tests.thorough.services:start")
        command = (*app, "--port", "0", "--workers", f"{workers}")
        with log.open("w") as output:
            server = subprocess.Popen(
                [sys.executable, *command, *options],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            give_up_at = time.monotonic() + PATIENCE
            while not (address := _address(text := log.read_text(), workers)):
                assert server.poll() is None, text
                assert time.monotonic() < give_up_at, text
                time.sleep(0.02)
            yield Server(address, log)
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _address(log: str, workers: int) -> str:
    listening = re.search(r"running on http://(\S+)", log)
    complete = log.count("Application startup complete") == workers
    return listening[1] if listening and complete else ""
