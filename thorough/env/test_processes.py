"""The service, its command line and `.env`, each in a process of its own."""

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app.auth.config.settings import AuthSettings
from app.auth.config.sources import load
from app.constants import MISSING_KEY_STATUS
from tests.thorough.processes import PATIENCE, Project, Server

KEYS = ("-m", "app", "keys")

posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no such thing")


@pytest.fixture
def project(tmp_path: Path, env_file: Path) -> Project:
    return Project(tmp_path)


def answer(project: Project, *command: str) -> Any:
    result = project.run(*KEYS, *command, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# What a command has told holds for every server.


def statuses(server: Server, secret: str) -> set[int]:
    return {server.status_for(secret) for _ in range(20)}


@contextmanager
def called_without_pause(server: Server, secret: str) -> Iterator[None]:
    ended = Event()

    def call() -> None:
        while not ended.is_set():
            server.status_for(secret)

    with ThreadPoolExecutor() as pool:
        caller = pool.submit(call)
        try:
            yield
        finally:
            ended.set()
        caller.result()


def test_no_server_accepts_a_key_that_a_command_has_ended(project: Project) -> None:
    with project.serving(workers=2) as server:
        for command in ("rotate", "revoke"):
            key = answer(project, "create")
            assert statuses(server, key["key"]) == {200}  # a new one is accepted at once
            with called_without_pause(server, key["key"]):
                answer(project, command, key["id"])
                assert statuses(server, key["key"]) == {MISSING_KEY_STATUS}


def test_commands_at_the_same_time_lose_nothing(project: Project, secrets: list[str]) -> None:
    command = [sys.executable, "-m", "app", "keys", "create"]
    creating = [
        subprocess.Popen(
            command,
            cwd=project.folder,
            env=project.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    assert [process.wait(PATIENCE) for process in creating] == [0, 0, 0]
    assert len(load(AuthSettings).api_keys) == len(secrets) + 3


def test_the_file_is_found_from_any_folder(project: Project, ids: list[str]) -> None:
    elsewhere = project.folder.parent
    listed = project.run(*KEYS, "list", cwd=elsewhere)
    assert listed.stdout.split() == ids
    created = project.run(*KEYS, "create", "--json", cwd=elsewhere)
    assert json.loads(created.stdout)["id"] in project.run(*KEYS, "list").stdout
    assert not (elsewhere / ".env").exists()


# A secret is shown, or nothing has happened.


@posix_only
@pytest.mark.parametrize(
    "command", ["create --json >&-", "create >/dev/full", "rotate ID --json >/dev/full"]
)
def test_a_key_that_cannot_be_shown_is_not_made(
    project: Project, ids: list[str], command: str
) -> None:
    before = project.env_file.read_bytes()
    python = shlex.join([sys.executable, "-m", "app", "keys"])
    result = subprocess.run(
        ["/bin/sh", "-c", f"exec {python} {command.replace('ID', ids[0])}"],
        cwd=project.folder,
        env=project.environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert project.env_file.read_bytes() == before
    assert not list(project.folder.glob(".env.*"))


def test_a_key_is_shown_in_any_encoding(project: Project) -> None:
    result = project.run(*KEYS, "create", encoding="ascii")
    assert result.returncode == 0
    assert result.stdout.startswith("id:  ")


# What is no plain file, or is not followed.


@posix_only
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_in_one_line(project: Project, make: Any) -> None:
    project.env_file.unlink()
    make(project.env_file)
    kind = stat.S_IFMT(project.env_file.stat().st_mode)
    expected = f"{project.env_file} is not a file; put the settings into one\n"
    created = project.run(*KEYS, "create")
    assert (created.returncode, created.stdout, created.stderr) == (1, "", expected)
    service = project.run("-c", "import app.main")
    assert (service.returncode, service.stdout, service.stderr) == (3, "", expected)
    assert stat.S_IFMT(project.env_file.stat().st_mode) == kind


def test_keys_of_the_environment_are_not_followed_and_the_start_says_so(
    project: Project, secrets: list[str]
) -> None:
    with project.serving("--env-file", ".env") as server:
        assert server.status_for(secrets[0]) == 200
        assert "WARNING" in server.log.read_text()
        assert "The keys are not followed" in server.log.read_text()
